"""A run of RAISE, opened to be looked at: the pool its policy picked from, the policy, and the logs of its trainings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysift.errors import ConfigError
from raysift.jobs.runs.reuse import read_events
from raysift.jobs.runs.run import Run, open_run
from raysift.jobs.runs.tables import read_chunks
from raysift.manifest import Manifest, read_manifest
from raysift.policy.drawing import FINAL_DRAW, Draw
from raysift.policy.pool import PolicyPool, positions, read_pool
from raysift.policy.saved import finished_rounds, load_policy
from raysift.policy.settings import PolicySettings
from raysift.policy.state import Episode
from raysift.records import ID, SCORE
from raysift.scoring.columns import ANSWER_TOKENS, LOGPROB_ALONE, LOGPROB_GIVEN, PROMPT_TOKENS
from raysift.storage import Location

if TYPE_CHECKING:
    from raysift.policy.network import Acquisition
    from raysift.policy.picking import Picker

MEASURES = (PROMPT_TOKENS, ANSWER_TOKENS, LOGPROB_GIVEN, LOGPROB_ALONE)

Values = NDArray[np.float64]


@dataclass(frozen=True)
class PolicyRun:
    """A run of RAISE that has finished its final training, opened to be looked at."""

    run: Run
    rows: Manifest
    features: Manifest
    difficulty: Manifest
    final: Manifest
    order: Manifest

    @cached_property
    def pool(self) -> PolicyPool:
        """The rows that the policy could pick."""
        whole = read_pool(self.run.files(self.features, "features")[0])
        chunks = read_chunks(self.run.files(self.order, "scores"), [ID, SCORE])
        ids = np.concatenate([chunk.filter(chunk[SCORE].is_valid())[ID].to_numpy() for chunk in chunks])
        kept = positions(whole, np.sort(ids))
        return PolicyPool(whole.ids[kept], whole.features[kept], whole.classes[kept])

    @cached_property
    def episode(self) -> Episode:
        """The final training."""
        log = self.run.files(self.final, "log")[0]
        values = self.final.values
        return Episode(pq.read_table(log.path, filesystem=log.fs), values["report_start"], values["report"])

    @property
    def settings(self) -> PolicySettings:
        return PolicySettings.model_validate(self.final.settings["policy"])

    @property
    def batch_size(self) -> int:
        return int(self.final.settings["train"]["batch_size"])

    @property
    def draw(self) -> Draw | None:
        """Of the final training; None where the highest scores were taken."""
        return Draw(self.final.settings["seed"], FINAL_DRAW) if self.settings.deploy == "sampled" else None

    @cached_property
    def network(self) -> Acquisition:
        """The policy of the final training, learned here or in the run that `policy_from` names."""
        learned = read_manifest(self.run.folder / "learn")
        if learned:
            return load_policy(self.run.files(learned, "policy")[0])[0]
        from raysift.jobs.policy.transfer import learnt_by

        return load_policy(learnt_by(getattr(self.run.config(), "raise")).policy)[0]

    @cached_property
    def picker(self) -> Picker:
        from raysift.policy.picking import Picker

        return Picker(self.pool, self.settings, self.network)

    @cached_property
    def difficulty_of_rows(self) -> dict[str, Values]:
        """Tokens and log-probabilities of each row of the pool, the latter as the policy read them: a token, or in sum."""
        found = {name: np.full(len(self.pool), np.nan) for name in MEASURES}
        for places, kept in on_pool(self.pool, self.run.files(self.difficulty, "answers"), list(MEASURES)):
            for name in MEASURES:
                found[name][places] = kept[name].to_numpy()
        if self.logprob_is_mean:
            for name in (LOGPROB_GIVEN, LOGPROB_ALONE):
                found[name] = found[name] / found[ANSWER_TOKENS]
        return found

    @property
    def logprob_is_mean(self) -> bool:
        return bool(self.features.settings["logprob"] == "mean")

    def middle_steps(self) -> list[int]:
        """The first, the middle and the last step."""
        steps = self.episode.steps
        return sorted({1, (steps + 1) // 2, steps})


def open_policy_run(run: str | Run) -> PolicyRun:
    """Raises where the run is none of RAISE, or has not come to the end of its final training."""
    opened = open_run(run) if isinstance(run, str) else run
    names = ("ingest", "features", "difficulty", "final", "order")
    found = {name: read_manifest(opened.folder / name) for name in names}
    missing = [name for name, manifest in found.items() if manifest is None]
    if missing:
        raise ConfigError(
            f"raise: {opened.folder} has no finished {', '.join(missing)}; its picks cannot be told yet. Name a finished run "
            "of `raysift raise`."
        )
    manifests = {name: manifest for name, manifest in found.items() if manifest}
    return PolicyRun(opened, manifests.pop("ingest"), **manifests)


def round_folders(run: Run) -> list[Location]:
    """The finished rounds, also of a run that is still learning."""
    learned = read_manifest(run.folder / "learn")
    if learned:
        return finished_rounds(learned.home / learned.fingerprint / "rounds")[: learned.values["rounds"]]
    begun = [event for event in read_events(run.folder) if event["stage"] == "learn"]
    latest = [event["fingerprint"] for event in begun if "fingerprint" in event]
    return finished_rounds(run.folder / "learn" / latest[-1] / "rounds") if latest else []


def on_pool(
    pool: PolicyPool, files: Sequence[Location], columns: Sequence[str]
) -> Iterator[tuple[NDArray[np.int64], pa.Table]]:
    """Chunks of tables cut down to the pool's rows, with the places of these in the pool."""
    for chunk in read_chunks(files, [ID, *columns]):
        ids = chunk[ID].to_numpy()
        places = np.minimum(np.searchsorted(pool.ids, ids), len(pool) - 1)
        mine = pool.ids[places] == ids
        yield places[mine], chunk.drop_columns(ID).filter(pa.array(mine))

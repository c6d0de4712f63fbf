"""Reports on a run of RAISE, computed from its logs on demand: its rounds, and the picks of single rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysift.errors import ConfigError
from raysift.jobs.policy.attribution import chances, credit_weights, credits_of, first_scores
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.reuse import read_events
from raysift.jobs.runs.run import Run, open_run
from raysift.jobs.runs.tables import read_chunks
from raysift.manifest import Manifest, read_manifest
from raysift.policy.pool import PolicyPool, positions, read_pool, restrict
from raysift.policy.saved import finished_rounds, load_episodes, read_account
from raysift.policy.state import Episode
from raysift.policy.verdict import DOUBT
from raysift.records import ID, SCORE
from raysift.storage import Location

SHOWN_ROUNDS = 40


@dataclass(frozen=True)
class RowStory:
    """Facts on a row that the policy of a run could pick."""

    class_number: int
    class_rows: int
    steps: list[int]
    """Steps of the final training in which the row was picked."""
    rounds: list[int]
    """Picks of the row in each round, over all trainings of the round."""
    all_steps: int = 0
    pool_rows: int = 0
    expected: float = 0.0
    """Picks of an average row over all rounds."""
    chance: float | None = None
    """Chance to be drawn before the first step of the final training, relative to an average row of its class; None if
    the policy takes the highest scores."""
    chance_below: int | None = None
    """Rows of its class with a lower score of the policy then."""
    credit: float | None = None
    """The credit by which the last round rewarded the row, in standard deviations over the pool."""
    credit_below: int = 0
    """Rows of the pool with a lower credit."""


def learning_curve(run: str | Run) -> pa.Table:
    """One line per finished round; works while the run is still learning, too."""
    lines = []
    for folder in round_folders(open_run(run) if isinstance(run, str) else run):
        account = read_account(folder)
        update = account.pop("update")
        account.pop("reports")
        gain = account["performance"] - account["start"]
        lines.append(account | {"gain": gain, "ratio": update.pop("last_ratio", None)} | update)
    return pa.Table.from_pylist(lines)


def row_story(run: Run, row_id: int) -> RowStory | None:
    """The story of a row; None if the policy could not pick it, for lack of features or of anything to learn."""
    pool = policy_rows(run)
    if row_id not in pool.ids:
        return None
    at, final = int(positions(pool, row_id)), final_training(run)
    number = int(pool.classes[at])
    mates = pool.classes == number
    logs = [load_episodes(folder) for folder in round_folders(run)]
    picked = sum(len(batch) for log in logs for one in log for batch in one.picks)
    told: dict[str, Any] = {}
    if (found := first_scores(run, pool, final)) is not None:
        scores, temperature = found
        own = int(mates[:at].sum())
        told["chance_below"] = int((scores[mates] < scores[at]).sum())
        told["chance"] = float(chances(scores[mates], temperature)[own]) if temperature else None
    if (weights := credit_weights(run, pool, logs)) is not None:
        credits = credits_of(run, pool, weights)
        told |= {"credit": float(credits[at]), "credit_below": int((credits < credits[at]).sum())}
    return RowStory(
        number,
        int(mates.sum()),
        _steps_with(final, row_id),
        [sum(len(_steps_with(one, row_id)) for one in log) for log in logs],
        all_steps=final.steps,
        pool_rows=len(pool),
        expected=picked / len(pool),
        **told,
    )


def show_policy(run: Run, console: Console) -> None:
    """Print the learning curve, and the performance of the final training once that has finished."""
    lines = learning_curve(run).to_pylist()
    if not lines:
        return
    every = -(-len(lines) // SHOWN_ROUNDS)
    first = [_number(lines[0][name]) for name in ("start", "report_start")]
    rows: list[list[Any]] = [["start", *first, *[None] * 3]]
    for line in lines:
        if line["round"] % every == 0 or line is lines[-1]:
            performance, report, *rest = (
                _number(line[name]) for name in ("performance", "report", "clipped", "entropy")
            )
            rows.append([str(line["round"]), performance, report, round(line["distinct_rows"]), *rest])
    if final := read_manifest(run.folder / "final"):
        last = [_number(final.values[name]) for name in ("performance", "report")]
        rows.append(["final", *last, final.counts["kept"], None, None])
    heads = ["round", "performance", "report", "rows", "clipped", "entropy"]
    console.table(f"Rounds ({len(lines)}, of {round(lines[0]['picks']):,} picks each)", heads, rows)
    if final and (doubt := final.values.get(DOUBT)):
        console.warn(str(doubt))


def round_folders(run: Run) -> list[Location]:
    """Folders of the finished rounds; works while the run is still learning, too."""
    learned = read_manifest(run.folder / "learn")
    if learned:
        return finished_rounds(learned.home / learned.fingerprint / "rounds")[: learned.values["rounds"]]
    begun = [event for event in read_events(run.folder) if event["stage"] == "learn"]
    latest = [event["fingerprint"] for event in begun if "fingerprint" in event]
    return finished_rounds(run.folder / "learn" / latest[-1] / "rounds") if latest else []


def _finished(run: Run, stage: str) -> Manifest:
    manifest = read_manifest(run.folder / stage)
    if manifest is None:
        raise ConfigError(
            f"raise: {run.folder} has not finished the stage {stage}. Name a finished run of `raysift raise`."
        )
    return manifest


def policy_rows(run: Run) -> PolicyPool:
    """The rows that the policy could pick."""
    chunks = read_chunks(run.files(_finished(run, "order"), "scores"), [ID, SCORE])
    ids = np.concatenate([chunk.filter(chunk[SCORE].is_valid())[ID].to_numpy() for chunk in chunks])
    return restrict(read_pool(run.files(_finished(run, "features"), "features")[0]), ids)


def final_training(run: Run) -> Episode:
    """The log of the final training."""
    log = run.files(_finished(run, "final"), "log")[0]
    return Episode(pq.read_table(log.path, filesystem=log.fs))


def _steps_with(episode: Episode, row_id: int) -> list[int]:
    return [step for step, batch in enumerate(episode.picks, 1) if row_id in batch]


def _number(value: float | None) -> str | None:
    """Four decimals unless the number is tiny, so that numbers in a column align."""
    return None if value is None else f"{value:.4f}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"

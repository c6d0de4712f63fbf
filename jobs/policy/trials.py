"""A trial of a policy search: it learns its own policy, round by round, in one process.

FOLDER/rounds/TRIAL/round-0001/      see raysift.policy.saved

The checkpoint given to Tune holds only the number of rounds reported. No round is repeated after a killed trial or a killed
driver, whatever state Tune had saved last.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import tune

from raysift.actors.episode import EpisodeSetup
from raysift.errors import StageError
from raysift.jobs.policy.episodes import LocalFleet
from raysift.jobs.policy.learning import learn_rounds
from raysift.methods.raise_policy import count_policy_steps
from raysift.policy.pool import PolicyPool
from raysift.policy.saved import finished_rounds, read_account
from raysift.policy.search_settings import SearchSettings
from raysift.policy.settings import LearningSettings, RaiseConfig
from raysift.policy.trials import TrialSettings, apply_settings, criterion
from raysift.settings.training import TrainConfig
from raysift.storage import Location

ROUNDS, KNOWN = "rounds", "rounds.txt"
CRITERION, ROUND_NUMBER = "criterion", "round"


@dataclass(frozen=True)
class TrialWork:
    """Data that all trials share; the processes of a machine share one copy."""

    setup: EpisodeSetup
    classes: Mapping[int, NDArray[np.int32]]
    """The class of each row of the pool, for each requested number of classes."""
    config: RaiseConfig
    train: TrainConfig
    search: SearchSettings
    total: int
    """The budget in rows."""
    seed: int
    folder: Location

    def prepare(self, settings: TrialSettings) -> tuple[EpisodeSetup, LearningSettings]:
        """The setup of a trial with these settings, and its learning settings."""
        config, train = apply_settings(settings, self.config, self.train)
        whole = self.setup.pool
        steps = max(1, round(count_policy_steps(config, train, self.total) * self.search.steps_share))
        setup = replace(
            self.setup,
            pool=PolicyPool(whole.ids, whole.features, self.classes[config.policy.classes]),
            policy=config.policy,
            train=train,
            steps=steps,
        )
        return setup, config.learning.model_copy(update={"rounds": self.search.rounds})


def run_trial(config: dict[str, Any], work: TrialWork) -> None:
    """Run one trial; Tune calls this in a separate process, and again after an interruption."""
    name, settings = tune.get_context().get_trial_name(), config["trial"]["settings"]
    known = _known_rounds(tune.get_checkpoint())
    performances: list[float] = []
    for account in _rounds_of(work.folder / ROUNDS / name, work, settings):
        performances.append(account["performance"])
        if len(performances) <= known:
            continue
        worth = criterion(performances, work.search.last_rounds)
        if not np.isfinite(worth):
            raise StageError(
                f"search: the performance of {name} is {worth} after round {account['round']}. Narrow the search.space "
                f"around its settings: {settings}."
            )
        found = {
            ROUND_NUMBER: account["round"],
            CRITERION: worth,
            "performance": account["performance"],
            "report": account["report"],
        }
        with tempfile.TemporaryDirectory() as temporary:
            Path(temporary, KNOWN).write_text(str(len(performances)))
            tune.report(found, checkpoint=tune.Checkpoint.from_directory(temporary))


def _rounds_of(folder: Location, work: TrialWork, settings: TrialSettings) -> Iterator[dict[str, Any]]:
    """Results of the finished rounds, then of the remaining ones as they finish."""
    done = [read_account(place) for place in finished_rounds(folder)]
    yield from done[: work.search.rounds]
    if len(done) < work.search.rounds:
        setup, learning = work.prepare(settings)
        yield from learn_rounds(folder, setup, learning, LocalFleet(setup), work.seed)


def _known_rounds(checkpoint: tune.Checkpoint | None) -> int:
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as place:
        return int(Path(place, KNOWN).read_text())

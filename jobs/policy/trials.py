"""A trial of a policy search: a training policy of its own, in one process, round after round.

FOLDER/rounds/TRIAL/LINEAGE/settings.json    the searched settings, and the rounds of another trial it went on from
FOLDER/rounds/TRIAL/LINEAGE/round-0001/      see raysift.policy.saved

What Tune gets as a checkpoint names such a folder and a number of rounds. So no round is copied but those that a trial takes
over from another, and none is repeated: neither after a killed trial nor after a killed driver, whatever Tune had last
written down.
"""

from __future__ import annotations

import json
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
from raysift.fingerprint import fingerprint
from raysift.jobs.policy.episodes import LocalFleet
from raysift.jobs.policy.learning import learn_rounds
from raysift.methods.raise_policy import count_policy_steps
from raysift.policy.pool import PolicyPool
from raysift.policy.saved import ROUND, finished_rounds, read_account
from raysift.policy.search_settings import SearchSettings
from raysift.policy.settings import LearningSettings, RaiseConfig
from raysift.policy.trials import Settings, apply_settings, criterion
from raysift.settings.training import TrainConfig
from raysift.storage import Location

ROUNDS, SETTINGS, POINTER = "rounds", "settings.json", "rounds.json"
CRITERION, ROUND_NUMBER = "criterion", "round"

Pointer = dict[str, Any]
"""Trial, folder, and how many of its rounds."""


@dataclass(frozen=True)
class TrialWork:
    """All that the trials share; one copy of it serves the processes of a machine."""

    setup: EpisodeSetup
    classes: Mapping[int, NDArray[np.int32]]
    """The class of each row of the pool, by how many classes were asked for."""
    config: RaiseConfig
    train: TrainConfig
    search: SearchSettings
    total: int
    """The budget in rows."""
    seed: int
    folder: Location

    def prepare(self, settings: Settings) -> tuple[EpisodeSetup, LearningSettings]:
        """What a trial with these settings trains, and how it learns."""
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
    """One trial: Tune calls this in a process of its own, again where it was interrupted or is to go on as another."""
    name, settings = tune.get_context().get_trial_name(), config["trial"]["settings"]
    pointer = _read_pointer(tune.get_checkpoint())
    folder, known = open_rounds(work.folder / ROUNDS, name, settings, pointer)
    performances: list[float] = []
    for account in _rounds_of(folder, work, settings):
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
        place = {"trial": name, "folder": f"{name}/{folder.name}", "rounds": len(performances)}
        with tempfile.TemporaryDirectory() as temporary:
            Path(temporary, POINTER).write_text(json.dumps(place))
            tune.report(found | {"folder": place["folder"]}, checkpoint=tune.Checkpoint.from_directory(temporary))


def open_rounds(home: Location, name: str, settings: Settings, pointer: Pointer | None) -> tuple[Location, int]:
    """The folder of a trial's rounds, and how many of them Tune knows of.

    Its own goes on. Another trial's rounds, or those of other settings, are where a new folder starts from.
    """
    if pointer and pointer["trial"] == name and read_settings(home / pointer["folder"])["settings"] == settings:
        return home / pointer["folder"], pointer["rounds"]
    origin = {"from": pointer, "settings": settings}
    folder = home / name / fingerprint(origin)
    if not (folder / SETTINGS).exists():
        folder.make_folder()
        if pointer:
            for place in finished_rounds(home / pointer["folder"])[: pointer["rounds"]]:
                _copy_round(place, folder / place.name)
        (folder / SETTINGS).write(json.dumps(origin, indent=2) + "\n")
    # Of a folder that was there already Tune may know less than is done; it is told the rest.
    return folder, pointer["rounds"] if pointer else 0


def settings_by_round(home: Location, folder: str, rounds: int) -> list[Settings]:
    """The settings under which each of the rounds was done, those taken over from other trials included."""
    origin = read_settings(home / folder)
    before = origin["from"]
    taken = settings_by_round(home, before["folder"], min(rounds, before["rounds"])) if before else []
    return [*taken, *[origin["settings"]] * (rounds - len(taken))]


def _rounds_of(folder: Location, work: TrialWork, settings: Settings) -> Iterator[dict[str, Any]]:
    """Accounts of the rounds that are done, then of those that are left."""
    done = [read_account(place) for place in finished_rounds(folder)]
    yield from done[: work.search.rounds]
    if len(done) < work.search.rounds:
        setup, learning = work.prepare(settings)
        yield from learn_rounds(folder, setup, learning, LocalFleet(setup), work.seed)


def _copy_round(source: Location, target: Location) -> None:
    """ROUND last: it makes the round count."""
    for file in sorted(source.files(), key=lambda file: file.name == ROUND):
        (target.make_folder() / file.name).write(file.read_bytes())


def _read_pointer(checkpoint: tune.Checkpoint | None) -> Pointer | None:
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as place:
        pointer: Pointer = json.loads(Path(place, POINTER).read_text())
    return pointer


def read_settings(folder: Location) -> dict[str, Any]:
    """What `settings.json` of a lineage says."""
    found: dict[str, Any] = json.loads((folder / SETTINGS).read_text())
    return found

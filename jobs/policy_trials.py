"""The trials of a policy search, on Ray Tune.

A trial is one process that does its rounds one after the other (`LocalFleet`). Each finished round is kept where the run is:

FOLDER/rounds/TRIAL/LINEAGE/settings.json    the searched settings, and the rounds of another trial it went on from
FOLDER/rounds/TRIAL/LINEAGE/round-0001/      see raysift.policy.saved
FOLDER/tune/                                 what Tune itself keeps

What Tune gets as a checkpoint names such a folder and a number of rounds. So no round is copied but those that a trial takes
over from another, and none is repeated: neither after a killed trial nor after a killed driver, whatever Tune had last
written down. Tune does not keep what a scheduler remembers; after a killed driver ASHA compares only what comes in from then.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler

from raysift.actors.episode import EpisodeSetup
from raysift.errors import StageError, find_cause
from raysift.fingerprint import fingerprint
from raysift.jobs.episodes import LocalFleet
from raysift.jobs.policy_learning import learn_rounds
from raysift.jobs.raydata import cluster_cpus, pool_size
from raysift.jobs.run import Run
from raysift.methods.raise_policy import RaiseConfig, count_policy_steps
from raysift.policy.pool import PolicyPool
from raysift.policy.saved import ROUND, finished_rounds
from raysift.policy.search_settings import SearchSettings
from raysift.policy.settings import LearningSettings
from raysift.policy.trials import OWN, Outcome, Settings, apply_settings, changeable_values, criterion
from raysift.recipes import TrainConfig
from raysift.resources import Resources
from raysift.storage import Location

ROUNDS, TUNE, SETTINGS, POINTER = "rounds", "tune", "settings.json", "rounds.json"
CRITERION, ROUND_NUMBER = "criterion", "round"
SNAPSHOT_S = (
    "1"  # between two writings of Tune's state; its default is 10 s, in which a search on a small model is over
)

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
    if pointer and pointer["trial"] == name and _read_settings(home / pointer["folder"])["settings"] == settings:
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
    origin = _read_settings(home / folder)
    before = origin["from"]
    taken = settings_by_round(home, before["folder"], min(rounds, before["rounds"])) if before else []
    return [*taken, *[origin["settings"]] * (rounds - len(taken))]


def fit(work: TrialWork, drawn: Sequence[Settings], resources: Resources, run: Run) -> list[Outcome]:
    """Run the trials, or go on with them; gives what became of each, by number."""
    trainable = tune.with_resources(
        tune.with_parameters(run_trial, work=work), {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    )
    _require_room(resources)
    with _quiet(), Teller.speaking(run):
        tuner = _restored(work.folder / TUNE, trainable)
        if tuner is None:
            (work.folder / TUNE).delete()
            tuner = tune.Tuner(
                trainable,
                param_space={
                    "trial": tune.grid_search(
                        [{"number": number, "settings": dict(settings)} for number, settings in enumerate(drawn)]
                    )
                },
                tune_config=_tune_config(work, resources),
                run_config=tune.RunConfig(
                    name=TUNE,
                    storage_path=work.folder.path,
                    storage_filesystem=None if work.folder.is_local else work.folder.fs,
                    failure_config=tune.FailureConfig(max_failures=work.search.max_failures),
                    callbacks=[Teller()],
                    verbose=0,
                ),
            )
        results = tuner.fit()
    if results.num_terminated + results.num_errors < len(results):
        raise KeyboardInterrupt  # Tune catches it, and gives what there is as if it were all
    found = {outcome.number: outcome for outcome in (_outcome(result, work) for result in results)}
    missing = [number for number in range(len(drawn)) if number not in found]
    if missing:
        raise StageError(f"search: trials {missing} of {len(drawn)} are not in Tune's results. Start the run again.")
    return [found[number] for number in range(len(drawn))]


# --- schedulers --------------------------------------------------------------------------------------------------------


class SparingASHA(ASHAScheduler):
    """ASHA that never stops the run's own settings, so that others are compared with all their rounds."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision: str = super().on_trial_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE if str(trial) == trial_name(OWN) else decision


class SparingPBT(PopulationBasedTraining):
    """Population-based training in which the run's own settings stay as they are; others may go on from them.

    After its last round a trial has nothing to go on with, and would only end as a copy of a better one.
    """

    def __init__(self, rounds: int, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.rounds = rounds

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if result[ROUND_NUMBER] >= self.rounds:
            return TrialScheduler.CONTINUE
        decision: str = super().on_trial_result(tune_controller, trial, result)
        return decision

    def _exploit(self, tune_controller: Any, trial: Any, trial_to_clone: Any) -> None:
        if str(trial) != trial_name(OWN):
            super()._exploit(tune_controller, trial, trial_to_clone)


def make_scheduler(search: SearchSettings, config: RaiseConfig) -> Any:
    """What stops trials or changes them."""
    if search.scheduler == "pbt":
        return SparingPBT(
            search.rounds,
            time_attr=ROUND_NUMBER,
            perturbation_interval=search.perturb_rounds,
            hyperparam_mutations={"trial": {"settings": changeable_values(search, config)}},
            log_config=False,
        )
    if search.scheduler == "asha":
        return SparingASHA(
            time_attr=ROUND_NUMBER,
            max_t=search.rounds,
            grace_period=min(search.grace_rounds, search.rounds),
            reduction_factor=search.reduction,
        )
    return FIFOScheduler()


# --- Tune --------------------------------------------------------------------------------------------------------------


class Teller(tune.Callback):
    """Says what trials do. Tune pickles its callbacks and brings old ones back, so the run is not part of it."""

    run: ClassVar[Run | None] = None

    @classmethod
    @contextlib.contextmanager
    def speaking(cls, run: Run) -> Iterator[None]:
        """Through this run, inside the block."""
        Teller.run = run
        try:
            yield
        finally:
            Teller.run = None

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        numbers = {name: round(result[name], 4) for name in (CRITERION, "performance")}
        self._say("round", trial=str(trial), round=result[ROUND_NUMBER], **numbers)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._say("recovered", trial=str(trial), failures=trial.run_metadata.num_failures)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._say("trial failed", trial=str(trial))

    def _say(self, event: str, **fields: Any) -> None:
        if Teller.run is not None:
            Teller.run.record(event, "search", **fields)


def trial_name(number: int) -> str:
    """Of the trial with this number; its folders have it too."""
    return f"trial-{number:04d}"


def name_trial(trial: Any) -> str:
    """The same for Tune, when it makes the trial."""
    return trial_name(trial.config["trial"]["number"])


def _tune_config(work: TrialWork, resources: Resources) -> tune.TuneConfig:
    return tune.TuneConfig(
        metric=CRITERION,
        mode="max",
        scheduler=make_scheduler(work.search, work.config),
        # To Tune a paused trial counts as one at work; a population would be as large as what runs at a time.
        max_concurrent_trials=None if work.search.scheduler == "pbt" else pool_size(resources),
        reuse_actors=True,  # a process that has loaded its libraries does for the next trial
        trial_name_creator=name_trial,
        trial_dirname_creator=name_trial,
    )


def _restored(folder: Location, trainable: Any) -> tune.Tuner | None:
    """The search that was begun here, if Tune can read what it wrote; else the rounds alone are gone on with.

    Restoring unpickles: this is for the folder that the run itself has made, never for one that came from elsewhere.
    """
    states = [file for file in folder.files(".json") if file.name.startswith("experiment_state")]
    try:
        json.loads(states[-1].read_bytes())
        return tune.Tuner.restore(
            folder.path,
            trainable,
            resume_errored=True,
            storage_filesystem=None if folder.is_local else folder.fs,
        )
    except (IndexError, ValueError, EOFError, pickle.UnpicklingError, FileNotFoundError):
        return None


def _outcome(result: Any, work: TrialWork) -> Outcome:
    """What became of a trial, by its folder: settings and rounds are those of the newest lineage it reported from."""
    name = result.path.rstrip("/").rsplit("/", 1)[-1]
    metrics, home = result.metrics or {}, work.folder / ROUNDS
    reason = None
    if result.error is not None:
        cause = find_cause(result.error)
        reason = str(cause) if cause else str(result.error).strip().splitlines()[-1]
    number = int(name.removeprefix("trial-"))
    if "folder" not in metrics:
        return Outcome(
            number, dict((result.config or {})["trial"]["settings"]), [], reason=reason or "no round finished"
        )
    accounts = [_read_account(p) for p in finished_rounds(home / metrics["folder"])[: metrics[ROUND_NUMBER]]]
    return Outcome(
        number=number,
        settings=_read_settings(home / metrics["folder"])["settings"],
        performances=[account["performance"] for account in accounts],
        reports=[account["report"] for account in accounts],
        seconds=[account["seconds"] for account in accounts],
        reason=reason,
        folder=metrics["folder"],
    )


def _rounds_of(folder: Location, work: TrialWork, settings: Settings) -> Iterator[dict[str, Any]]:
    """Accounts of the rounds that are done, then of those that are left."""
    done = [_read_account(place) for place in finished_rounds(folder)]
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


def _read_settings(folder: Location) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / SETTINGS).read_text())
    return found


def _read_account(place: Location) -> dict[str, Any]:
    account: dict[str, Any] = json.loads((place / ROUND).read_text())
    return account


def _require_room(resources: Resources) -> None:
    """A trial that waits for room which never comes would be a search that hangs."""
    if resources.cpus_per_worker > cluster_cpus() + 1e-6:
        raise StageError(
            f"search: a trial asks for {resources.cpus_per_worker:g} CPUs, the cluster has {cluster_cpus():g}. "
            "Lower resources.cpus_per_worker."
        )
    pool_size(resources)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Tune writes no tables and no files for each result, its state often, and leaves no signal handlers of its own behind."""
    wanted = {
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_GLOBAL_CHECKPOINT_S": SNAPSHOT_S,
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    }
    # The second one lists failed trials at the end, as the table does.
    levels = {"ray.tune": logging.ERROR, "ray.tune.tune": logging.CRITICAL}
    before = {name: os.environ.get(name) for name in wanted}
    usual = {name: logging.getLogger(name).level for name in levels}
    caught = (signal.SIGINT, signal.SIGUSR1) if threading.current_thread() is threading.main_thread() else ()
    handlers = {number: signal.getsignal(number) for number in caught}
    os.environ.update(wanted)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in usual.items():
            logging.getLogger(name).setLevel(level)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

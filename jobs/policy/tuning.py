"""The trials of a policy search on Ray Tune: running, stopping and collecting them.

Tune keeps its state in FOLDER/tune, but not the scheduler's: after a killed driver ASHA compares only new results, and so
stops fewer trials. ASHA's decisions depend on how far each trial has come at that time.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from raysift.errors import StageError, find_cause
from raysift.jobs.cluster.machines import cluster_cpus, pool_size
from raysift.jobs.on_ray.fitting import words_of_a_kill
from raysift.jobs.policy.trials import (
    CRITERION,
    ROUND_NUMBER,
    ROUNDS,
    TrialWork,
    run_trial,
)
from raysift.jobs.runs.progress import Bar
from raysift.jobs.runs.run import Run
from raysift.policy.saved import finished_rounds, read_account
from raysift.policy.search_settings import SearchSettings
from raysift.policy.trials import OWN, TrialResult, TrialSettings
from raysift.settings.resources import Resources
from raysift.storage import Location

TUNE, PLAN = "tune", "tune-plan.json"
SNAPSHOT_S = "1"
"""Seconds between saves of Tune's state; its default of 10 s is as long as a search on a small model."""


def fit(work: TrialWork, drawn: Sequence[TrialSettings], resources: Resources, run: Run) -> list[TrialResult]:
    """Start or resume the trials; returns their outcomes, sorted by number.

    The first trial that is killed for its memory ends all of them with an error that says so; finished rounds stay.
    """
    asked = {"CPU": resources.cpus, "GPU": resources.gpus_per_worker or 0.0, "memory": resources.memory or 0}
    trainable = tune.with_resources(tune.with_parameters(run_trial, work=work), asked)
    _require_room(resources)
    forget_other_plan(work.folder, asked | {"at_once": pool_size(resources)})
    total, unit = len(drawn) * work.search.rounds, "rounds"
    with _quiet(), run.progress(total, unit) as bar, Teller.speaking(Watch(run, bar, work, len(drawn))) as watch:
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
                    stop=OutOfMemory(),
                    verbose=0,
                ),
            )
        results = tuner.fit()
    if watch.killed:
        (work.folder / TUNE).delete()  # else the trials that were stopped for it count as ended
        raise StageError(f"search: a trial ended for its memory: {watch.killed}")
    if results.num_terminated + results.num_errors < len(results):
        raise KeyboardInterrupt  # Tune catches it and returns the results so far as if they were complete
    found = {outcome.number: outcome for outcome in (_outcome(result, work) for result in results)}
    missing = [number for number in range(len(drawn)) if number not in found]
    if missing:
        raise StageError(f"search: trials {missing} of {len(drawn)} are not in Tune's results. Start the run again.")
    return [found[number] for number in range(len(drawn))]


# --- schedulers --------------------------------------------------------------------------------------------------------


class SparingASHA(ASHAScheduler):  # type: ignore[misc]
    """ASHA that never stops the trial with the run's own settings, so that others are compared with all its rounds."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision: str = super().on_trial_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE if str(trial) == trial_name(OWN) else decision


def make_scheduler(search: SearchSettings) -> Any:
    """The scheduler, which decides when trials stop early."""
    if search.scheduler == "asha":
        return SparingASHA(
            time_attr=ROUND_NUMBER,
            max_t=search.rounds,
            grace_period=min(search.grace_rounds, search.rounds),
            reduction_factor=search.reduction,
        )
    return FIFOScheduler()


# --- Tune --------------------------------------------------------------------------------------------------------------


class Watch:
    """What the driver sees of the trials: their rounds in the run's log and in a bar, and whether memory ran out."""

    def __init__(self, run: Run, bar: Bar, work: TrialWork, trials: int) -> None:
        self.run, self.bar, self.rounds = run, bar, work.search.rounds
        self.killed: str | None = None
        """Ray's words, if a trial was killed for its memory."""
        places = {trial_name(number): work.folder / ROUNDS / trial_name(number) for number in range(trials)}
        self.reached = {name: len(finished_rounds(place)[: self.rounds]) for name, place in places.items()}
        self._show()

    def reach(self, trial: str, number: int) -> None:
        """A trial has done this round."""
        self.reached[trial] = max(number, self.reached.get(trial, 0))
        self._show()

    def end(self, trial: str) -> None:
        """A trial does no more rounds."""
        self.reach(trial, self.rounds)

    def fail(self, trial: Any) -> None:
        """A trial has failed, perhaps for its memory."""
        with contextlib.suppress(OSError, TypeError), open(trial.error_file, encoding="utf-8") as file:
            self.killed = self.killed or words_of_a_kill(file.read().rpartition("Failure #")[2])

    def _show(self) -> None:
        ended = sum(number == self.rounds for number in self.reached.values())
        self.bar.update(sum(self.reached.values()), words=f"{ended} of {len(self.reached)} trials done")


class Teller(tune.Callback):  # type: ignore[misc]
    """Records events of trials in the run's log. The watch is a class attribute, as Tune pickles and restores callbacks."""

    watch: ClassVar[Watch | None] = None

    @classmethod
    @contextlib.contextmanager
    def speaking(cls, watch: Watch) -> Iterator[Watch]:
        """Tell this watch of events inside the block."""
        Teller.watch = watch
        try:
            yield watch
        finally:
            Teller.watch = None

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        numbers = {name: round(result[name], 4) for name in (CRITERION, "performance")}
        self._say("round", trial, round=result[ROUND_NUMBER], **numbers)
        if Teller.watch is not None:
            Teller.watch.reach(str(trial), result[ROUND_NUMBER])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        if Teller.watch is not None:
            Teller.watch.end(str(trial))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._say("recovered", trial, failures=trial.run_metadata.num_failures)
        if Teller.watch is not None:
            Teller.watch.fail(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._say("trial failed", trial)
        if Teller.watch is not None:
            Teller.watch.fail(trial)
            Teller.watch.end(str(trial))

    def _say(self, event: str, trial: Any, **fields: Any) -> None:
        if Teller.watch is not None:
            Teller.watch.run.record(event, "search", trial=str(trial), **fields)


class OutOfMemory(tune.Stopper):  # type: ignore[misc]
    """Ends all trials once one was killed for its memory: it would be killed again, and others with it."""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return Teller.watch is not None and Teller.watch.killed is not None


def trial_name(number: int) -> str:
    """The name of a trial, also used for its folders."""
    return f"trial-{number:04d}"


def name_trial(trial: Any) -> str:
    """The name of a trial, for Tune to call when it creates the trial."""
    return trial_name(trial.config["trial"]["number"])


def _tune_config(work: TrialWork, resources: Resources) -> tune.TuneConfig:
    return tune.TuneConfig(
        metric=CRITERION,
        mode="max",
        scheduler=make_scheduler(work.search),
        max_concurrent_trials=pool_size(resources),
        reuse_actors=True,  # the next trial uses a process that has already loaded its libraries
        trial_name_creator=name_trial,
        trial_dirname_creator=name_trial,
    )


def forget_other_plan(folder: Location, plan: dict[str, Any]) -> None:
    """Delete Tune's state if it was begun with other shares of the machine, which it would ask for again."""
    place = folder / PLAN
    known = json.loads(place.read_bytes()) if place.exists() else plan
    if known != plan:
        (folder / TUNE).delete()
    place.write(json.dumps(plan))


def _restored(folder: Location, trainable: Any) -> tune.Tuner | None:
    """The search begun in this folder, or None if Tune cannot read its state; then only finished rounds are reused.

    Restoring unpickles, so use this only on a folder that the run itself has made.
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


def _outcome(result: Any, work: TrialWork) -> TrialResult:
    """The outcome of a trial; its rounds are those that it reported."""
    name = result.path.rstrip("/").rsplit("/", 1)[-1]
    reported = (result.metrics or {}).get(ROUND_NUMBER, 0)
    accounts = [read_account(place) for place in finished_rounds(work.folder / ROUNDS / name)[:reported]]
    reason = None if result.error is None else _reason(result.error)
    return TrialResult(
        number=int(name.removeprefix("trial-")),
        settings=dict((result.config or {})["trial"]["settings"]),
        performances=[account["performance"] for account in accounts],
        reports=[account["report"] for account in accounts],
        seconds=[account["seconds"] for account in accounts],
        reason=reason if accounts else reason or "no round finished",
        folder=name if accounts else None,
    )


def _reason(error: Any) -> str:
    """One sentence. Our own errors, passed on by Ray, print as Ray's traceback; their `cause` does not."""
    inner = getattr(error, "cause", None) or error
    cause = find_cause(inner) if isinstance(inner, BaseException) else None
    return str(cause) if cause else str(inner).strip().splitlines()[-1]


def _require_room(resources: Resources) -> None:
    """Refuse trials that need more CPUs than the cluster has; otherwise the search would wait forever."""
    if resources.cpus > cluster_cpus() + 1e-6:
        raise StageError(
            f"search: a trial asks for {resources.cpus:g} CPUs, the cluster has {cluster_cpus():g}. "
            "Lower resources.cpus_per_worker."
        )
    pool_size(resources)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Tune prints no tables, writes no file per result, saves its state often, and its signal handlers are removed."""
    wanted = {
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_GLOBAL_CHECKPOINT_S": SNAPSHOT_S,
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    }
    # The second logger lists failed trials at the end, as our table does.
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

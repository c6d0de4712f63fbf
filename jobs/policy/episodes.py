"""Running the trainings of a round: in parallel on Ray actors, or one after the other in this process.

Ray restarts an actor that dies and repeats its calls. This is safe: a training depends only on the policy, the round and the
number of the training, and validation keeps no state. After ACTOR_RESTARTS the run ends.

Validation after each step may be split among actors of its own. They return losses of single rows, computed in fixed batches
and summed in the order of the rows, so the sum does not depend on the number of actors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import ray

from raysift.actors.episode import EpisodeRunner, EpisodeSetup, Measure, Weights
from raysift.actors.step_trainer import StepTrainer
from raysift.errors import StageError, find_cause
from raysift.jobs.on_ray.cluster import cluster_cpus, pool_size
from raysift.jobs.on_ray.counts import Count
from raysift.policy.drawing import Draw
from raysift.policy.performance import performance
from raysift.policy.state import Episode
from raysift.settings.resources import Resources

ACTOR_RESTARTS = 5  # of one actor


class Fleet(Protocol):
    """Runs the trainings of a round."""

    def run_round(self, policy: Weights, number: int, draws: Sequence[Draw | None]) -> list[Episode]:
        """Train once per draw, each time from the model's own weights; returns episodes in the order of the draws."""
        ...


class LocalFleet:
    """Runs trainings one after the other, in this process."""

    def __init__(self, setup: EpisodeSetup) -> None:
        self.runner = EpisodeRunner(setup)

    def run_round(self, policy: Weights, number: int, draws: Sequence[Draw | None]) -> list[Episode]:
        return [self.runner(policy, number, episode, draw) for episode, draw in enumerate(draws)]


class RunnerProcess:
    """An EpisodeRunner as a Ray actor. It loads on the first call, so that errors are raised from calls."""

    def __init__(self, setup: EpisodeSetup, measure: Measure | None, counts: str | None) -> None:
        count = Count(counts) if counts else None
        self.arguments = setup, measure, (lambda: count.add(1)) if count else (lambda: None)
        self.runner: EpisodeRunner | None = None

    def run(self, policy: Weights, number: int, episode: int, draw: Draw | None) -> Episode:
        return self.load()(policy, number, episode, draw)

    def call(self, work: Callable[[EpisodeRunner], Any]) -> Any:
        """Run `work` with the runner."""
        return work(self.load())

    def load(self) -> EpisodeRunner:
        if self.runner is None:
            self.runner = EpisodeRunner(*self.arguments)
        return self.runner


class ValidatorProcess:
    """A validator for a setup's validation rows, as a Ray actor."""

    def __init__(self, setup: EpisodeSetup) -> None:
        self.validator = setup.validator()

    def losses(self, weights: Weights, numbers: Sequence[int]) -> dict[int, tuple[float, int]]:
        return self.validator.losses(weights, numbers)


class DealtMeasure:
    """Measures performance with validators on Ray, each with its share of the batches."""

    def __init__(self, validators: Sequence[Any], batches: int) -> None:
        self.validators = list(validators)
        self.shares = [list(range(first, batches, len(validators))) for first in range(len(validators))]

    def __call__(self, trainer: StepTrainer) -> float:
        weights = ray.put(trainer.weights())
        answers = [
            validator.losses.remote(weights, share)
            for validator, share in zip(self.validators, self.shares, strict=True)
            if share
        ]
        losses: dict[int, tuple[float, int]] = {}
        for answer in ray.get(answers):
            losses |= answer
        return performance(losses)


class RayFleet:
    """Runs trainings on Ray actors, as many at a time as fit; they count their steps under the name `counts`.

    A validator reserves `helper` bytes if this is given, else what a training does.
    """

    def __init__(
        self,
        setup: EpisodeSetup,
        resources: Resources,
        episodes: int,
        helper: int | None = None,
        counts: str | None = None,
    ) -> None:
        self.setup, self.resources = setup, resources
        runners = min(episodes, pool_size(resources))
        self._require_room(runners)
        # All must run at once: one for which no memory is left would never start.
        share = int(0.9 * ray.cluster_resources().get("memory", 0) / (runners + resources.validation_workers))
        own = resources.memory
        self._memory = {RunnerProcess: own and min(own, share), ValidatorProcess: own and min(helper or own, share)}
        shared = ray.put(setup)
        self.actors: list[Any] = []
        measure = None
        if resources.validation_workers:
            batches = len(setup.validator().batches)
            count = min(resources.validation_workers, batches)
            measure = DealtMeasure([self._start(ValidatorProcess, shared) for _ in range(count)], batches)
        self.runners = [self._start(RunnerProcess, shared, measure, counts) for _ in range(runners)]

    def run_round(self, policy: Weights, number: int, draws: Sequence[Draw | None]) -> list[Episode]:
        shared = ray.put(dict(policy))
        asked = [
            self.runners[episode % len(self.runners)].run.remote(shared, number, episode, draw)
            for episode, draw in enumerate(draws)
        ]
        return list(self._answers(asked))

    def call(self, work: Callable[[EpisodeRunner], Any]) -> Any:
        """Run `work` on one of the runners."""
        return self._answers([self.runners[0].call.remote(work)])[0]

    def close(self) -> None:
        """End the actors, which frees their models."""
        for actor in self.actors:
            ray.kill(actor)
        self.actors = []

    def _answers(self, asked: list[Any]) -> list[Any]:
        try:
            return list(ray.get(asked))
        except ray.exceptions.RayError as error:
            cause = find_cause(error)
            if cause:
                raise cause from None
            last = str(error).strip().splitlines()[-1]
            raise StageError(f"episodes: a training ended before its time: {last}. Start the run again.") from error

    def _start(self, kind: type, *arguments: Any) -> Any:
        actor = (
            ray.remote(kind)
            .options(
                num_cpus=self.resources.cpus,
                num_gpus=self.resources.gpus_per_worker or None,
                memory=self._memory[kind],
                max_restarts=ACTOR_RESTARTS,
                max_task_retries=ACTOR_RESTARTS,
                scheduling_strategy="SPREAD",
            )
            .remote(*arguments)
        )
        self.actors.append(actor)
        return actor

    def _require_room(self, runners: int) -> None:
        """Refuse more actors than the cluster has CPUs for; otherwise the run would wait forever."""
        wanted = (runners + self.resources.validation_workers) * self.resources.cpus
        if wanted > cluster_cpus() + 1e-6:
            raise StageError(
                f"episodes: {runners} trainings at a time and {self.resources.validation_workers} validators ask for "
                f"{wanted:g} CPUs, the cluster has {cluster_cpus():g}. Lower resources.validation_workers, "
                "resources.workers or resources.cpus_per_worker."
            )


@contextlib.contextmanager
def ray_fleet(
    setup: EpisodeSetup, resources: Resources, episodes: int, helper: int | None = None, counts: str | None = None
) -> Iterator[RayFleet]:
    """A fleet whose actors end with the block."""
    fleet = RayFleet(setup, resources, episodes, helper, counts)
    try:
        yield fleet
    finally:
        fleet.close()

"""Running the trainings of a round: on groups of Ray actors, or one after the other in this process.

A group has one to eight processes (a power of two), each with the whole model; they share every step of one training (see
raysift.actors.peers). Trainings of a round run side by side in several groups. Neither number changes a result. All actors lie
in one placement group: either there is room for all of them, or the wait for it ends with a message.

A lost process ends its group, which starts again and goes on from the training's last saved state. This is safe: a training
depends only on the policy, the round and its own number. After `resources.restarts` without a saved state in between the run
ends.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raysift.actors.episode import EpisodeRunner, EpisodeSetup, Weights
from raysift.actors.frozen_training import KeptTraining
from raysift.actors.language_model import pick_device
from raysift.actors.peers import ALONE, LANES, Group, Peers, most_processes
from raysift.actors.token_files import TokenFiles, forget_copies
from raysift.config import CommonConfig
from raysift.errors import StageError, find_cause
from raysift.jobs.cluster.machines import on_gpu, pool_size, present_workers
from raysift.jobs.on_ray.counts import Count
from raysift.jobs.on_ray.fitting import killed_for_memory
from raysift.jobs.on_ray.peaks import own_peak, peaks_name, tell
from raysift.policy.drawing import Draw
from raysift.policy.state import Episode
from raysift.settings.resources import Resources
from raysift.settings.roles import LEARN
from raysift.storage import Location

log = logging.getLogger(__name__)

ASK_S = 60.0  # for an actor's answer to a question that needs no work
TELL_S = 10.0  # until a wait for room is told
SETTLE_S = 5.0  # for Ray to free what actors held that have just ended
LAST_WORDS_S = 5.0  # for the errors of a group's other processes, of which one may be the cause
LOST = (
    "DistBackendError",
    "DistNetworkError",
    "NCCL",
    "CUDA error",
    "Connection closed by peer",
    "Connection reset by peer",
)
"""Words in errors of a process that has lost its peers or its device."""


class Fleet(Protocol):
    """Runs the trainings of a round."""

    def run_round(
        self, policy: Weights, number: int, draws: Sequence[Draw | None], folder: Location | None = None
    ) -> list[Episode]:
        """Train once per draw, each time from the model's own weights; returns episodes in the order of the draws.

        In `folder`, if given, trainings keep states from which they resume.
        """
        ...


class LocalFleet:
    """Runs trainings one after the other, in this process, and keeps no states."""

    def __init__(self, setup: EpisodeSetup) -> None:
        self.runner = EpisodeRunner(setup)

    def run_round(
        self, policy: Weights, number: int, draws: Sequence[Draw | None], folder: Location | None = None
    ) -> list[Episode]:
        return [self.runner(policy, number, episode, draw) for episode, draw in enumerate(draws)]


class RankProcess:
    """One process of a training, as a Ray actor. It loads on the first call, so that errors are raised from calls."""

    def __init__(
        self, setup: EpisodeSetup, rank: int, size: int, counts: str | None, timeout_s: float, peaks: str | None = None
    ) -> None:
        self.peaks = peaks
        own_peak(peaks)
        self.setup, self.rank, self.size, self.timeout_s = setup, rank, size, timeout_s
        self.count = Count(counts) if counts and rank == 0 else None
        self.peers: Peers = ALONE
        self.runner: EpisodeRunner | None = None
        self.made = 0

    def address(self) -> str:
        """A free port of this machine, at which the group meets."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def steps(self) -> int:
        """Steps made so far; answered while a training runs."""
        return self.made

    def run(self, training: KeptTraining, address: str) -> Episode | None:
        """Train with the other processes of the group."""
        if self.runner is None:
            if self.peers.size < self.size:
                on_gpu = pick_device(self.setup.place.device) != "cpu"
                self.peers = Group(self.rank, self.size, address, on_gpu, self.timeout_s)
            self.runner = EpisodeRunner(self.setup, on_step=self._count, peers=self.peers)
        found = training(self.runner)
        return found if self.rank == 0 else None

    def forget(self) -> None:
        """Delete this machine's copies of the pool's token files."""
        if isinstance(self.setup.rows, TokenFiles):
            forget_copies([part.name for part in self.setup.rows.parts])

    def _count(self) -> None:
        self.made += 1
        tell(self.peaks)
        if self.count:
            self.count.add(1)


class RayFleet:
    """Runs trainings on groups of Ray actors; the first process of each counts its steps under the name `counts`."""

    def __init__(self, setup: EpisodeSetup, resources: Resources, episodes: int, counts: str | None = None) -> None:
        self.setup, self.resources, self.counts = setup, resources, counts
        self._shared, self._peaks = ray.put(setup), peaks_name()
        self._room = self._reserve(episodes)
        self.groups: list[list[Any]] = [[] for _ in range(self.count)]
        self._addresses = [""] * self.count
        try:
            for group in range(self.count):
                self._start(group)
        except BaseException:
            self.close()
            raise

    def run_round(
        self, policy: Weights, number: int, draws: Sequence[Draw | None], folder: Location | None = None
    ) -> list[Episode]:
        return self.run(
            [
                KeptTraining(policy, draw, folder and folder / f"training-{episode}", self.setup.every, number, episode)
                for episode, draw in enumerate(draws)
            ]
        )

    def run(self, trainings: Sequence[KeptTraining]) -> list[Episode]:
        """Run the trainings, one at a time in each group; their episodes in the same order."""
        waiting = list(enumerate(trainings))[::-1]
        found: dict[int, Episode] = {}
        running: dict[int, _Running] = {}
        while waiting or running:
            for group in range(self.count):
                if group not in running and waiting:
                    number, training = waiting.pop()
                    running[group] = _Running(number, training, self._submit(group, training))
            asked = {ref: group for group, one in running.items() for ref in one.refs}
            ready, _ = ray.wait(list(asked), timeout=self.resources.no_progress_timeout_s)
            if not ready:
                self._require_progress(running)
                continue
            one = running[asked[ready[0]]]
            try:
                answer = ray.get(ready[0])
            except ray.exceptions.RayError as error:
                self._restart(asked[ready[0]], one, error)
                continue
            one.refs.remove(ready[0])
            found |= {one.number: answer} if answer is not None else {}
            if not one.refs:
                del running[asked[ready[0]]]
        return [found[number] for number in range(len(trainings))]

    def close(self) -> None:
        """End the actors, which frees their models and what their machines have fetched of the pool."""
        actors = [actor for group in self.groups for actor in group]
        rows = self.setup.rows
        if actors and isinstance(rows, TokenFiles) and not all(part.is_local for part in rows.parts):
            with contextlib.suppress(ray.exceptions.RayError):
                ray.wait([actor.forget.remote() for actor in actors], num_returns=len(actors), timeout=LAST_WORDS_S)
        for actor in actors:
            ray.kill(actor)
        remove_placement_group(self._room)
        self.groups = []

    def _reserve(self, episodes: int) -> PlacementGroup:
        """Room for all actors: Ray has it whole or not at all. If not for all that may join, for those that are there."""
        own, asked = self.resources, self.resources.asked.train.workers
        for room_for in dict.fromkeys((pool_size(own), present_workers(own))):
            self.ranks, self.count = divide(room_for, episodes, asked if own.gpus_per_worker else asked or 1)
            total = self.count * self.ranks
            # All must run at once: one for which no memory is left would never start.
            share = int(0.9 * ray.cluster_resources().get("memory", 0) / total)
            each = {"CPU": own.cpus, "GPU": own.gpus_per_worker or 0.0, "memory": min(own.memory or 0, share)}
            bundles = [{name: amount for name, amount in each.items() if amount}] * total
            room = placement_group(bundles, strategy="PACK" if self.ranks > 1 else "SPREAD")
            try:
                if room.wait(max(SETTLE_S, min(TELL_S, own.wait_s))):
                    return room
                log.warning(
                    "episodes: waiting for room, at most %s s (resources.wait_s): %s", own.wait_s, self._asked()
                )
                if room.wait(max(0.0, own.wait_s - TELL_S)):
                    return room
            except BaseException:  # an interrupt, too: nobody else would give the room back
                remove_placement_group(room)
                raise
            remove_placement_group(room)
        raise StageError(
            f"episodes: no room after {own.wait_s} s (resources.wait_s): {self._asked()}. Lower resources.train, "
            "resources.workers, resources.cpus_per_worker or resources.gpus_per_worker, or give the cluster more machines."
        )

    def _asked(self) -> str:
        own, there = self.resources, ray.cluster_resources()
        gpus = f" and {own.gpus_per_worker:g} GPUs" if own.gpus_per_worker else ""
        return (
            f"{self.count} trainings at a time of {self.ranks} processes ask for {own.cpus:g} CPUs{gpus} each, the cluster "
            f"has {there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs, and others may hold some"
        )

    def _start(self, group: int) -> None:
        """Start the processes of a group, in place of those that it has."""
        for actor in self.groups[group]:
            ray.kill(actor)
        limit = self.resources.no_progress_timeout_s
        self.groups[group] = [
            ray.remote(RankProcess)
            .options(
                num_cpus=self.resources.cpus,
                num_gpus=self.resources.gpus_per_worker or None,
                memory=self._room.bundle_specs[0].get("memory"),
                max_concurrency=2,  # a training, and questions about it
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    self._room, placement_group_bundle_index=group * self.ranks + rank
                ),
            )
            .remote(self._shared, rank, self.ranks, self.counts, limit, self._peaks)
            for rank in range(self.ranks)
        ]
        try:
            addresses = ray.get([actor.address.remote() for actor in self.groups[group]], timeout=limit)
        except ray.exceptions.GetTimeoutError:
            raise StageError(
                f"episodes: a training's processes did not start within {limit} s (resources.no_progress_timeout_s): "
                f"{self._asked()}. Start the run again once the cluster has room."
            ) from None
        self._addresses[group] = addresses[0]

    def _submit(self, group: int, training: KeptTraining) -> list[Any]:
        shared = ray.put(training)
        return [actor.run.remote(shared, self._addresses[group]) for actor in self.groups[group]]

    def _restart(self, group: int, one: _Running, error: BaseException) -> None:
        """Start a group again of which a process was lost, and repeat its training; raise if that would not help."""
        ended = ray.wait(one.refs, num_returns=len(one.refs), timeout=LAST_WORDS_S)[0] if one.refs else []
        errors = [error, *(found for ref in ended if (found := _error_of(ref)) is not None)]
        if cause := next((found for found in map(find_cause, errors) if found), None):
            raise cause from None
        killed = next((found for found in errors if killed_for_memory(found)), None)
        kept = one.training.steps_kept()
        announced = any(getattr(found, "preempted", False) for found in errors)
        one.restarts = (0 if kept > one.kept else one.restarts) + (not announced)
        one.kept = kept
        limit = self.resources.restarts
        if killed or one.restarts > limit or not any(map(_is_loss, errors)):
            last = str(killed or error).strip().splitlines()[-1]
            raise StageError(
                f"episodes: a training ended before its time, the last of {one.restarts} times in a row (resources.restarts allows "
                f"{limit}): {last} Start the run again."
            ) from (killed or error)
        one.refs = []
        try:
            self._start(group)
        except ray.exceptions.RayActorError as again:
            self._restart(group, one, again)
        else:
            one.refs = self._submit(group, one.training)

    def _require_progress(self, running: dict[int, _Running]) -> None:
        """Raise if no training has made a step since this was asked last."""
        moved = False
        for group, one in running.items():
            with contextlib.suppress(ray.exceptions.RayError):  # a lost actor shows in the wait
                steps = ray.get(self.groups[group][0].steps.remote(), timeout=ASK_S)
                moved |= steps != one.steps
                one.steps = steps
        if not moved:
            raise StageError(
                f"episodes: {len(running)} trainings made no step in {self.resources.no_progress_timeout_s} s "
                "(resources.no_progress_timeout_s). Raise it if a step or the loading of the model takes so long; else look at "
                "the machines, and start the run again."
            )


@dataclass
class _Running:
    """A training in work: its number in the round, and what its group still owes."""

    number: int
    training: KeptTraining
    refs: list[Any]
    restarts: int = 0
    kept: int = 0
    """Steps in the last saved state, when the group was started last."""
    steps: int = -1


def divide(workers: int, episodes: int, processes: int | None) -> tuple[int, int]:
    """Processes of each training, and trainings at a time, of which more than `episodes` would find nothing to do.

    If `processes` is None, the split that ends a round soonest; of equally quick ones that with more trainings at a time.
    """
    if processes is not None:
        ranks = most_processes(processes)
        return ranks, max(1, min(episodes, workers // ranks))

    def seconds(at_a_time: int) -> float:
        return -(-episodes // at_a_time) / most_processes(workers // at_a_time)

    best = min(range(max(1, min(episodes, workers)), 0, -1), key=seconds)
    return most_processes(workers // best), best


def most_processes_of(config: CommonConfig, episodes: int) -> int:
    """Processes that so many trainings at a time can use."""
    usual = LANES if on_gpu(config, config.model, LEARN) else 1
    return episodes * most_processes(config.resources.asked.train.workers or usual)


def _error_of(ref: Any) -> BaseException | None:
    try:
        ray.get(ref)
    except ray.exceptions.RayError as error:
        found: BaseException = error
        return found
    return None


def _is_loss(error: BaseException) -> bool:
    """Whether a process, its machine or its device was lost, so that a new one may do better."""
    return isinstance(error, ray.exceptions.ActorDiedError | ray.exceptions.ActorUnavailableError) or any(
        words in str(error) for words in LOST
    )


@contextlib.contextmanager
def ray_fleet(
    setup: EpisodeSetup, resources: Resources, episodes: int, counts: str | None = None
) -> Iterator[RayFleet]:
    """A fleet whose actors end with the block."""
    fleet = RayFleet(setup, resources, episodes, counts)
    try:
        yield fleet
    finally:
        fleet.close()

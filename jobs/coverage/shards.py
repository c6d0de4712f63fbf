"""The shards of a k-center on Ray: actors that hold rows and their distances, one exchange with all of them per pass.

An actor that dies is replaced: its state depends only on its files and the centres so far, so the new one reads the files,
gets all centres, and answers as the lost one would have. Past `resources.restarts` the run ends with the reason. Without
Ray, one shard in this process gives the same answers.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from raysift.actors.language_model import pick_device
from raysift.errors import StageError, find_cause
from raysift.ids import is_among
from raysift.kcenter.forecast import Speed, measure_speed
from raysift.kcenter.picking import Picked, rows_to_ask
from raysift.kcenter.shard import Candidates, NewCenters, Shard
from raysift.scoring.embeddings import EmbeddingTable, Keep, RowGroup, deal, read_embeddings
from raysift.settings.resources import Resources
from raysift.topk import Ids

log = logging.getLogger(__name__)

SHARD_BYTES = 128 * 2**20  # a smaller shard is not worth a process
LOCAL_BYTES = 256 * 2**20  # a smaller table is covered in this process, unless a number of workers is set


@dataclass(frozen=True)
class Load:
    """The files that one shard reads, and how it computes."""

    pieces: tuple[RowGroup, ...]
    dimension: int
    metric: str
    device: str
    threads: int | None

    def options(self) -> dict[str, Any]:
        """Keywords of Shard."""
        return {"metric": self.metric, "device": granted(self.device), "threads": self.threads}


def granted(device: str) -> str:
    """The device for this process: the CPU in tasks and drivers that Ray granted no GPU, though they may see some."""
    ray: Any = sys.modules.get("ray")
    without = ray is not None and ray.is_initialized() and not ray.get_gpu_ids()
    return "cpu" if without else pick_device(device)


def only(among: Ids | None) -> Keep | None:
    """A filter for the ids that occur in `among`, which is sorted; None keeps all ids."""
    return None if among is None else lambda ids: is_among(ids, among)


class ShardWorker:
    """A shard that loads itself; Ray makes an actor of it. The constructor does nothing, so errors come from calls."""

    def __init__(self, load: Load, peaks: str | None = None) -> None:
        self.load_plan, self.peaks = load, peaks
        self.shard: Shard | None = None

    def load(self, among: Ids | None) -> int:
        """Read the rows; returns their number."""
        plan = self.load_plan
        ids, vectors = read_embeddings(plan.pieces, plan.dimension, only(among))
        self.shard = Shard(ids, vectors, owned=True, **plan.options())
        self.tell()
        return len(ids)

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a method of the shard."""
        try:
            return getattr(self.shard, name)(*arguments)
        finally:
            self.tell()

    def tell(self) -> None:
        """Tell this process's peak memory, if it is an actor's."""
        if self.peaks:
            from raysift.jobs.on_ray.peaks import tell

            tell(self.peaks)

    def measure_speed(self) -> Speed:
        """Speed of this process and its device."""
        plan = self.load_plan
        return measure_speed(plan.dimension, granted(plan.device), plan.threads)


class LocalShards:
    """One shard in this process."""

    restarts = 0

    def __init__(self, load: Load, among: Ids | None) -> None:
        self._worker = ShardWorker(load)
        self.rows = self._worker.load(among)
        self.count = 1

    def ask(self, name: str, *arguments: Any) -> list[Any]:
        """The answer of each shard to a method of Shard."""
        return [self._worker.call(name, *arguments)]

    def exchange(self, batch: NewCenters, wanted: int) -> list[Candidates]:
        """Send new centres, get the farthest rows."""
        return self.ask("step", batch, wanted)

    def measure_speed(self) -> Speed:
        return self._worker.measure_speed()

    def close(self) -> None:
        self.ask("close")


class RayShards:
    """One Ray actor per shard; `picked` lists the centres that a replacement has to get."""

    def __init__(self, loads: Sequence[Load], among: Ids | None, picked: Picked, resources: Resources) -> None:
        import ray

        from raysift.jobs.on_ray.peaks import peaks_name

        self._peaks = peaks_name()
        self._ray, self._loads, self._picked, self._resources = ray, list(loads), picked, resources
        self._among = None if among is None else ray.put(among)
        self._kind = ray.remote(ShardWorker).options(
            num_cpus=resources.cpus, num_gpus=resources.gpus_per_worker or None, max_restarts=0
        )
        self.count, self.restarts = len(loads), 0
        self._told = 0  # centres that all shards know
        self.actors = [self._kind.remote(load, self._peaks) for load in loads]
        self.rows = sum(self._gather(lambda actor: actor.load.remote(self._among), lambda shard: None))

    def ask(self, name: str, *arguments: Any) -> list[Any]:
        """The answer of each shard to a method of Shard."""
        shared = [self._ray.put(argument) for argument in arguments]
        return self._gather(lambda actor: _call(actor, name, shared), self._catch_up)

    def exchange(self, batch: NewCenters, wanted: int) -> list[Candidates]:
        """Send new centres, get the farthest rows of each shard."""
        answers = self.ask("step", batch, rows_to_ask(wanted, self.count))
        self._told = batch.start + len(batch.ids)
        return answers

    def measure_speed(self) -> Speed:
        """Speed of one actor; all are assumed to be alike."""
        speed: Speed = self._gather(lambda actor: actor.measure_speed.remote(), self._catch_up, [0])[0]
        return speed

    def close(self) -> None:
        for actor in self.actors:
            self._ray.kill(actor)

    def _gather(
        self, ask: Callable[[Any], Any], catch_up: Callable[[int], None], shards: Sequence[int] | None = None
    ) -> list[Any]:
        """Ask the shards side by side; those that die are replaced, brought up to date, and asked again."""
        numbers = list(range(self.count)) if shards is None else list(shards)
        asked = {number: ask(self.actors[number]) for number in numbers}
        answers = {}
        while asked:
            number, answer = next(iter(asked.items()))
            try:
                answers[number] = self._wait(answer)
                del asked[number]
            except self._ray.exceptions.RayTaskError as error:
                raise find_cause(error) or error from None
            except self._ray.exceptions.RayError as error:
                self._replace(number, error, catch_up)
                asked[number] = ask(self.actors[number])
        return [answers[number] for number in numbers]

    def _wait(self, answer: Any) -> Any:
        limit = self._resources.no_progress_timeout_s
        ready, _ = self._ray.wait([answer], timeout=limit)
        if not ready:
            raise StageError(
                f"coverage: no answer from a shard for {limit} s; {self.count} shards ask for {self._resources.cpus:g} CPUs and "
                f"{self._resources.gpus_per_worker or 0:g} GPUs each. Is there room for all of them? Set resources.embed.workers "
                "lower, or resources.no_progress_timeout_s higher."
            )
        return self._ray.get(answer)

    def _replace(self, number: int, error: Exception, catch_up: Callable[[int], None]) -> None:
        """Put a new actor in the place of a lost one; it too may be lost while catching up."""
        while True:
            cause = str(error).strip().splitlines()[-1]
            if self.restarts >= self._resources.restarts:
                raise StageError(
                    f"coverage: shards were lost {self.restarts + 1} times, the last ({number} of {self.count}) with '{cause}'. "
                    "Mend the cause (often memory: more workers, or resources with more of it) and start again, it will continue."
                ) from error
            self.restarts += 1
            log.warning("coverage: shard %d of %d was lost (%s); building it again", number, self.count, cause)
            self.actors[number] = self._kind.remote(self._loads[number], self._peaks)
            try:
                self._wait(self.actors[number].load.remote(self._among))
                catch_up(number)
                return
            except self._ray.exceptions.RayTaskError as raised:
                raise find_cause(raised) or raised from None
            except self._ray.exceptions.RayError as raised:
                error = raised

    def _catch_up(self, number: int) -> None:
        """Send a new shard all centres that the others know."""
        if self._told:
            self._wait(self.actors[number].call.remote("add", self._picked.between(0, self._told)))


def _call(actor: Any, name: str, arguments: Sequence[Any]) -> Any:
    return actor.call.remote(name, *arguments)


def make_shards(
    table: EmbeddingTable, among: Ids | None, metric: str, picked: Picked, resources: Resources
) -> LocalShards | RayShards:
    """Actors if Ray runs and the table is large or `resources.workers` is set; else one shard in this process."""

    def load(pieces: Sequence[RowGroup]) -> Load:
        return Load(tuple(pieces), table.dimension, metric, resources.placed_on, resources.threads)

    if not _wants_ray(table, resources):
        return LocalShards(load(table.pieces), among)
    loads = [load(pieces) for pieces in deal(table.pieces, count_shards(table, resources)) if pieces]
    return RayShards(loads, among, picked, resources)


def count_shards(table: EmbeddingTable, resources: Resources) -> int:
    """As many shards as `resources.workers` asks for and the cluster can hold; if unset, none smaller than SHARD_BYTES."""
    from raysift.jobs.cluster.machines import pool_size

    room = pool_size(resources)
    return room if resources.workers else min(room, -(-table.bytes // SHARD_BYTES))


def _wants_ray(table: EmbeddingTable, resources: Resources) -> bool:
    import ray

    large = table.bytes > LOCAL_BYTES or bool(resources.gpus_per_worker)
    return bool(ray.is_initialized()) and (large or resources.workers is not None)

"""Processes of actors that end: what one leaves to the next, which row is at fault, and what the driver is told.

Ray starts an actor that died again, under the same id, and gives it the same block. A process leaves a note in Ray's
key-value store: its node, and from the second life on the batch in work. If it dies again, the next one tries that batch piece
by piece (`suspects`), and a row that ends its process each time gets an answer that says so. The same notes count the
ends that no row explains; past `resources.restarts` the actor refuses its work with the cause. Nodes that were lost do not count.

A broken device ends its process at once, so that Ray can start another one on another GPU; nothing that this process answered
for its block stays. Kills for memory are left to the stage, which has smaller passes, until these are the smallest.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from raysift.actors.contract import RowActor
from raysift.errors import DeviceError, RaysiftError, StageError
from raysift.faults import device_fault
from raysift.jobs.on_ray.counts import Count
from raysift.jobs.on_ray.peaks import own_peak, peaks_name, tell
from raysift.jobs.on_ray.suspects import Suspects
from raysift.records import ERROR, ID
from raysift.settings.memory import FEWEST_TOKENS
from raysift.settings.resources import Resources
from raysift.storage import Location

log = logging.getLogger(__name__)

SET_ASIDE = "set_aside.json"
MOST_SET_ASIDE = 20  # rows of a stage; more of them are no accident
MEMORY_KILLS = 2  # of one actor, before the stage tries smaller passes
TELL_EVERY_S = 5.0
FATE_S = 3.0  # until Ray has written down how a process ended
WHY = "the process that worked on this row ended each time, also with this row alone; it was set aside"

LOADING, WORKING, TRYING = "loading", "working", "trying"


@dataclass(frozen=True)
class Watch:
    """What the processes of one stage share."""

    name: str
    """Prefix of their notes in Ray's key-value store."""
    counts: str | None = None
    """Name under which answers are counted, if anybody sees the count."""
    restarts: int = 10
    has_smaller: bool = True
    """Whether the stage can try smaller passes or fewer workers after a kill for memory."""
    set_aside: Mapping[int, str] = field(default_factory=dict)
    """Rows found before, with their messages."""


@contextlib.contextmanager
def watching(out: Location, resources: Resources, tell: Callable[[str], None]) -> Iterator[Watch]:
    """Tells what workers note, once each, and keeps the rows that they set aside for attempts to come."""
    place = out / SET_ASIDE
    known = json.loads(place.read_text()) if place.exists() else {}
    watch = Watch(
        f"raysift-lives-{uuid.uuid4().hex}",
        restarts=resources.restarts,
        has_smaller=resources.workers != 1 or resources.tokens > FEWEST_TOKENS,
        set_aside={int(row): why for row, why in known.items()},
    )
    over, told = threading.Event(), set[str]()

    def say() -> None:
        for text in _read_all(f"{watch.name}/note/"):
            if text not in told:
                told.add(text)
                tell(text)

    def keep_saying() -> None:
        while not over.wait(TELL_EVERY_S):
            with contextlib.suppress(Exception):
                say()

    speaker = threading.Thread(target=keep_saying, name="raysift-lives", daemon=True)
    speaker.start()
    try:
        yield watch
    finally:
        over.set()
        speaker.join()
        with contextlib.suppress(Exception):  # Ray itself may be gone
            say()
            found = dict(json.loads(row) for row in _read_all(f"{watch.name}/row/"))
            if found.keys() - known.keys():
                place.write(json.dumps(known | found) + "\n")
            _kv()._internal_kv_del(watch.name.encode(), del_by_prefix=True)


def watched(actor: type[RowActor], watch: Watch) -> type[RowActor]:
    """Subclass the actor for Ray: it notes what it works on, tells its peak memory, and survives rows that end their process.

    A raysift error of its constructor is raised by the first batch instead: Ray prints an error in a constructor with three
    tracebacks, also on standard output, and keeps only its text. Other errors are still raised by the constructor. Inside a stage
    it tells its peak memory and the tokens it read.
    """

    peaks = peaks_name()

    class _Watched(actor):  # type: ignore[misc, valid-type]
        def __init__(self, *given: Any, **named: Any) -> None:
            own_peak(peaks)
            self._refused: RaysiftError | None = None
            self._counted = Count(watch.counts) if watch.counts else None
            self._life = Life(watch, actor.__name__)
            own_peak(peaks)
            try:
                self._life.begin()
                super().__init__(*given, **named)
            except Exception as error:
                if fault := device_fault(error):
                    self._life.end(fault)
                if not isinstance(error, RaysiftError):
                    raise
                self._refused = error
            tell(peaks)

        def tell(self, text: str) -> None:
            self._life.note(f"{actor.__name__}: {text}", "memory")

        def __call__(self, batch: pa.Table) -> pa.Table:
            if self._refused is not None:
                raise self._refused
            self._life.try_suspects(self._answer_table)
            why = self._life.set_aside
            guilty = pa.array([row in why for row in batch[ID].to_pylist()], pa.bool_()) if why else None
            sound = batch if guilty is None else batch.filter(pc.invert(guilty))
            self._life.works_on(sound)
            before = self.tokens_read
            answers = self._answer_table(sound)
            tell(peaks, self.tokens_read - before)
            if len(sound) < len(batch):
                lost = [{ID: row, ERROR: why[row]} for row in batch[ID].to_pylist() if row in why]
                answers = pa.concat_tables([answers, pa.Table.from_pylist(lost, schema=answers.schema)])
            if self._counted is not None:
                self._counted.add(len(answers))
            return answers

        def _answer_table(self, batch: pa.Table) -> pa.Table:
            try:
                return super().__call__(batch)
            except DeviceError as error:
                self._life.end(device_fault(error) or str(error))

    _Watched.__name__ = actor.__name__
    return _Watched


class Life:
    """One process of an actor."""

    def __init__(self, watch: Watch, name: str) -> None:
        import ray

        context = ray.get_runtime_context()
        self.watch, self.name = watch, name
        self.actor = context.get_actor_id() or uuid.uuid4().hex
        self.key = f"{watch.name}/actor/{self.actor}"
        self.here = {"node": context.get_node_id(), "worker": context.get_worker_id()}
        self.set_aside = dict(watch.set_aside)
        self.is_first = True
        self.suspects: Suspects | None = None
        self.rows: pa.Table | None = None
        self.ends = self.memory_kills = 0
        self.phase, self.cause = LOADING, ""

    def begin(self) -> None:
        """Take over from the process before, if there was one; raises if too many have ended."""
        before = _get(self.key)
        if before is not None:
            self._succeed(json.loads(before))
        self._write(LOADING)
        if self.ends > self.watch.restarts:
            raise StageError(self._too_many(f"{self.ends} processes ended, and no row explains it"))

    def _succeed(self, note: dict[str, Any]) -> None:
        self.is_first = False
        self.ends, self.memory_kills = note["ends"], note["memory_kills"]
        self.set_aside |= {int(row): why for row, why in note["set_aside"].items()}
        self.suspects = Suspects.from_dict(note["suspects"]) if note["suspects"] else None
        batch = _get(f"{self.key}/rows", text=False) if note["phase"] == WORKING or self.suspects else None
        self.rows = pa.ipc.open_stream(batch).read_all() if batch else None
        if not _is_alive(note["node"]):
            self.cause = note["cause"]
            return  # whatever it worked on, the machine went
        end = note["end"] or _how_it_ended(note["worker"])
        self.cause = end or note["cause"]
        if "OUT_OF_MEMORY" in end:
            self.memory_kills += 1
            if self.watch.has_smaller:
                self.suspects = None
                if self.memory_kills >= MEMORY_KILLS:
                    raise StageError(self._too_many(f"killed {self.memory_kills} times for its memory"))
                return
        if self.suspects and note["phase"] == TRYING:
            self.suspects.died()
            return
        self.ends += 1
        if note["phase"] == WORKING and self.rows is not None:
            self.suspects = Suspects.of(len(self.rows), self.watch.restarts)

    def try_suspects(self, answer: Callable[[pa.Table], pa.Table]) -> None:
        """Find out which rows of the batch before end their process, if any; each that does ends this one, too."""
        while self.suspects and self.rows is not None and (piece := self.suspects.next):
            self._write(TRYING)
            answer(self.rows.slice(piece[0], piece[1] - piece[0]))
            self.suspects.passed()
        if self.suspects and self.rows is not None:
            if self.suspects.is_not_of_rows:
                ends = self.ends + self.suspects.ends
                raise StageError(self._too_many(f"{ends} processes ended, whichever rows they worked on"))
            self._name([self.rows[ID][place].as_py() for place in self.suspects.guilty])
        self.suspects = self.rows = None

    def works_on(self, batch: pa.Table) -> None:
        """Note the batch for a next life. In a first life nothing is suspected, and nothing noted."""
        if self.is_first or not len(batch):
            return
        stream = pa.BufferOutputStream()
        with pa.ipc.new_stream(stream, batch.schema) as writer:
            writer.write_table(batch)
        _put(f"{self.key}/rows", stream.getvalue().to_pybytes())
        self._write(WORKING)

    def note(self, text: str, about: str) -> None:
        """Leave a note that the driver says; a later one of this actor about the same replaces it."""
        log.warning("%s", text)
        _put(f"{self.watch.name}/note/{self.actor}/{about}", text)

    def end(self, fault: str) -> NoReturn:
        """End this process because of its device."""
        import ray

        gpus = ", ".join(map(str, ray.get_gpu_ids()))
        self.cause = f"{fault} (node {ray.util.get_node_ip_address()}{f', GPU {gpus}' if gpus else ''})"
        self.note(f"{self.name}: {self.cause}; the process was ended, and its block is done again", self.here["worker"])
        self._write(self.phase, self.cause)
        logging.shutdown()
        os._exit(1)

    def _name(self, guilty: list[int]) -> None:
        for row in guilty:
            self.set_aside[row] = WHY
            _put(f"{self.watch.name}/row/{row}", json.dumps([str(row), WHY]))
            last = f" (last: {self.cause})" if self.cause else ""
            self.note(f"{self.name}: row {row} has no answer: {WHY}{last}", f"row {row}")
        if guilty:
            self.ends = 0
            if len(_keys(f"{self.watch.name}/row/")) > MOST_SET_ASIDE:
                raise StageError(self._too_many(f"more than {MOST_SET_ASIDE} rows ended their processes"))

    def _write(self, phase: str, end: str = "") -> None:
        self.phase = phase
        note = self.here | {
            "phase": phase,
            "ends": self.ends,
            "memory_kills": self.memory_kills,
            "end": end,
            "cause": self.cause,
            "set_aside": self.set_aside,
            "suspects": self.suspects.as_dict() if self.suspects else None,
        }
        _put(self.key, json.dumps(note))

    def _too_many(self, found: str) -> str:
        import ray

        last = f", the last with '{self.cause}'" if self.cause else ""
        advice = (
            "Take that GPU's machine out, or look at it there (nvidia-smi -q, dmesg)"
            if device_fault(RuntimeError(self.cause))
            else "Their last words are in Ray's session folder (logs/worker-*.err) there; mend the cause"
        )
        return (
            f"{self.name}: {found}{last}, on node {ray.util.get_node_ip_address()} (resources.restarts="
            f"{self.watch.restarts}). {advice}, and start the run again, it will continue."
        )


def _is_alive(node: str) -> bool:
    import ray

    with contextlib.suppress(Exception):
        return any(known["NodeID"] == node and known["Alive"] for known in ray.nodes())
    return True


def _how_it_ended(worker: str) -> str:
    """What Ray knows of a kill for memory; nothing of other ends, whose cause Ray cannot see."""
    with contextlib.suppress(Exception):  # the tables of Ray are no public interface
        import ray
        from ray._private.state import state
        from ray.core.generated import common_pb2, gcs_pb2

        accessor, give_up = state._connect_and_get_accessor(), time.monotonic() + FATE_S
        while time.monotonic() < give_up:
            found = accessor.get_worker_info(ray.WorkerID(bytes.fromhex(worker)))
            told = gcs_pb2.WorkerTableData.FromString(found) if found else None
            if told is not None and not told.is_alive:
                kind = common_pb2.WorkerExitType.Name(told.exit_type)
                first = next(iter(told.exit_detail.splitlines()), "")  # it goes on with a table of processes
                return f"{kind}: {first}" if "OUT_OF_MEMORY" in kind else ""
            time.sleep(0.1)
    return ""


# --- Ray's key-value store ---------------------------------------------------------------------------------------------


def _kv() -> Any:
    from ray.experimental import internal_kv

    return internal_kv


def _put(key: str, value: str | bytes) -> None:
    with contextlib.suppress(Exception):  # without a note a death is not explained, but no work ends for one
        _kv()._internal_kv_put(key.encode(), value.encode() if isinstance(value, str) else value)


def _get(key: str, text: bool = True) -> Any:
    found = _kv()._internal_kv_get(key.encode())
    return found.decode() if found is not None and text else found


def _keys(prefix: str) -> list[bytes]:
    return sorted(_kv()._internal_kv_list(prefix.encode()))


def _read_all(prefix: str) -> list[str]:
    return [value.decode() for key in _keys(prefix) if (value := _kv()._internal_kv_get(key))]

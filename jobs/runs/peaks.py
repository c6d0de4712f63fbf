"""Peak memory of the processes that do a stage's work, for its manifest: shown, compared with a plan, deciding nothing.

    host     resident bytes of the largest worker at its highest (`VmHWM`, else `ru_maxrss`), with shared pages and libraries
    gpu      bytes that torch had allocated on the fullest GPU of a worker (`torch.cuda.max_memory_allocated`)
    workers  processes that told anything
    tokens   tokens that they read, each pass over a row counted, where their actors count them
    driver   the same as `host` of this process, over its whole life: stages may run in it

How workers tell is the business of `jobs/on_ray`, which registers a reader here. An error while reading ends no stage.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar

Told = Mapping[str, int]
Reader = Callable[[str], Iterable[Told]]
SHOWN = ("host", "gpu")


class StagePeaks:
    """The peaks of one stage; workers tell theirs under its name."""

    def __init__(self) -> None:
        self.name = f"raysift-peaks-{uuid.uuid4().hex}"
        self._readers: dict[Reader, None] = {}
        self._account: dict[str, int] | None = None

    def read_by(self, reader: Reader) -> str:
        """Register who reads what workers tell; returns the name under which they do."""
        self._readers[reader] = None
        return self.name

    def read(self) -> dict[str, int]:
        """The account for the manifest; what workers told is forgotten when it is first read."""
        if self._account is None:
            self._account = {}
            with contextlib.suppress(Exception):
                told = [one for reader in self._readers for one in reader(self.name)]
                self._account = gather(told, peak_memory()["host"])
        return self._account


_stage: ContextVar[StagePeaks | None] = ContextVar("raysift-stage-peaks", default=None)


@contextlib.contextmanager
def stage_peaks() -> Iterator[StagePeaks]:
    """Inside the block, workers that are started tell their peaks."""
    found = StagePeaks()
    before = _stage.set(found)
    try:
        yield found
    finally:
        _stage.reset(before)
        found.read()  # a stage that failed leaves nothing behind either


def name_for_workers(reader: Reader) -> str | None:
    """The name under which workers of the stage that runs now tell their peaks; None outside stages."""
    stage = _stage.get()
    return stage.read_by(reader) if stage else None


def gather(told: Sequence[Told], driver: int) -> dict[str, int]:
    """One account of what each worker told: the largest memory, the sum of the tokens."""
    found = {kind: max((one.get(kind, 0) for one in told), default=0) for kind in SHOWN}
    found |= {"tokens": sum(one.get("tokens", 0) for one in told), "workers": len(told), "driver": driver}
    return {kind: value for kind, value in found.items() if value}


def peak_memory() -> dict[str, int]:
    """The peaks of this process since `forget_peak`, or since it began."""
    found = {"host": _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        devices = range(torch.cuda.device_count())
        found["gpu"] = max((torch.cuda.max_memory_allocated(device) for device in devices), default=0)
    return found


def forget_peak() -> None:
    """Start anew: Ray gives a process to one task after the other, and an earlier one may have taken more."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")  # sets VmHWM to what is resident now
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        for device in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(device)


def this_process() -> str:
    """What tells this process apart from others of the cluster."""
    return f"{os.uname().nodename}-{os.getpid()}"


def _status(name: str) -> int:
    """Bytes of a line in `/proc/self/status`; 0 where there is none."""
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii", errors="replace") as file:
        line = next((line for line in file if line.startswith(f"{name}:")), "")
        return int(line.split()[1]) * 1024 if line else 0
    return 0

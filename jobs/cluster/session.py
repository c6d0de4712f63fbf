"""Starts a Ray session of our own without its noise, or joins the one that runs. Loads Ray only when a session is asked for."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

CORE_LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"


class Speaker(Protocol):
    """Says that a session is starting; a Console, for example."""

    @property
    def voice(self) -> str: ...

    def line(self, head: str, text: str) -> None: ...


def start_session(console: Speaker | None = None) -> bool:
    """Join the running Ray, or start one; True if this call started it. A host's session is left exactly as it is.

    A session that we start hides what Ray's core prints into the middle of our lines, and leaves the process its own
    handler of SIGTERM, since Ray's ends the process with a printed stack.
    """
    import ray

    if ray.is_initialized():
        return False
    if console and console.voice in ("rich", "plain"):
        console.line("", "starting Ray ...")
    from raysift.jobs.cluster.starting import start_ray

    terminated, level = signal.getsignal(signal.SIGTERM), os.environ.get(CORE_LOG_LEVEL)
    os.environ.setdefault(CORE_LOG_LEVEL, "fatal")  # read by the core as it starts, and handed on to its workers
    try:
        with _silent_stderr():  # the core also warns about being silenced
            return start_ray()
    finally:
        if level is None:
            del os.environ[CORE_LOG_LEVEL]
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminated)


@contextlib.contextmanager
def own_session(console: Speaker | None = None) -> Iterator[Callable[[], None]]:
    """Yield a function that starts Ray on its first call. The session ends with the block, unless it belongs to the host."""
    started: list[bool] = []

    def start() -> None:
        if not started:
            started.append(start_session(console))

    try:
        yield start
    finally:
        if any(started):
            import ray

            ray.shutdown()


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drop everything written to standard error inside the block, also by C++ code; exceptions pass through."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)

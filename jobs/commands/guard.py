"""Turns the end of a command into a message and an exit code: errors, Ctrl-C, and termination by the system."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

from raysift.errors import RaysiftError, find_cause

INTERRUPTED, TERMINATED = 130, 143
CONTINUES = "the same command continues the run."


def run_guarded(body: Callable[[], None]) -> int:
    """Run a command and turn errors into a message and an exit code. RAYSIFT_DEBUG=1 shows the traceback."""
    terminated: list[int] = []

    def terminate(number: int, _: object) -> None:
        terminated.append(number)
        sys.exit(TERMINATED)

    # A library may turn the exit into an error of its own, or swallow it; the list still records it.
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        code = _run(body)
    finally:
        signal.signal(signal.SIGTERM, before)
    return _stopped(TERMINATED) if terminated else code


def _run(body: Callable[[], None]) -> int:
    try:
        body()
    except KeyboardInterrupt:
        return _stopped(INTERRUPTED)
    except SystemExit as stop:
        if _was_interrupted(stop):
            return _stopped(INTERRUPTED)
        return stop.code if isinstance(stop.code, int) else 1
    except Exception as error:
        cause = find_cause(error)  # our own errors too: raised inside a Ray task, their text is Ray's traceback
        if os.environ.get("RAYSIFT_DEBUG") and not isinstance(error, RaysiftError):
            raise
        _complain(str(cause or f"{type(error).__name__}: {error}\nSet RAYSIFT_DEBUG=1 for the traceback."))
        return cause.exit_code if cause else 1
    return 0


def _was_interrupted(stop: SystemExit) -> bool:
    """Whether Typer made this exit from Ctrl-C. A command that handles Ctrl-C itself, like `submit`, exits on its own."""
    error: BaseException | None = stop
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _stopped(code: int) -> int:
    _complain(f"{'terminated' if code == TERMINATED else 'interrupted'}; {CONTINUES}")
    return code


def _complain(text: str) -> None:
    log = next((b for a, b in zip(sys.argv, sys.argv[1:], strict=False) if a == "--log"), None)
    log = "json" if "--log=json" in sys.argv else log
    from raysift.jobs.commands.console import Console

    Console("json" if log == "json" else "plain").error(text)

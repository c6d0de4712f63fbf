"""A run that follows a plan: tells the drift and a new end time, and stops where it takes far more than planned."""

from __future__ import annotations

import _thread
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta

from raysift.errors import ConfigError, StageError
from raysift.jobs.runs.progress import Bar, clock_time
from raysift.planning.drift import Course
from raysift.planning.record import Plan

TELL_EVERY_S = 60.0
SURE_SHARE = 0.05
"""Of a stage's rows or steps; from here on its speed says what it will take. What passes before the first row is no part of
that speed."""


class Followed:
    """What `Run` calls: see `raysift.jobs.runs.following`."""

    def __init__(
        self,
        plan: Plan,
        stop_over: float | None,
        note: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        stop: Callable[[], None] = _thread.interrupt_main,
        keep: Callable[[], object] = lambda: None,
    ) -> None:
        self.course = Course({stage.stage: stage.seconds.likely for stage in plan.stages})
        self.stop_over, self._note, self._clock, self._stop = stop_over, note, clock, stop
        self._stage, self._began, self._told, self._keep = "", clock(), clock(), keep
        self._why: StageError | None = None
        self._order = [stage.stage for stage in plan.stages]

    def begin(self, stage: str) -> None:
        """A stage begins; those before it that were planned and not done were reused or skipped.

        Only now does the run keep its copy of the plan: a refused command leaves no trace.
        """
        self._keep()
        self._stage, self._began = stage, self._clock()
        if stage in self._order:
            before = self._order[: self._order.index(stage)]
            self.course.skipped |= {name for name in before if name not in self.course.spent}

    def look(self, bar: Bar) -> None:
        """Called at each report of progress, perhaps from another thread."""
        left = bar.figures().get("seconds_left")
        if self._why is not None or left is None or not bar.total or bar.done < SURE_SHARE * bar.total:
            return
        projected = self._clock() - self._began + left
        if self._clock() - self._told >= TELL_EVERY_S:
            self._told = self._clock()
            self._tell(left, projected)
        if self._is_over(projected) and threading.current_thread() is not threading.main_thread():
            self._why = self._error(projected)
            self._stop()

    def stopped(self) -> StageError | None:
        """Why this object interrupted the stage; None if it did not."""
        return self._why

    def end(self, stage: str, seconds: float) -> None:
        """A stage is done; raises if the run is far over its plan and something is left to do."""
        self.course.spent[stage] = seconds
        self._stage = ""
        if stage in self.course.planned and self.course.planned[stage] >= TELL_EVERY_S:
            self._tell()
        if self._is_over() and self.course.ahead() > 0:
            raise self._error()

    def _is_over(self, projected: float = 0.0) -> bool:
        if self.stop_over is None or self.course.drift(self._stage, projected) is None:
            return False
        return self.course.over(self._stage, projected) > self.stop_over

    def _tell(self, left: float = 0.0, projected: float = 0.0) -> None:
        drift = self.course.drift(self._stage, projected)
        if drift is None:
            return
        left += self.course.ahead(self._stage, projected)
        end = (datetime.now() + timedelta(seconds=left)).strftime("%Y-%m-%d %H:%M")
        self._note(f"plan: {drift:.2f} times the planned time so far; {clock_time(left)} left, ends about {end}")

    def _error(self, projected: float = 0.0) -> StageError:
        over = self.course.over(self._stage, projected)
        return StageError(
            f"{self._stage or 'run'}: the run will take {over:.2f} times what was planned, and --stop-over allows "
            f"{self.stop_over:g}. What is done is kept: the same command with a larger --stop-over, or without --plan, continues. "
            "`raysift plan` with cheaper settings says what they save."
        )


def read_factor(text: str | float | None) -> float | None:
    """`1.5x` or 1.5 as a number above 1."""
    if text is None:
        return None
    try:
        factor = float(str(text).strip().rstrip("xX"))
    except ValueError:
        factor = 0.0
    if not factor > 1:
        raise ConfigError(f"--stop-over: '{text}' is no factor above 1, such as 1.5x.")
    return factor

"""How far a piece of work is: done of total, speed and time left, drawn on a terminal or said once a minute in a log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Literal, Protocol

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

LOG_EVERY_S = 60.0
Place = Literal["terminal", "log", "nowhere"]


class Bar(AbstractContextManager["Bar"]):
    """The state of one piece of work. Callers report how much is done; when and how it is shown is decided here.

    The speed counts from the first report of finished work, so that loading a model does not slow down the forecast.
    """

    def __init__(
        self,
        place: Place,
        title: str,
        total: int | None,
        unit: str,
        log: Callable[[dict[str, Any], str], None],
        console: RichConsole | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.place, self.title, self.total, self.unit = place, title, total, unit
        self.done, self.words = 0, ""
        self.tokens = 0
        """Read so far, where workers tell; they are `tokens_each` for each of `done` where the caller knows that instead."""
        self.tokens_each: float | None = None
        self.watch: Callable[[Bar], None] | None = None
        """Sees every update, such as a run that follows a plan."""
        self._log, self._console, self._clock = log, console, clock
        self.note: Callable[[str], None] = logging.getLogger(__name__).warning
        """Says what the user should know of the work; a run's bars say it as the run's notes."""
        self._first: tuple[float, int, float] | None = None
        self._logged = clock()
        self._stack = ExitStack()
        self._drawn: Progress | None = None

    def __enter__(self) -> Bar:
        if self.place == "terminal":
            columns = (
                SpinnerColumn(),
                TextColumn("[bold]{task.description}[/]"),
                BarColumn(16),
                TextColumn("{task.fields[told]}"),
            )
            self._drawn = Progress(*columns, console=self._console, transient=True)
            self._stack.enter_context(self._drawn)
            self._drawn.add_task(self.title, total=self.total, told="")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def is_shown(self) -> bool:
        """Whether anyone sees it; work need not be counted otherwise."""
        return self.place != "nowhere" or self.watch is not None

    def advance(self, words: str = "") -> None:
        """One more is done."""
        self.update(self.done + 1, words=words)

    def update(self, done: int, total: int | None = None, words: str = "", tokens: int = 0) -> None:
        """So much is done by now, and so many tokens read; `words` are said beside it, such as the loss of a training."""
        self.total = self.total if total is None else total
        self.done = done if self.total is None else min(done, self.total)
        self.words, self.tokens = words or self.words, max(tokens, self.tokens)
        now = self._clock()
        if self._first is None and self.done:
            self._first = now, self.done, self._read()
        if self.watch is not None:
            self.watch(self)
        if self._drawn is not None:
            task = self._drawn.task_ids[0]
            self._drawn.update(task, completed=self.done, total=self.total, told=self.text())
        elif self.place == "log" and now - self._logged >= LOG_EVERY_S:
            self._logged = now
            self._log(self.figures(), self.text())

    def figures(self) -> dict[str, Any]:
        """Done, total, unit, units and tokens per second, and seconds left, as far as they are known."""
        first_time, first_done, first_read = self._first or (0.0, 0, 0.0)
        seconds, more = self._clock() - first_time, self.done - first_done
        speed = more / seconds if self._first and more > 0 and seconds > 0 else None
        left = (self.total - self.done) / speed if speed and self.total is not None else None
        read = (self._read() - first_read) / seconds if speed and self._read() > first_read else None
        found = {"done": self.done, "total": self.total, "unit": self.unit, "per_second": speed, "seconds_left": left}
        found |= {"tokens_per_second": read}
        return {k: v for k, v in found.items() if v is not None} | ({"words": self.words} if self.words else {})

    def _read(self) -> float:
        return self.tokens if self.tokens_each is None else self.done * self.tokens_each

    def text(self) -> str:
        """The figures for people: `1,920 of 3,860 rows, 310/s, 24,100 tokens/s, 0:06 left`."""
        known = self.figures()
        parts = [
            f"{self.done:,} of {self.total:,} {self.unit}" if self.total is not None else f"{self.done:,} {self.unit}"
        ]
        if speed := known.get("per_second"):
            parts.append(
                f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.2g}/s" if speed >= 0.1 else f"{60 * speed:.2g}/min"
            )
        if read := known.get("tokens_per_second"):
            parts.append(f"{read:,.0f} tokens/s")
        if "seconds_left" in known:
            parts.append(f"{clock_time(known['seconds_left'])} left")
        return ", ".join([part.strip() for part in parts] + ([self.words] if self.words else []))


class Showing(Protocol):
    """Opens a bar for a piece of work of the current stage: how much there is of it, and in which unit."""

    def __call__(self, total: int | None, unit: str = "rows") -> AbstractContextManager[Bar]: ...


def silent(total: int | None, unit: str = "rows") -> AbstractContextManager[Bar]:
    """A bar that nobody sees."""
    return Bar("nowhere", "", total, unit, lambda told, words: None)


def clock_time(seconds: float) -> str:
    """Seconds as `0:06`, `12:40` or `3:05:00`."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"

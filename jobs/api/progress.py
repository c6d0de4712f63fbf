"""What a call of the Python API says while it works: one live line in a notebook, one line a stage in a script.

`log` chooses another voice, those of the command line: "rich", "plain", "quiet" or "json".
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any, get_args

from raysift.errors import ConfigError
from raysift.jobs.api.words import in_python
from raysift.jobs.runs.console import Console, Voice
from raysift.jobs.runs.progress import Bar

ENDS = ("finished", "skipped", "reused", "failed")
"""Events of a stage that are not worth a line of their own."""
DRAWN_EVERY_S = 0.2


def console_for(log: str | None) -> Console:
    """The console of a call: of the named voice, or that of a notebook or a script."""
    if log is None:
        return NotebookConsole() if in_notebook() else ScriptConsole()
    if log not in get_args(Voice):
        raise ConfigError(f"log: '{log}' is unknown. Allowed: {', '.join(get_args(Voice))}.")
    return Console(log)  # type: ignore[arg-type]


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel. Imports nothing."""
    shell = sys.modules.get("IPython")
    own = shell.get_ipython() if shell else None
    return getattr(own, "kernel", None) is not None


@contextlib.contextmanager
def no_widget_notices() -> Iterator[None]:
    """Without what Ray and tqdm say, in a notebook without ipywidgets, about bars that we do not draw."""
    if not in_notebook():
        yield
        return
    widgets = logging.getLogger("ray.widgets.util")
    level = widgets.level
    widgets.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "IProgress not found")
            yield
    finally:
        widgets.setLevel(level)


class ScriptConsole(Console):
    """A line on standard error when a stage begins and when all is done, and each note: no bars, no tables."""

    def __init__(self) -> None:
        super().__init__("plain")

    def event(self, event: str, stage: str = "", step: str = "", **fields: Any) -> None:
        if "fingerprint" in fields and event not in ENDS:  # rounds, deaths and the like have none
            self.line(stage, event, step)

    def note(self, text: str) -> None:
        super().note(in_python(text))

    def warn(self, text: str) -> None:
        super().warn(in_python(text))

    @contextlib.contextmanager
    def progress(self, title: str, total: int | None, unit: str = "", step: str = "") -> Iterator[Bar]:
        with Bar("nowhere", title, total, unit, lambda told, words: None) as bar:
            yield bar


class NotebookConsole(ScriptConsole):
    """One output of one cell: a line that is drawn again while work goes on, with the notes below it."""

    def __init__(self) -> None:
        super().__init__()
        self.shown = _Shown()
        self._handle: Any = None

    def line(self, head: str, text: str, step: str = "") -> None:
        self._draw(" ".join(part for part in (step, head, text) if part))

    def note(self, text: str) -> None:
        self.shown.notes.append(in_python(text))
        self._draw()

    def warn(self, text: str) -> None:
        self.note(f"WARNING: {text}")

    def error(self, text: str) -> None:
        self.note(f"error: {text}")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Left out: what a call returns shows itself."""

    @contextlib.contextmanager
    def progress(self, title: str, total: int | None, unit: str = "", step: str = "") -> Iterator[Bar]:
        with _DrawnBar(self, f"{step} {title}".strip(), total, unit) as bar:
            yield bar

    def draw_bar(self, bar: Bar) -> None:
        """Show how far a piece of work is."""
        share = bar.done / bar.total if bar.total else None
        self._draw(f"{bar.title}: {bar.text()}", share)

    def _draw(self, now: str | None = None, share: float | None = None) -> None:
        if now is not None:
            self.shown.now, self.shown.share = now, share
        if self._handle is None:
            from IPython.display import display

            self._handle = display(self.shown, display_id=True)  # type: ignore[no-untyped-call, unused-ignore]
        else:
            self._handle.update(self.shown)


class _Shown:
    """What the output shows: a line, perhaps a bar, and notes."""

    def __init__(self) -> None:
        self.now, self.share = "", None  # type: str, float | None
        self.notes: list[str] = []

    def __repr__(self) -> str:
        return "\n".join([self.now, *self.notes])

    def _repr_html_(self) -> str:
        bar = "" if self.share is None else f'<progress max="1" value="{self.share:.4f}"></progress> '
        notes = "".join(f"<div><small>{escape(note)}</small></div>" for note in self.notes)
        return f"<div>{bar}{escape(self.now)}</div>{notes}"


class _DrawnBar(Bar):
    """A bar whose every report is drawn, a few times a second at most."""

    def __init__(self, console: NotebookConsole, title: str, total: int | None, unit: str) -> None:
        super().__init__("log", title, total, unit, lambda told, words: None)
        self._drawn_at, self._own = 0.0, console

    def update(self, done: int, total: int | None = None, words: str = "", tokens: int = 0) -> None:
        super().update(done, total, words, tokens)
        now = time.monotonic()
        if now - self._drawn_at >= DRAWN_EVERY_S:
            self._drawn_at = now
            self._own.draw_bar(self)

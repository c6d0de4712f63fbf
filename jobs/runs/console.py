"""Output for people and cluster logs: progress, tables and messages, in one of four voices.

`rich` draws for a terminal, `plain` writes lines, `quiet` prints only errors and tables, `json` writes one JSON object per
line for log collectors. Text of rows is printed only by `show`, `explain` and a run's end, and always escaped.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from raysift.jobs.runs.progress import Bar, Place
from raysift.jobs.runs.table_layout import ABSENT, lay_out
from raysift.pool.id_text import exact

HEAD = 16  # columns of what a line is about
LINES = "\n"  # errors and cells may have several lines
# People need no hash on every line, and a failure's error is also raised, and printed once when the command ends.
FOR_MACHINES = ("fingerprint", "error")
Voice = Literal["rich", "plain", "quiet", "json"]


def printable(text: str, kept: str = "") -> str:
    """Escape characters that could move a terminal's cursor or change the text's direction, except those in `kept`."""
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in text)


def plain(text: str, kept: str = "") -> str:
    """Make text of any origin safe for rich: it prints literally, without escape sequences or markup.

    Names of sources, columns and files come from data; everything that `Console` prints passes here.
    """
    return escape(printable(text, kept))


class Console:
    """Prints events, notes, errors, tables and progress in one voice."""

    def __init__(self, voice: Voice = "plain") -> None:
        self.voice = voice
        self.out = RichConsole(stderr=False, highlight=False, soft_wrap=voice != "rich")
        self.err = RichConsole(stderr=True, highlight=False, soft_wrap=True)

    def event(self, event: str, stage: str = "", step: str = "", **fields: Any) -> None:
        """Report an event of the run: a JSON line for machines, a short sentence for people.

        `step` says where the stage stands in its run, such as `3/8`.
        """
        if self.voice == "json":
            where = {"step": step} if step else {}
            record = {"time": round(time.time(), 3), "event": event, "stage": stage, **where, **fields}
            print(json.dumps(exact(record), default=str), file=sys.stderr, flush=True)
        elif self.voice in ("rich", "plain"):
            told = {k: value for k, value in fields.items() if k not in FOR_MACHINES and value not in (None, {}, [])}
            words = ", ".join(f"{key.replace('_', ' ')} {_show(value)}" for key, value in told.items())
            self.line(stage, f"{event}{': ' + words if words else ''}", step)

    def line(self, head: str, text: str, step: str = "") -> None:
        """Print a line of a run for people."""
        head = f"{step} {head}" if step else head
        self.err.print(f"[bold]{plain(head):<{HEAD}}[/]{plain(text)}", soft_wrap=True)

    def note(self, text: str) -> None:
        """Print a remark that the user should read, such as a warning about the data."""
        if self.voice == "json":
            self.event("note", text=text)
        elif self.voice != "quiet":
            self.err.print(f"[yellow]{'note':<{HEAD}}[/]{plain(text)}", soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a warning that no one must miss: also in the voice `quiet`."""
        if self.voice == "json":
            self.event("warning", text=text)
        else:
            self.err.print(f"[bold yellow]{'WARNING':<{HEAD}}{plain(text)}[/]", soft_wrap=True)

    def error(self, text: str) -> None:
        if self.voice == "json":
            self.event("error", text=text)
        else:
            self.err.print(f"[bold red]{'error':<{HEAD}}[/]{plain(text, kept=LINES)}", soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Print a result to standard output; the voice `json` writes one object with the rows instead."""
        if self.voice == "json":
            self.event("table", title=title, columns=list(columns), rows=[list(row) for row in rows])
            return
        heads = [printable(column) for column in columns]
        cells = [[printable(_cell(value), kept=LINES) for value in row] for row in rows]
        for number, block in enumerate(lay_out(heads, cells, self.out.width)):
            table = Table(title=None if number else plain(title), title_justify="left", title_style="bold")
            for column in block:
                left = column.is_text or column.place == 0
                table.add_column(
                    escape(heads[column.place]),
                    justify="left" if left else "right",
                    overflow="fold",
                    width=column.width,
                )
            for row in cells:
                table.add_row(*(escape(row[column.place]) for column in block))
            self.out.print(table, soft_wrap=False)

    def prose(self, title: str, lines: Sequence[str], texts: Sequence[tuple[str, str]] = ()) -> None:
        """Print sentences to standard output below a title, then texts, each below a line of its own and indented."""
        if self.voice == "json":
            self.event("prose", title=title, lines=list(lines), texts=[list(text) for text in texts])
            return
        self.out.print(f"[bold]{plain(title)}[/]")
        for line in lines:
            self._indented(plain(line), 2)
        for head, text in texts:
            self._indented(f"[dim]{plain(head)}[/]", 2)
            self._indented(plain(text, kept=LINES), 4)

    def _indented(self, text: str, by: int) -> None:
        """Wrapped on a terminal, line by line elsewhere."""
        if self.voice == "rich":
            self.out.print(Padding(text, (0, 0, 0, by), expand=False))
        else:
            self.out.print("\n".join(" " * by + line for line in text.split("\n")))

    @contextlib.contextmanager
    def progress(self, title: str, total: int | None, unit: str = "", step: str = "") -> Iterator[Bar]:
        """Show how far a piece of work is: a bar on a terminal, a line a minute in a log, nothing in the voice `quiet`."""
        place: Place = {"rich": "terminal", "quiet": "nowhere"}.get(self.voice, "log")  # type: ignore[assignment]

        def log(told: dict[str, Any], words: str) -> None:
            if self.voice == "json":
                self.event("progress", title, step, **told)
            else:
                self.line(title, words, step)

        with Bar(place, f"{step} {title}".strip(), total, unit, log, self.err) as bar:
            yield bar


def set_up_logging(voice: Voice) -> None:
    """Set the levels of library loggers for this voice, and switch off the bars that libraries draw between our lines. Only
    entry points call this, before they import the libraries."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    level = {"rich": logging.WARNING, "plain": logging.WARNING, "quiet": logging.ERROR, "json": logging.INFO}[voice]
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
    for noisy in ("ray.data", "ray.train", "ray.tune", "transformers", "httpx", "filelock"):
        logging.getLogger(noisy).setLevel(max(level, logging.WARNING))


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if 1_000 <= abs(value) < 1e12 else f"{value:,.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {_show(item)}" for key, item in value.items()) + ")"
    return str(value)


def _cell(value: Any) -> str:
    return ABSENT if value is None else _show(value)

"""Records as HTML for notebooks: every text escaped and short."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from raysift.records import ChatMessage

CHARACTERS, ROWS_SHOWN = 160, 5


def as_html(title: str, facts: Mapping[str, Any], heads: Sequence[str] = (), rows: Sequence[Sequence[Any]] = ()) -> str:
    """A title, facts about it, and a table."""
    told = " · ".join(f"{escape(name)} {escape(shown(value))}" for name, value in facts.items() if value is not None)
    parts = [f"<div><b>{escape(title)}</b></div>", f"<div>{told}</div>" if told else ""]
    if rows:
        lines = [heads, *rows]
        tags = ["th", *["td"] * len(rows)]
        body = "".join(
            "<tr>" + "".join(f'<{tag} style="text-align:left">{escape(shown(cell))}</{tag}>' for cell in line) + "</tr>"
            for tag, line in zip(tags, lines, strict=True)
        )
        parts.append(f"<table>{body}</table>")
    return "".join(parts)


def shown(value: Any) -> str:
    """A value in a cell: numbers rounded, long texts cut."""
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value)
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) else short(str(value))


def short(text: str, characters: int = CHARACTERS) -> str:
    """The beginning of a text, in one line."""
    line = " ".join(text.split())
    return line if len(line) <= characters else line[: characters - 1] + "…"


def near(name: str) -> str:
    """A path below the current folder as one would type it; other names as they are."""
    here = os.getcwd() + os.sep
    return name.removeprefix(here)


def first_question(messages: Sequence[ChatMessage]) -> str:
    """What a conversation is about: its first message of a user, else its first."""
    asked = [message["content"] for message in messages if message["role"] == "user"]
    return (asked or [message["content"] for message in messages] or [""])[0]


def last_answer(messages: Sequence[ChatMessage]) -> str:
    """The answer that a conversation ends with."""
    return next((message["content"] for message in reversed(messages) if message["role"] == "assistant"), "")

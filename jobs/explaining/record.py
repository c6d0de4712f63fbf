"""The explanation of a row: all that a run knows about it, and the same as paragraphs and as HTML."""

from __future__ import annotations

import html
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from raysift.pool.id_text import id_text
from raysift.reasons.changes import Change

if TYPE_CHECKING:
    from raysift.jobs.gradients.pulls import Pull
    from raysift.jobs.policy.story import RowStory

SHOWN_PULLS, SHOWN_CHARACTERS = 5, 2_000


@dataclass(frozen=True)
class Standing:
    """Where a row's score stands among all. `better` counts rows with a higher score, or an equal score and a smaller id."""

    score: float
    better: int
    worse: int
    scored: int

    @property
    def percentile(self) -> float:
        """Percentage of the other scored rows with a lower score."""
        return 100.0 * self.worse / max(1, self.scored - 1)


@dataclass(frozen=True)
class Neighbour:
    """The nearest chosen row that is not the row itself."""

    id: int
    distance: float
    rank: int
    messages: list[dict[str, str]] | None = None


@dataclass(frozen=True)
class Copy:
    """A record of the pool with the same conversation."""

    file: str
    position: int
    kept: bool
    reason: str | None = None
    """Why it was not kept."""


@dataclass(frozen=True)
class Part:
    """A heading with sentences, and texts each under a line of its own."""

    title: str
    lines: list[str] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, repr=False)
class Explanation:
    """All that a run knows about one row; None for what it does not have."""

    id: int
    verdict: str
    """What became of the row, in one sentence."""
    reasons: list[str] = field(default_factory=list)
    """The numbers that decided, in words."""
    pulls: list[Pull] | None = None
    """The pairs or examples of the target, those that pull most first."""
    no_pulls: str | None = None
    """Why the pulls are missing although requested."""
    nearest: Neighbour | None = None
    copies: list[Copy] = field(default_factory=list)
    """All records of the pool with this conversation, if there are several."""
    changes: list[Change] = field(default_factory=list)
    """Settings with which something else had become of the row."""
    no_change: str | None = None
    """Why no such setting can be told."""
    messages: list[dict[str, str]] | None = None
    raw: str | None = None
    """The record of a rejected row."""
    source: str | None = None
    file: str | None = None
    position: int | None = None
    """Line of a JSONL file, or number of a record, from 1."""
    own_id: Any = None
    """The id that the record itself names."""
    rejections: list[str] = field(default_factory=list)
    rank: int | None = None
    standing: Standing | None = None
    own: dict[str, Any] = field(default_factory=dict)
    """The row's values in the method's own columns."""
    checkpoints: list[str] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    subtasks: list[str] = field(default_factory=list)
    subtask_weights: list[float] | None = None
    """The weight of each subtask's target, if there are several targets."""
    matches: list[list[float]] | None = None
    """Cosines with the target, by checkpoint and subtask."""
    policy: RowStory | None = None
    """What only a run of RAISE knows."""

    def __repr__(self) -> str:
        return f"Explanation({id_text(self.id)}: {self.verdict})"

    def _repr_html_(self) -> str:
        parts = [f"<h4>Row {id_text(self.id)}</h4>"]
        for part in paragraphs(self):
            parts.append(f"<p><b>{html.escape(part.title)}</b></p>")
            parts += [f"<p>{html.escape(line)}</p>" for line in part.lines]
            shown = "white-space:pre-wrap"
            parts += [f'<p>{html.escape(h)}</p><pre style="{shown}">{html.escape(t)}</pre>' for h, t in part.texts]
        return "\n".join(parts)


def described(found: Explanation) -> dict[str, Any]:
    """The explanation as JSON values: ids as text, without what the run does not have."""
    told = {name: value for name, value in asdict(found).items() if value not in (None, [], {})}
    if found.nearest:
        told["nearest"]["id"] = id_text(found.nearest.id)
    return told | {"id": id_text(found.id)}


def paragraphs(found: Explanation) -> list[Part]:
    """The explanation in the order in which it is read, for every method the same: without what the run does not have."""
    parts = [
        Part("Text", texts=exchange(found.messages) if found.messages else [("record", _cut(found.raw or ""))]),
        Part("What became of it", [_sentence(found.verdict), *_place(found)]),
        Part("What decided", found.reasons),
        Part(
            "Target records that pull it most",
            [_sentence(found.no_pulls)] if found.no_pulls else [],
            [pull for one in (found.pulls or [])[:SHOWN_PULLS] for pull in _pulled(one)],
        ),
        Part("Nearest chosen row", *_near(found.nearest)) if found.nearest else Part(""),
        Part("Copies in the pool", [_copied(copy) for copy in found.copies]),
        Part(
            "What would have changed it",
            [change.text for change in found.changes] or ([found.no_change] if found.no_change else []),
        ),
    ]
    return [part for part in parts if part.lines or any(text for _, text in part.texts)]


def exchange(messages: list[dict[str, str]]) -> list[tuple[str, str]]:
    """Roles and texts of a conversation, long ones cut."""
    return [(message["role"], _cut(message["content"])) for message in messages]


def _place(found: Explanation) -> list[str]:
    if not found.file:
        return []
    named = f", there named {found.own_id}" if found.own_id is not None else ""
    return [f"It is record {found.position:,} of {found.file} (source {found.source}){named}."]


def _pulled(pull: Pull) -> list[tuple[str, str]]:
    place = (
        f"record {pull.record} of {pull.file}" if isinstance(pull.record, int) else f"'{pull.record}' of {pull.file}"
    )
    way = "pulls" if pull.pull >= 0 else "pushes away"
    head = f"{pull.pull:+.2g}: {place} {way}" + (f" (subtask {pull.subtask})" if pull.subtask != pull.record else "")
    answers = [("answer" if pull.rejected is None else "better answer", pull.answer)]
    answers += [("worse answer", pull.rejected)] if pull.rejected is not None else []
    return [(head, _cut(pull.text)), *((name, _cut(text)) for name, text in answers if text)]


def _near(near: Neighbour) -> tuple[list[str], list[tuple[str, str]]]:
    told = f"{id_text(near.id)}, chosen as number {near.rank:,}, at a distance of {near.distance:.3g}."
    if near.distance == 0:
        told += " Its vector is the same."
    return [told], exchange(near.messages) if near.messages else []


def _copied(copy: Copy) -> str:
    return f"Record {copy.position:,} of {copy.file}: {'kept' if copy.kept else f'not kept ({copy.reason})'}."


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?", ")")) else ".")


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}… ({len(text):,} characters in all)"

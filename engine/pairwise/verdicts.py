"""Pairwise win rate: a judge's verdict on which side answers better, per question, and the table of verdicts.

Over n judged questions, from the own side's view:

    win score = 1 + (win - lose) / n        0: loses all, 1: even, 2: wins all

There are two kinds of judge. *Scores*: a reward model or a rating judge reads each answer alone; a difference of at most
`margin` is a tie, and order plays no role. *Comparison*: a language model reads both answers, in both orders; the better
side must win both, and differing verdicts are a tie. The number of differing verdicts measures the judge's position bias.

A question without two answers, or without a readable verdict, has failed: it is counted apart from n, never as a tie. Equal
texts are a tie without asking a judge.

Departures from MoDS, whose judge is GPT-4 with whole ratings 1 to 10, and which publishes neither prompt nor orders: the judge
is the user's own model, and one question covers everything (MoDS asks for relevance and for accuracy). Verdicts are
probabilities of a reply's first token, not samples, and both orders count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import pyarrow as pa

from raysift.evaluation.intervals import mean_interval
from raysift.pairwise.rows import READING, Question, Reading
from raysift.records import ERROR, ID

WIN, TIE, LOSE = "win", "tie", "lose"
POINTS = {WIN: 1, TIE: 0, LOSE: -1}


@dataclass(frozen=True)
class Outcome:
    """The outcome of a question; `verdict` is None if it failed, `flipped` if the judge did not read two orders."""

    verdict: str | None
    error: str | None = None
    same: bool = False
    """Whether the answers are equal texts."""
    flipped: bool | None = None
    """Whether the verdict changed with the order."""


def verdict_of(reading: Reading, margin: float = 0.0) -> str:
    """The own side's verdict: a tie if the difference is at most `margin`, or if a tie is the most probable verdict."""
    difference = reading.own - reading.against
    undecided = reading.tie is not None and reading.tie >= max(reading.own, reading.against)
    if undecided or abs(difference) <= margin:
        return TIE
    return WIN if difference > 0 else LOSE


def decide(question: Question, readings: Sequence[Reading] | str, margin: float = 0.0) -> Outcome:
    """The outcome of a question from its readings, or from the reason why there are none."""
    _, own, against = question
    for side, answer in (("own", own), ("against", against)):
        if answer.text is None:
            return Outcome(None, f"no answer ({side}): {answer.error or 'none was given'}")
    if own.text == against.text:
        return Outcome(TIE, same=True)
    if isinstance(readings, str):
        return Outcome(None, f"no verdict: {readings}")
    if not all(isfinite(number) for r in readings for number in (r.own, r.against, r.tie or 0.0)):
        return Outcome(None, "no verdict: the judge gave a number that is not finite")
    verdicts = [verdict_of(reading, margin) for reading in readings]
    agreed = len(set(verdicts)) == 1
    return Outcome(verdicts[0] if agreed else TIE, flipped=not agreed if len(verdicts) > 1 else None)


RESULT = pa.schema(
    [
        pa.field(ID, pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("subset", pa.string()),
        pa.field("split", pa.string()),
        pa.field("own_answer", pa.string()),
        pa.field("against_answer", pa.string()),
        pa.field("verdict", pa.string()),  # of the own side; null if the question failed
        pa.field("same", pa.bool_(), nullable=False),
        pa.field("flipped", pa.bool_()),
        pa.field("readings", pa.list_(READING)),
        pa.field(ERROR, pa.string()),
    ]
)


def result_record(question: Question, readings: Sequence[Reading] | str, outcome: Outcome) -> dict[str, Any]:
    """A row of RESULT."""
    example, own, against = question
    return vars(outcome) | {
        ID: example.id,
        "task": example.task,
        "subset": example.subset,
        "split": example.split,
        "own_answer": own.text,
        "against_answer": against.text,
        "readings": [] if isinstance(readings, str) else [reading._asdict() for reading in readings],
    }


# --- the table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WinLine:
    """A line of the table; `score` is None if nothing was judged, `low` and `high` also if too little for an interval."""

    name: str
    n: int
    """Questions with a verdict: win + tie + lose."""
    win: int
    tie: int
    lose: int
    failed: int
    same: int
    """Ties because the answers are equal texts."""
    flipped: int | None
    """Questions whose verdict changed with the order; None for a judge without an order."""
    flip_share: float | None
    """`flipped` as a share of the questions that the judge read in both orders."""
    score: float | None
    low: float | None
    high: float | None


def win_line(name: str, outcomes: Sequence[Outcome], confidence: float = 0.95) -> WinLine:
    """Count outcomes; the interval is that of the mean of points (+1, 0, -1)."""
    points = [POINTS[outcome.verdict] for outcome in outcomes if outcome.verdict is not None]
    swapped = [outcome.flipped for outcome in outcomes if outcome.flipped is not None]
    score = low = high = None
    if points:
        mean, below, above = mean_interval(points, confidence).within(-1, 1)
        score = 1 + mean
        if below is not None and above is not None:
            low, high = 1 + below, 1 + above
    return WinLine(
        name=name,
        n=len(points),
        win=points.count(1),
        tie=points.count(0),
        lose=points.count(-1),
        failed=len(outcomes) - len(points),
        same=sum(outcome.same for outcome in outcomes),
        flipped=sum(swapped) if swapped else None,
        flip_share=sum(swapped) / len(swapped) if swapped else None,
        score=score,
        low=low,
        high=high,
    )


def win_table(named: Iterable[tuple[str, Outcome]], confidence: float = 0.95) -> list[WinLine]:
    """A line for each name, sorted, so that the table does not depend on the order of the questions."""
    groups: dict[str, list[Outcome]] = {}
    for name, outcome in named:
        groups.setdefault(name, []).append(outcome)
    return [win_line(name, groups[name], confidence) for name in sorted(groups)]

"""How fast one worker works through rows, measured on a few of them or computed for a card.

seconds of a row with L tokens      L s(L)      s: seconds of a token, between measured lengths by straight lines
a token of a model with P weights   2 P operations forward, 4 P forward and back under frozen weights, 6 P with all trained
                                    while answering: P b bytes read for each token of all answers side by side
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from raysift.planning.cards import REACHED, Card

OPERATIONS = {"forward": 2, "gradients": 4, "train": 4, "train whole": 6}
"""Per weight and token."""
SIDE_BY_SIDE = 128
"""Answers that an engine is taken to give at a time."""


@dataclass(frozen=True)
class Speed:
    """One worker's pace at one kind of work, what it took to load, and its peak memory."""

    lengths: tuple[float, ...]
    """Mean tokens of the rows measured together, rising."""
    per_token: tuple[float, ...]
    """Seconds of a token in them."""
    load_s: float = 0.0
    host: int = 0
    gpu: int = 0
    step_s: float = 0.0
    """Beside the tokens: of an optimizer step, or of one more token of all answers side by side."""
    ends: float = 0.0
    """Answers: the share of tokens after which an answer ends, and in a training: seconds of an epoch's checkpoint."""
    once_s: float = 0.0
    """Checks that a stage makes once."""

    def seconds(self, lengths: ArrayLike) -> float:
        """Mean seconds of rows with these numbers of tokens."""
        tokens = np.asarray(lengths, float)
        return float(np.mean(tokens * np.interp(tokens, self.lengths, self.per_token))) if tokens.size else 0.0

    def told(self) -> dict[str, float | list[float]]:
        """For `plan.json`."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    @property
    def row_tokens(self) -> float:
        """Mean tokens of a row, where the groups measured have equal shares of the rows."""
        return float(np.mean(self.lengths))

    @property
    def row_s(self) -> float:
        """Mean seconds of a row, likewise."""
        return self.seconds(self.lengths)


def speed_on(card: Card, kind: str, parameters: float, host: int = 0, gpu: int = 0, load_s: float = 30.0) -> Speed:
    """A card's pace at a pass of a model, by arithmetic."""
    reached = card.flops * REACHED[kind.split()[0]]
    return Speed((1.0,), (OPERATIONS[kind] * parameters / reached,), load_s, host, gpu)


def answering_on(card: Card, parameters: float, number_bytes: int, host: int = 0, gpu: int = 0) -> Speed:
    """A card's pace at answering: prompts are read like any rows, each step of all answers reads every weight once."""
    read = speed_on(card, "forward", parameters)
    step = max(parameters * number_bytes / (card.bandwidth * REACHED["decode"]), SIDE_BY_SIDE * read.per_token[0])
    return Speed(read.lengths, read.per_token, 60.0, host, gpu, step_s=step / SIDE_BY_SIDE, ends=0.0)


def answer_length(ends: float, most: int) -> float:
    """Mean tokens of answers that end with probability `ends` after each token, or at `most`: (1 - (1 - e)^m) / e."""
    return float(most) if ends <= 0 else (1.0 - (1.0 - ends) ** most) / ends


def thirds(lengths: Sequence[int], groups: int = 3) -> list[np.ndarray]:
    """Places of the rows by length in groups of equal size, the shortest first."""
    order = np.argsort(np.asarray(lengths), kind="stable")
    return [part for part in np.array_split(order, groups) if len(part)]


def evenly_spaced(places: np.ndarray, count: int) -> np.ndarray:
    """At most so many of the places, the first and the last among them: the longest row of a group is always measured."""
    if count >= len(places):
        return places
    return (
        places[np.unique(np.linspace(0, len(places) - 1, max(count, 1)).round().astype(int))]
        if count > 1
        else places[-1:]
    )

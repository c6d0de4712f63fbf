"""Cheaper settings until a plan fits: the ones that lose least come first, and none is taken without need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def solve(levers: Sequence[T], cost: Callable[[Sequence[T]], float], most: float) -> list[T] | None:
    """The first of the levers, in their order, that bring the cost to `most`; None if all together do not.

    Levers before the last one are left out again where the cost fits without them, those that lose most first.
    """
    taken: list[T] = []
    waiting = list(levers)
    while cost(taken) > most:
        if not waiting:
            return None
        taken.append(waiting.pop(0))
    for lever in reversed(taken[:-1]):
        fewer = [one for one in taken if one is not lever]
        if cost(fewer) <= most:
            taken = fewer
    return taken

"""How much more often a group of rows was selected than its share of the pool: lift, with an interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from raysift.evaluation.intervals import wilson_interval

OTHERS = "(others)"


class Lift(NamedTuple):
    """A group's rows in pool and selection; lift 1 is what a random draw gives on average."""

    group: str
    pool: int
    selected: int
    lift: float
    low: float
    high: float

    @property
    def is_chance(self) -> bool:
        """Whether a random draw may well give this."""
        return self.low <= 1 <= self.high


def lifts(pool: Counter[str], selected: Counter[str], most: int | None = None) -> list[Lift]:
    """A line per group by rising name: share of the selection / share of the pool, with its 95 % interval (Wilson).

    With `most`, the largest groups of the pool; the rest together are `(others)`. Where all rows were selected there is
    nothing to estimate, and the interval is the lift itself.
    """
    shown = [group for group, _ in sorted(pool.items(), key=lambda item: (-item[1], item[0]))[:most]]
    lines = [(group, pool[group], selected[group]) for group in sorted(shown)]
    rest = pool.total() - sum(rows for _, rows, _ in lines)
    if rest:
        lines.append((OTHERS, rest, selected.total() - sum(taken for _, _, taken in lines)))
    return [_lift(*line, pool.total(), selected.total()) for line in lines]


def sparkline(values: Sequence[float], width: int = 60) -> str:
    """Values as a line of small bars from their lowest to their highest; the means of equal stretches if there are many."""
    if not values:
        return ""
    count = min(width, len(values))
    edges = [round(part * len(values) / count) for part in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    return "".join(
        BARS[round((mean - low) / (high - low) * (len(BARS) - 1))] if high > low else BARS[0] for mean in means
    )


BARS = "▁▂▃▄▅▆▇█"


def _lift(group: str, rows: int, taken: int, of_pool: int, of_selected: int) -> Lift:
    share = rows / of_pool
    lift = taken / of_selected / share if of_selected else 0.0
    if not of_selected or of_selected == of_pool:
        return Lift(group, rows, taken, lift, lift, lift)
    _, low, high = wilson_interval(taken, of_selected)
    assert low is not None and high is not None
    return Lift(group, rows, taken, lift, low / share, high / share)

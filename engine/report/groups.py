"""Before and after: the share of each group in the pool and in the selection, with lift and its interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from raysift.evaluation.lift import OTHERS, Lift, lifts
from raysift.report.bins import MOST_GROUPS, group_of, tenths
from raysift.report.blocks import Bar, Bars

POOL, SELECTED = "pool", "selected"
NO_GROUP = "(none)"


def before_and_after(
    title: str, pool: Mapping[str, int], selected: Mapping[str, int], order: Sequence[str] = (), note: str = ""
) -> Bars | None:
    """Paired bars of shares, the largest groups first or in the given order; None where there is nothing to compare."""
    lines = lifts(Counter(pool), Counter(selected), MOST_GROUPS) if sum(pool.values()) else []
    if len(lines) < 2 or not sum(selected.values()):
        return None
    place = {name: number for number, name in enumerate(order)}
    lines.sort(key=lambda line: (line.group == OTHERS, place.get(line.group, 0), -line.pool, line.group))
    rows, taken = sum(line.pool for line in lines), sum(line.selected for line in lines)
    return Bars(
        title=title,
        note=note,
        label="share of the rows",
        type="percent",
        groups=tuple(line.group for line in lines),
        series=(
            Bar(name=POOL, values=tuple(line.pool / rows for line in lines)),
            Bar(
                name=SELECTED,
                values=tuple(line.selected / taken for line in lines),
                low=tuple(_end(line, line.low, rows) for line in lines),
                high=tuple(_end(line, line.high, rows) for line in lines),
            ),
        ),
        lift=tuple(line.lift for line in lines),
    )


def by_length(title: str, pool: Sequence[int], selected: Sequence[int], note: str = "") -> Bars | None:
    """The same by tenths of the pool's lengths."""
    if not len(pool) or not len(selected):
        return None
    names, ends = tenths(pool)
    before, after = (
        {names[i]: int(n) for i, n in enumerate(np.bincount(group_of(values, ends), minlength=len(names)))}
        for values in (pool, selected)
    )
    return before_and_after(title, before, after, names, note)


def _end(line: Lift, lift: float, rows: int) -> float:
    return min(1.0, lift * line.pool / rows)

"""Many numbers as a few: bins, quantiles and curves whose size does not depend on how many there were."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysift.evaluation.lift import OTHERS
from raysift.report.blocks import LINE_POINTS, WhatIf

Floats = NDArray[np.float64]

SCORE_BINS, SHARES = 40, 40
LEAST_SHARE = 0.001
MOST_GROUPS = 24


def edges_between(low: float, high: float, bins: int = SCORE_BINS) -> Floats:
    """Edges of bins of equal width; one bin around the value where all are the same. Halved, no distance overflows."""
    return 2 * np.linspace(low / 2, high / 2, bins + 1) if high > low else np.array([low - 0.5, low + 0.5])


def counts_between(values: ArrayLike, edges: Floats) -> NDArray[np.int64]:
    """How many values each bin holds; values that are not finite are in none."""
    found = np.asarray(values, np.float64)
    return np.histogram(found[np.isfinite(found)], bins=edges)[0].astype(np.int64)


def shares_with(budget: float, shares: int = SHARES) -> list[float]:
    """Shares of a pool from a thousandth to all of it at equal ratios, and the budget's own among them."""
    spaced = np.geomspace(LEAST_SHARE, 1.0, shares).round(5).tolist()
    return sorted({*spaced, budget})


def by_rank(scores: ArrayLike, ids: ArrayLike) -> NDArray[np.int64]:
    """Positions of the rows from the best score to the worst, ties by the smaller id, as every method ranks them."""
    return np.lexsort((np.asarray(ids), -np.asarray(scores, np.float64)))


def what_if(
    order: NDArray[np.int64],
    groups: Sequence[str],
    lengths: ArrayLike,
    pool: dict[str, int],
    scored: int,
    budget: float,
    title: str,
    note: str = "",
) -> WhatIf:
    """The mix of groups and the mean length at each share of the pool, from rows in the order in which they are taken.

    The rows may be a sample of the `scored` rows of the pool that can be taken: counts are scaled to these. `pool` holds the
    rows of each group; the smaller groups are one.
    """
    names = largest(pool)
    names += [OTHERS] if len(names) < len(pool) else []
    number = {name: min(place, len(names) - 1) for place, name in enumerate(largest(pool, len(pool)))}
    taken = np.array([number[group] for group in groups], np.int64)[order]
    sums = np.cumsum(np.asarray(lengths, np.float64)[order])
    rows, scale, shares = sum(pool.values()), scored / len(order), shares_with(budget)
    ends = [min(len(order), max(1, round(share * rows / scale))) for share in shares]
    in_all = np.zeros(len(names), np.int64)
    for name, count in pool.items():
        in_all[number[name]] += count
    scaled = [np.rint(np.bincount(taken[:end], minlength=len(names)) * scale) for end in ends]
    counts = [np.minimum(line.astype(np.int64), in_all) for line in scaled]
    return WhatIf(
        title=title,
        note=note,
        shares=tuple(shares),
        groups=tuple(names),
        counts=tuple(tuple(line.tolist()) for line in counts),
        pool=tuple(in_all.tolist()),
        lengths=tuple(float(round(sums[end - 1] / end, 1)) for end in ends),
        budget=budget,
    )


def largest(counts: dict[str, int], most: int = MOST_GROUPS) -> list[str]:
    """The names with most rows, the largest first, equal ones by name."""
    return sorted(counts, key=lambda name: (-counts[name], name))[:most]


def thinned(points: Sequence[tuple[float, float]], most: int = LINE_POINTS) -> tuple[tuple[float, float], ...]:
    """The points, or the means of equal stretches of them where there are more than `most`."""
    if len(points) <= most:
        return tuple((float(x), float(y)) for x, y in points)
    table = np.asarray(points, np.float64)
    edges = [round(part * len(table) / most) for part in range(most + 1)]
    means = [table[a:b].mean(axis=0) for a, b in pairwise(edges)]
    return tuple((float(x), float(y)) for x, y in means)


def tenths(values: ArrayLike) -> tuple[list[str], Floats]:
    """Names and upper ends of ten groups of equal size of whole numbers; fewer where many values are the same."""
    found = np.asarray(values, np.float64)
    ends = np.unique(np.quantile(found, np.arange(0.1, 1.01, 0.1), method="inverted_cdf"))
    begins = [float(found.min()), *(ends[:-1] + 1).tolist()]
    names = [f"{a:,.0f}" if a == b else f"{a:,.0f} to {b:,.0f}" for a, b in zip(begins, ends.tolist(), strict=True)]
    return names, ends


def group_of(values: ArrayLike, ends: Floats) -> NDArray[np.int64]:
    """The number of the group of `tenths` into which each value falls."""
    return np.minimum(np.searchsorted(ends, np.asarray(values, np.float64)), len(ends) - 1)

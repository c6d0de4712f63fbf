"""Which rows stand above a null: real scores against those that targets without meaning give the same pool.

    q(s) = share of null rows with a score of s and more / share of real rows with a score of s and more

With one row more in the numerator for each null pool that is independent of the others (as a permutation test has it), q bounds
the share of rows by mere chance among those from s on. A row stands above the null if q is at most 0.1 at its score or below.

Scores of random signs are compared as they are: signs are symmetric about zero, so the scale of the scores says something.
Random rows share the pool's common direction, and their cosines have another scale, so each pool is taken in units of its own
spread from its own median (`scale_of`).

Scores are counted in bins by the leading bits of their float32: at most 2^24 counts whatever the number of rows, the same in
any order of shards, with bins of one relative width (2^-9 for up to 64 columns).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysift.gradients.influence import TargetColumns, aggregate_subtasks
from raysift.gradients.null_columns import (
    FEWEST_OF_SUBTASK,
    FEWEST_PAIRS,
    FEWEST_ROWS,
    NO_KIND,
    NO_ROOM,
    NO_ROWS,
    ROWS,
    SIGNS,
    SMALL_POOL,
    TOO_FEW,
    Kind,
    NullColumns,
    independent,
    mixes,
)
from raysift.ids import is_among
from raysift.topk import Ids

MOST_FALSE = 0.1
"""Of the rows that stand above the null, at most this share is expected to do so by chance."""
CLEAR_SHARE = 0.5
"""A selection of which a smaller share stands above the null is called doubtful."""
MOST_COUNTS, MOST_BITS, FEWEST_BITS = 2**24, 18, 12
MAD_TO_SD = 1.4826
WHOLE = ""
"""Name of the scores that rows are chosen by, beside the names of the subtasks."""

Floats = NDArray[np.float64]

LEVELS = np.concatenate([np.arange(0, 0.9, 0.02), 1 - np.geomspace(0.1, 1e-7, 73)])
"""Quantiles that are kept of each distribution: finer towards the top, where selections are."""


@dataclass(frozen=True)
class Weighted:
    """Different numbers in rising order, and how often each occurs."""

    values: Floats
    counts: Floats

    @classmethod
    def of(cls, values: Floats, counts: Floats) -> Weighted:
        """From numbers in any order."""
        order = np.argsort(values, kind="stable")
        return cls(values[order], counts[order])

    @property
    def rows(self) -> float:
        return float(self.counts.sum())

    def quantiles(self, levels: Floats) -> Floats:
        """The smallest value that at least such a share of the rows does not exceed."""
        upto = np.cumsum(self.counts)
        places = np.searchsorted(upto, levels * upto[-1] * (1 - 1e-12))
        return np.asarray(self.values[np.minimum(places, len(self.values) - 1)])

    def from_on(self, values: Floats) -> Floats:
        """The share of rows at each of these values or above."""
        upto = np.concatenate([[0.0], np.cumsum(self.counts)])
        return np.asarray((upto[-1] - upto[np.searchsorted(self.values, values)]) / upto[-1])


class Tally:
    """Counts of scores in bins by the leading bits of their float32, for several columns of scores."""

    def __init__(self, columns: int) -> None:
        bits = min(MOST_BITS, max(FEWEST_BITS, int(np.log2(MOST_COUNTS / max(1, columns)))))
        self._shift = np.uint32(32 - bits)
        self._counts = np.zeros((columns, 2**bits), np.uint32)

    def add(self, column: int, scores: NDArray[np.floating]) -> None:
        """Count some scores of a column."""
        bits = (scores.astype(np.float32) + np.float32(0)).view(np.uint32)  # the sum turns -0 into 0
        # Bits of floats in the order of the floats: all of them inverted below zero, the sign's alone above.
        rising = np.where(bits >> np.uint32(31), ~bits, bits | np.uint32(1 << 31)) >> self._shift
        np.add.at(self._counts[column], rising, 1)

    def found(self, column: int) -> Weighted:
        """The bins that hold a row, each told by its lowest number."""
        bins = np.flatnonzero(self._counts[column]).astype(np.uint32)
        rising = bins << self._shift
        bits = np.where(rising >> np.uint32(31), rising & np.uint32(2**31 - 1), ~rising)
        return Weighted(
            bits.astype(np.uint32).view(np.float32).astype(np.float64), self._counts[column, bins].astype(np.float64)
        )


class NullReduce:
    """Collects the real and the null scores of any number of scored shards, in any order.

    `members` are the rows of which each replicate's targets are made: they match themselves, so they do not count in its pool.
    """

    def __init__(self, null: NullColumns, columns: TargetColumns, rule: str, members: Sequence[Ids] = ()) -> None:
        self.null, self.columns = null, columns
        self._rule = "max" if rule == "round_robin" else rule
        self._mixes = mixes(null.kind, null.columns)
        self._members = members
        pools, subtasks = 1 + len(self._mixes), len(columns.subtasks)
        self._names = [WHOLE, *columns.subtasks] if subtasks > 1 else [WHOLE]
        self._whole = Tally(pools)
        self._parts = Tally(pools * subtasks) if subtasks > 1 else None

    def add(self, ids: Ids, real: Floats, nulls: Floats) -> None:
        """Take (rows, subtasks) real scores and (rows, subtasks, columns) null ones of one shard."""
        self._add(0, real)
        for pool, mix in enumerate(self._mixes, 1):
            kept = slice(None)
            if self._members and len(self._members[pool - 1]):
                kept = ~is_among(ids, self._members[pool - 1])  # type: ignore[assignment]
            self._add(pool, nulls[kept] @ mix)

    def _add(self, pool: int, by_subtask: Floats) -> None:
        self._whole.add(pool, aggregate_subtasks(by_subtask, self.columns, self._rule))
        if self._parts is not None:
            for number, scores in enumerate(by_subtask.T):
                self._parts.add(pool * len(self.columns.subtasks) + number, scores)

    def result(self) -> dict[str, dict[str, Any]]:
        """How the real scores stand against the null: those that rows are chosen by, and those of each subtask."""
        found = {}
        for number, name in enumerate(self._names):
            pools = [self._distribution(pool, number) for pool in range(1 + len(self._mixes))]
            few = self.null.kind == SIGNS and bool(name) and self.null.members[number - 1] < FEWEST_PAIRS
            found[name] = {} if few else stand(self.null.kind, self.null.columns, pools[0], pools[1:])
        return found

    def _distribution(self, pool: int, number: int) -> Weighted:
        if number == 0:
            return self._whole.found(pool)
        assert self._parts is not None
        return self._parts.found(pool * len(self.columns.subtasks) + number - 1)


def scale_of(kind: Kind, scores: Weighted) -> tuple[float, float]:
    """What is taken from the scores of a pool, and what they are divided by, before pools are compared."""
    if kind == SIGNS:
        return 0.0, 1.0
    return spread_of(scores)


def spread_of(scores: Weighted) -> tuple[float, float]:
    """Median, and the robust standard deviation about it: 1.4826 times the median distance from it."""
    half = np.array([0.5])
    middle = float(scores.quantiles(half)[0])
    away = Weighted.of(np.abs(scores.values - middle), scores.counts)
    spread = MAD_TO_SD * float(away.quantiles(half)[0])
    return middle, spread or 1.0


def stand(kind: Kind, columns: int, real: Weighted, nulls: Sequence[Weighted]) -> dict[str, Any]:
    """How real scores stand against null pools: the lowest score that stands above them, and quantiles of both."""
    if not len(real.values) or not all(len(null.values) for null in nulls):
        return {}
    middle, unit = scale_of(kind, real)
    scaled = [scale_of(kind, null) for null in nulls]
    own = Weighted((real.values - middle) / unit, real.counts)
    others = [
        Weighted((null.values - m) / u, null.counts / null.rows) for null, (m, u) in zip(nulls, scaled, strict=True)
    ]
    whole = Weighted.of(np.concatenate([o.values for o in others]), np.concatenate([o.counts for o in others]))
    lowest = lowest_above(own, whole, independent(kind, columns))
    return {
        "rows": int(real.rows),
        "lowest": None if lowest is None else float(real.values[lowest]),
        "above": 0 if lowest is None else int(real.counts[lowest:].sum()),
        "middle": middle,
        "unit": unit,
        "null_spread": spread_of(whole)[1],
        "real": real.quantiles(LEVELS).tolist(),
        "null": whole.quantiles(LEVELS).tolist(),
    }


def lowest_above(real: Weighted, null: Weighted, pools: int, most: float = MOST_FALSE) -> int | None:
    """Place of the lowest real value that stands above the null, which is worth `pools` independent pools; None if none does.

    The lowest one whose q is small enough: with q made monotone, all values from there on stand above.
    """
    above = np.cumsum(real.counts[::-1])[::-1]
    chance = null.from_on(real.values) * real.rows + 1 / pools
    places = np.flatnonzero(chance <= most * above)
    return int(places[0]) if len(places) else None


def excess(found: Mapping[str, Any], scores: Floats) -> float | None:
    """How far the median of chosen scores lies above the null's score of the same quantile, in the null's spreads."""
    if not found or not len(scores):
        return None
    middle = float(np.median(scores))
    level = np.interp(middle, found["real"], LEVELS)
    expected = float(np.interp(level, LEVELS, found["null"]))
    return float(((middle - found["middle"]) / found["unit"] - expected) / found["null_spread"])


def stands_above(found: Mapping[str, Any], scores: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which scores stand above the null."""
    if found["lowest"] is None:
        return np.zeros(len(scores), bool)
    return np.asarray(scores.astype(np.float32) >= np.float32(found["lowest"]))


def null_counts(found: Mapping[str, Any], edges: Floats) -> NDArray[np.int64]:
    """How many rows the null would have between these scores, if it had as many as the pool; by its kept quantiles."""
    at = np.array(found["null"]) * found["unit"] + found["middle"]
    upto = np.interp(edges, at, LEVELS, left=0.0, right=1.0)
    return np.asarray(np.rint(np.diff(upto) * found["rows"]), np.int64)


# --- in words --------------------------------------------------------------------------------------------------------

GIVEN_BY = {
    SIGNS: "what random signs of the same pairs give",
    ROWS: "what random rows of the pool give as a target",
}
NO_NULL = {
    TOO_FEW: (
        f"random signs of so few pairs say nothing; it takes {FEWEST_PAIRS} different pairs, and {FEWEST_OF_SUBTASK} of each "
        "subtask"
    ),
    NO_ROOM: (
        "there was no memory or disk for null targets beside those of the run; matching=store in the method's section, whose "
        "targets are short, has room for them"
    ),
    SMALL_POOL: (
        f"of targets of random rows, at most one row of the pool in 25, each would have fewer than {FEWEST_ROWS} rows, too few to "
        "compare with; give a larger pool or fewer examples"
    ),
    NO_ROWS: "no row that could be a null target has a gradient",
    NO_KIND: "the method has no null with these settings",
}
FROM_BEFORE = "its targets were made before runs had a null; `raysift rescore` or a new run has one"


def verdict(kind: Kind, selected: int, above: int) -> str:
    """Whether a selection stands above the null, in one sentence; the only place that words it."""
    given = GIVEN_BY[kind]
    if not above:
        noise = "is noise" if kind == SIGNS else "may be noise"  # a null of rows hides a few targets that work
        return f"no selected row stands above {given}: this selection {noise}"
    rows = "row" if selected == 1 else "rows"
    told = f"of {selected:,} selected {rows} {above:,} {'stands' if above == 1 else 'stand'} above {given}"
    if above >= CLEAR_SHARE * selected:
        return told
    return f"{told}: most of this selection may be noise, and a smaller budget would hold less of it"


def without_null(why: str) -> str:
    """Why a run tells nothing of noise."""
    return f"whether the selection stands above noise is not known: {NO_NULL.get(why, FROM_BEFORE)}"


def of_row(kind: Kind, above: bool) -> str:
    """The same of one row."""
    if above:
        return f"Its score stands above {GIVEN_BY[kind]}."
    return f"Its score does not stand above {GIVEN_BY[kind]}: it may be noise."

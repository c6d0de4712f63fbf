"""Does the order of a score say how much rows teach? Rows cut into bins by rank, and the rank correlation of bin and result.

Bin 1 holds the best scores. A bin's result is its mean over seeds. The correlation is Spearman's, signed so that 1 means: the
higher the score, the better the result.

Its interval takes the *bins* as what was drawn (Bonett and Wright 2000, on Fisher's scale):

    z = atanh(r'),   half = quantile x sqrt((1 + r'^2 / 2) / (bins - 3)),   from tanh(z - half) to tanh(z + half)

with r' half a step of Spearman's possible values nearer to 0 than r, so that a perfect order of a few bins is no certainty.
Seeds are not resampled: all of them train on the same bins. Bins of a random order differ too, by the rows that they hold;
enough seeds would show these differences ever more clearly, and seeds alone would in the end call any random order one. More
seeds sharpen each bin's result; only more bins narrow the interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysift.draws import seed_for, uniform_of
from raysift.errors import DataError
from raysift.evaluation.comparison import mean_ranks, rank_correlation
from raysift.evaluation.intervals import Interval
from raysift.topk import Ids

FEWEST_BINS = 3
"""With fewer there is no order but one."""


class Bin(NamedTuple):
    """Rows of neighbouring ranks."""

    ids: Ids
    """Best first."""
    high: float
    low: float


class Bins(NamedTuple):
    """All scored rows by rank."""

    bins: list[Bin]
    ties: int
    """Borders between two bins on whose sides the scores are equal, so that ids alone decided."""


def cut_bins(ids: ArrayLike, scores: ArrayLike, quantiles: int) -> Bins:
    """The rows by score, best first and ties by id, in bins whose sizes differ by one at most."""
    numbers, values = np.asarray(ids, np.int64), np.asarray(scores, np.float64)
    if len(numbers) < quantiles:
        raise DataError(
            f"check: {len(numbers)} rows have a score, {quantiles} bins were asked for. Ask for fewer: --quantiles "
            f"{max(FEWEST_BINS, len(numbers) // 2)}."
        )
    if len(numbers) and values.min() == values.max():
        raise DataError(
            f"check: all {len(numbers):,} scored rows have the same score, {values[0]:g}, so there is no order to check."
        )
    order = np.lexsort((numbers, -values))
    numbers, values = numbers[order], values[order]
    edges = [len(numbers) * number // quantiles for number in range(quantiles + 1)]
    bins = [Bin(numbers[a:b], float(values[a]), float(values[b - 1])) for a, b in pairwise(edges)]
    return Bins(bins, sum(bool(values[edge - 1] == values[edge]) for edge in edges[1:-1]))


def draw_rows(members: Ids, rows: int, seed: int) -> Ids:
    """So many of a bin's rows, by seed and id alone, in the order of ids."""
    draws = uniform_of(members, seed_for(seed, "check"))
    return np.sort(members[np.lexsort((members, draws))[:rows]])


class Order(NamedTuple):
    """How far results follow the order of the bins."""

    correlation: float
    low: float
    high: float
    agreement: float | None
    """Mean rank correlation between the bins' results of two seeds; None of a single seed."""

    @property
    def kind(self) -> int:
        """1 where higher scores are told to give better results, -1 where worse ones, 0 where neither can be told."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def order_of(results: ArrayLike, rises: bool, confidence: float = 0.95) -> Order | None:
    """The order of a table of seeds x bins whose numbers are better where they are higher, if it `rises`, or lower.

    None where all bins have one result.
    """
    table = np.asarray(results, np.float64) * (-1.0 if rises else 1.0)
    places = np.arange(table.shape[1])
    found = rank_correlation(places, table.mean(axis=0))
    if found is None:
        return None
    _, low, high = rank_interval(found, len(places), confidence)
    assert low is not None and high is not None
    return Order(found, low, high, agreement_of(table))


def agreement_of(table: NDArray[np.float64]) -> float | None:
    """The mean rank correlation of two seeds of a table of seeds x bins, over all pairs; None without two seeds that differ by bin.

    With ranks centred and scaled to length 1 a correlation is a product, and those of all pairs are (|sum|^2 - seeds) / 2.
    """
    ranks = np.array([mean_ranks(row) for row in table])
    ranks -= ranks.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(ranks, axis=1)
    units = ranks[lengths > 0] / lengths[lengths > 0, None]
    if len(units) < 2:
        return None
    return float(((units.sum(axis=0) ** 2).sum() - len(units)) / (len(units) * (len(units) - 1)))


def rank_interval(correlation: float, bins: int, confidence: float = 0.95) -> Interval:
    """The interval of a rank correlation over so many bins; of three it says nothing."""
    if bins <= FEWEST_BINS:
        return Interval(correlation, -1.0, 1.0)
    step = 6 / (bins * (bins**2 - 1))
    inner = math.copysign(max(0.0, abs(correlation) - step), correlation)
    half = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt((1 + inner**2 / 2) / (bins - 3))
    centre = math.atanh(inner)
    return Interval(correlation, min(correlation, math.tanh(centre - half)), max(correlation, math.tanh(centre + half)))


def paired(first: Sequence[float] | NDArray[np.float64], second: Sequence[float] | NDArray[np.float64]) -> list[float]:
    """The differences of two results seed by seed."""
    return [float(a - b) for a, b in zip(first, second, strict=True)]

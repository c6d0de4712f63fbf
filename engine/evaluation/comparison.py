"""Whether one training set beats another: paired differences, what more seeds would tell, and how alike two selections are.

Results of a method are a table of seeds x questions. Two methods are compared seed by seed and question by question:
the interval is that of the mean difference over other seeds *and* other questions (see `seeds_interval`).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysift.errors import DataError
from raysift.evaluation.intervals import Interval, seeds_interval, t_quantile

FEWEST_SEEDS = 3
"""With fewer, a comparison is called indicative."""
MOST_SEEDS = 1000

Scores = Mapping[int, NDArray[np.float64]]
"""Score of every question, by seed."""


class Difference(NamedTuple):
    """The mean difference of two methods over the seeds that both have."""

    interval: Interval
    seeds: int
    more_seeds: int | None
    """Further seeds until the interval is as narrow as the gain asked about; None: no number of seeds would do."""


def paired_difference(scores: Scores, against: Scores, gain: float = 0.01, confidence: float = 0.95) -> Difference:
    """By how much `scores` lie above `against`; `gain` is the difference that more seeds should be able to tell."""
    seeds = sorted(scores.keys() & against.keys())
    if not seeds:
        raise DataError(f"compare: no seed in common (seeds {sorted(scores)} and {sorted(against)}).")
    table = np.stack([np.asarray(scores[seed]) - np.asarray(against[seed]) for seed in seeds])
    return Difference(seeds_interval(table, confidence), len(seeds), seeds_needed(table, gain, confidence))


def seeds_needed(differences: ArrayLike, gain: float, confidence: float = 0.95) -> int | None:
    """Seeds beyond those of the table until half the interval is at most `gain`; None where the questions are too few for that,
    or where a single seed tells nothing of their spread.

    With S seeds the variance of the mean is v_seed / S + v_question + v_rest / S; only the first and last shrink with S.
    """
    table = np.asarray(differences, np.float64)
    seeds = len(table)
    if seeds < 2:
        return None
    v_question, per_seed = _spread(table)

    def is_enough(count: int) -> bool:
        return t_quantile((1 + confidence) / 2, count - 1) * math.sqrt(v_question + per_seed / count) <= gain

    found = bisect_left(range(seeds, MOST_SEEDS), True, key=is_enough)
    return None if found == MOST_SEEDS - seeds else found


def _spread(table: NDArray[np.float64]) -> tuple[float, float]:
    """What of the mean's variance stays whatever the seeds, and what is divided by their number."""
    seeds, questions = table.shape
    per_seed = float(table.mean(axis=1).var(ddof=1))
    if questions < 2:
        return 0.0, per_seed
    rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0, keepdims=True) + table.mean()
    rest_square = float((rest**2).sum()) / ((seeds - 1) * (questions - 1))
    question_square = seeds * float(table.mean(axis=0).var(ddof=1))
    return max(0.0, question_square - rest_square) / (seeds * questions), per_seed


class Overlap(NamedTuple):
    """How many of their rows two selections share, over all rows of both, and what chance would give."""

    jaccard: float
    by_chance: float


def overlap(first: ArrayLike, second: ArrayLike, pool_rows: int) -> Overlap:
    """|A and B| / |A or B|, and its value where |A and B| = |A| |B| / pool, the mean of two independent draws."""
    a, b = np.unique(np.asarray(first)), np.unique(np.asarray(second))
    if not 0 < max(len(a), len(b)) <= pool_rows:
        raise DataError(f"overlap: selections of {len(a)} and {len(b)} rows of a pool of {pool_rows}.")
    shared, expected = len(np.intersect1d(a, b)), len(a) * len(b) / pool_rows
    both = len(a) + len(b)
    return Overlap(shared / (both - shared), expected / (both - expected))


def rank_correlation(first: ArrayLike, second: ArrayLike) -> float | None:
    """Spearman's correlation, ties at their mean rank; None where one side is constant."""
    a, b = mean_ranks(np.asarray(first)), mean_ranks(np.asarray(second))
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def mean_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1, equal values at the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[place])


class SeedSpread(NamedTuple):
    """Standard deviations of a result: over seeds of the selection, and over seeds of the training on one selection."""

    selection: float
    training: float


def split_spread(results: ArrayLike) -> SeedSpread:
    """Of a table of selection seeds x training seeds, by the mean squares of a one-way layout with random effects."""
    table = np.asarray(results, np.float64)
    if table.ndim != 2 or min(table.shape) < 2:
        raise DataError(f"compare: a table of {table.shape} results; two seeds of each kind are the least.")
    training = float(table.var(axis=1, ddof=1).mean())
    between = table.shape[1] * float(table.mean(axis=1).var(ddof=1))
    return SeedSpread(math.sqrt(max(0.0, between - training) / table.shape[1]), math.sqrt(training))


def verdict(name: str, baseline: str, difference: Difference, gain: float = 0.01, unit: float = 100.0) -> str:
    """What the difference says, in one sentence; figures are in points (`unit` of them make 1)."""
    mean, low, high = difference.interval
    said = f"{mean * unit:+.1f}"
    if low is None or high is None:
        return f"{name}: {said} against {baseline} in one seed, which tells nothing of the spread"
    bounds = f"{said}, {low * unit:.1f} to {high * unit:.1f}"
    if low > 0 or high < 0:
        text = f"{name}: {'better' if low > 0 else 'worse'} than {baseline} ({bounds})"
    else:
        text = f"{name}: not told apart from {baseline} ({bounds}{_remedy(difference, gain, unit)})"
    return text if difference.seeds >= FEWEST_SEEDS else f"{text}; indicative, with {difference.seeds} seeds"


def _remedy(difference: Difference, gain: float, unit: float) -> str:
    points = f"{gain * unit:g} point{'' if gain * unit == 1 else 's'}"
    if difference.more_seeds is None:
        return f"; more questions are needed to tell {points}"
    return f"; about {difference.more_seeds} more seeds would tell {points}" if difference.more_seeds else ""

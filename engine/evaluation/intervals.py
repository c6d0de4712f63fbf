"""How sure a mean is: intervals for accuracies, for means, and for means over training seeds and examples at once.

- Share of k right answers among n: Wilson's interval, which stays inside [0, 1] and keeps a width where all are right.
- Mean of m numbers: m ± t(m - 1) · s / sqrt(m). Means of several seeds are such numbers. Two models on the same
  examples are compared by the interval of the *differences*, which is far narrower than the two intervals suggest.
- Mean over tokens of rows of unlike lengths, L = sum(total) / sum(n): rows are independent, tokens are not, so the
  spread is that of the rows' residuals total - L · n (linearised ratio).
- S seeds x E examples, both drawn from something larger: with the mean squares of a two-way table without replication,
  var(mean) = (MS_seed + MS_example - MS_rest) / (S · E), and Satterthwaite's degrees of freedom. Never taken below
  MS_seed / (S · E) and MS_example / (S · E): the difference is an estimate and may come out too small or negative.
"""

from __future__ import annotations

import functools
import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysift.errors import DataError


class Interval(NamedTuple):
    """A mean and where it lies; both ends are None where a single number says nothing about its spread."""

    mean: float
    low: float | None
    high: float | None

    def within(self, least: float, most: float) -> Interval:
        """The same where means can only lie between the two; an interval by spread knows nothing of that."""
        if self.low is None or self.high is None:
            return self
        return Interval(self.mean, max(least, self.low), min(most, self.high))


def wilson_interval(right: int, n: int, confidence: float = 0.95) -> Interval:
    """The interval of a share of right answers."""
    if not 0 <= right <= n or n == 0:
        raise DataError(f"interval: {right} right answers of {n}; expected 0 to n of at least one.")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = right / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # Rounding must not push an end past the share itself, nor out of the unit interval.
    return Interval(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """The interval of the mean of independent numbers, such as one result a seed or one difference an example."""
    numbers = _finite(values, 1)
    mean = float(numbers.mean())
    if len(numbers) < 2:
        return Interval(mean, None, None)
    half = t_quantile((1 + confidence) / 2, len(numbers) - 1) * float(numbers.std(ddof=1)) / math.sqrt(len(numbers))
    return Interval(mean, mean - half, mean + half)


def ratio_interval(totals: ArrayLike, counts: ArrayLike, confidence: float = 0.95) -> Interval:
    """The interval of sum(totals) / sum(counts), where each row brings a total over `counts` things of its own."""
    total, count = _finite(totals, 1), _finite(counts, 1)
    mean = float(total.sum() / count.sum())
    residual = mean_interval(total - mean * count, confidence)
    if residual.high is None:
        return Interval(mean, None, None)
    half = (residual.high - residual.mean) / float(count.mean())
    return Interval(mean, mean - half, mean + half)


def seeds_interval(scores: ArrayLike, confidence: float = 0.95) -> Interval:
    """The interval of the mean over a table of seeds x examples: other seeds *and* other examples could have come.

    One seed falls back to the spread over examples, one example to the spread over seeds.
    """
    table = _finite(scores, 2)
    seeds, examples = table.shape
    if seeds == 1 or examples == 1:
        return mean_interval(table.ravel(), confidence)
    mean = float(table.mean())
    by_seed, by_example = table.mean(axis=1, keepdims=True), table.mean(axis=0, keepdims=True)
    seed_square = examples * float(by_seed.var(ddof=1))
    example_square = seeds * float(by_example.var(ddof=1))
    rest_freedom = (seeds - 1) * (examples - 1)
    rest_square = float(((table - by_seed - by_example + mean) ** 2).sum()) / rest_freedom
    square = max(seed_square + example_square - rest_square, seed_square, example_square)
    if square <= 0:
        return Interval(mean, mean, mean)
    spread = seed_square**2 / (seeds - 1) + example_square**2 / (examples - 1) + rest_square**2 / rest_freedom
    freedom = max(min(seeds, examples) - 1, square**2 / spread)
    half = t_quantile((1 + confidence) / 2, freedom) * math.sqrt(square / table.size)
    return Interval(mean, mean - half, mean + half)


def t_quantile(probability: float, freedom: float) -> float:
    """The value below which Student's t with `freedom` degrees of freedom falls with this probability."""
    if probability < 0.5:
        return -t_quantile(1 - probability, freedom)
    low, high = 0.0, 1.0
    while _t_below(high, freedom) < probability:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _t_below(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def _t_below(t: float, freedom: float) -> float:
    """P(T < t) for t >= 0: with T = sqrt(freedom) tan(x), the density of x is proportional to cos(x)^(freedom - 1)."""
    nodes, weights = _gauss_legendre()
    half = math.atan(t / math.sqrt(freedom)) / 2
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    return 0.5 + scale * half * float(weights @ np.cos((nodes + 1) * half) ** (freedom - 1))


@functools.cache
def _gauss_legendre() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nodes and weights on [-1, 1]; finding them takes a thousand times as long as one sum over them."""
    nodes, weights = np.polynomial.legendre.leggauss(64)
    return nodes, weights


def _finite(values: ArrayLike, dimensions: int) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != dimensions or array.size == 0:
        raise DataError(f"interval: numbers of shape {array.shape}; expected {dimensions} dimension(s), none empty.")
    if not np.isfinite(array).all():
        missing = int((~np.isfinite(array)).sum())
        raise DataError(f"interval: {missing} of {array.size} numbers are missing or not finite.")
    return array

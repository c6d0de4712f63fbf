"""A plane through a pool's vectors: the two directions in which they differ most, and how densely rows lie on it.

    covariance = sum of (x - s)(x - s)^T / n - m m^T,   m = sum of (x - s) / n,   s: the first row

Sums run chunk by chunk in float64 and their order hardly matters: positions are rounded to six digits, so that the same vectors
in other files give the same map. An axis points to where its largest loading is positive.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysift.report.blocks import MAP_BINS

Numbers = NDArray[np.float64]
Vectors = NDArray[np.floating]

DIGITS = 6


@dataclass(frozen=True)
class Plane:
    """Where its origin lies, its two axes as unit rows, and the share of the variance along each."""

    origin: Numbers
    axes: Numbers
    explained: tuple[float, float]

    def place(self, vectors: Vectors) -> Numbers:
        """The positions of vectors on the plane, (rows, 2), rounded to six digits."""
        found: Numbers = (vectors.astype(np.float64) - self.origin) @ self.axes.T
        size = 10.0 ** np.floor(np.log10(np.maximum(np.abs(found), 1e-300)))
        rounded: Numbers = np.round(found / size, DIGITS) * size
        return rounded


def fit_plane(chunks: Iterable[Vectors]) -> Plane | None:
    """The plane of largest variance; None without any vector. Memory: the covariance and a chunk."""
    sums: tuple[Numbers, Numbers, Numbers] | None = None
    count = 0
    for chunk in chunks:
        if not len(chunk):
            continue
        wide = chunk.astype(np.float64)
        if sums is None:
            width = wide.shape[1]
            sums = (wide[0].copy(), np.zeros(width), np.zeros((width, width)))
        shift, total, squares = sums
        wide -= shift
        total += wide.sum(axis=0)
        squares += wide.T @ wide
        count += len(wide)
    if sums is None:
        return None
    shift, total, squares = sums
    mean = total / count
    covariance = squares / count - np.outer(mean, mean)
    variance, directions = np.linalg.eigh(covariance)
    axes = np.zeros((2, len(mean)))
    found = directions.T[::-1][:2]
    axes[: len(found)] = found * np.sign(found[np.arange(len(found)), np.abs(found).argmax(axis=1)])[:, None]
    whole = max(0.0, float(np.trace(covariance)))
    first, second = ([max(0.0, float(v)) for v in variance[::-1]] + [0.0])[:2]
    return Plane(shift + mean, axes, (first / whole, second / whole) if whole else (0.0, 0.0))


@dataclass(frozen=True)
class Density:
    """How many rows lie in each cell; `counts[i][j]` is the cell of `y[i]` and `x[j]`."""

    x: Numbers
    y: Numbers
    counts: NDArray[np.int64]


def density_of(positions: Iterable[Numbers], low: Numbers, high: Numbers, bins: int = MAP_BINS) -> Density:
    """Counts on a grid from `low` to `high`, which the outermost positions lie on."""
    x, y = (edges(float(low[axis]), float(high[axis]), bins) for axis in (0, 1))
    counts = np.zeros((bins, bins), np.int64)
    for part in positions:
        counts += np.histogram2d(part[:, 1], part[:, 0], bins=(y, x))[0].astype(np.int64)
    return Density(x, y, counts)


def edges(low: float, high: float, bins: int) -> Numbers:
    """Equal cells from the lowest to the highest position; of width one in all where these are the same."""
    if low == high:
        low, high = low - 0.5, high + 0.5
    found: Numbers = np.linspace(low, high, bins + 1)
    found[-1] = high
    return found


def extent(positions: Iterable[Numbers]) -> tuple[Numbers, Numbers]:
    """The lowest and the highest position along each axis."""
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    for part in positions:
        low, high = np.minimum(low, part.min(axis=0)), np.maximum(high, part.max(axis=0))
    return low, high

"""Principal components of row vectors, in float64: they reduce vectors of hundreds of numbers to 32.

    covariance = mean of (x - m)(x - m)^T = Q diag(variance) Q^T,   scores = (x - m) Q,   variances in falling order

A component's largest loading is positive, which fixes its sign. Directions whose variance is within the rounding of the
vectors are left out, so there may be fewer components; they are not padded. The paper pools 4096 numbers to 32 and does not
say how.

Sums are exact, so rows can be added in any order and in any number of tasks. Each column is rounded to whole numbers on a grid
of 2^40 places over its range, written as high x 2^20 + low; products of such halves, summed over BLOCK_ROWS rows, are whole
numbers below 2^53 (`Sums`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysift.errors import DataError
from raysift.kcenter.distances import Vectors

Matrix = NDArray[np.float64]

BLOCK_ROWS = 1024
HALF_BITS = 20
MOST_ROWS = 2**22
"""Sums of more products would not fit into 63 bits."""


@dataclass(frozen=True)
class Components:
    """A fit: `variance` holds the variance of each component, `total` that of the vectors."""

    mean: Matrix
    components: Matrix
    """(k, width), unit rows."""
    variance: Matrix
    total: float

    @property
    def explained(self) -> Matrix:
        """Each component's share of the total variance."""
        return self.variance / self.total if self.total > 0 else np.zeros_like(self.variance)


@dataclass(frozen=True)
class Range:
    """The least and the greatest number of each column."""

    low: Matrix
    high: Matrix

    @classmethod
    def of(cls, vectors: Vectors) -> Range:
        """The range of these vectors, of which there is one at least."""
        if vectors.ndim != 2 or not len(vectors):
            raise DataError(f"semantic features: vectors of shape {vectors.shape}; expected at least one, as lines.")
        return cls(vectors.min(axis=0).astype(np.float64), vectors.max(axis=0).astype(np.float64))

    @classmethod
    def joined(cls, parts: Iterable[Range]) -> Range:
        """The range of all parts together."""
        known = list(parts)
        return cls(np.min([part.low for part in known], axis=0), np.max([part.high for part in known], axis=0))

    @property
    def middle(self) -> Matrix:
        """The number that is 0 on the grid."""
        return np.asarray(self.low / 2 + self.high / 2, np.float64)

    @property
    def step(self) -> Matrix:
        """The distance between neighbours on the grid: a power of two, so that dividing by it is exact."""
        half = np.maximum(self.high - self.middle, self.middle - self.low)
        found: Matrix = np.exp2(np.ceil(np.log2(np.where(half > 0, half, 1.0))) - 2 * HALF_BITS + 1)
        return found


@dataclass
class Sums:
    """Sums over rows of their numbers on the grid of a range, and of all products of two of them; whole numbers all."""

    grid: Range
    count: int
    high: NDArray[np.int64]
    low: NDArray[np.int64]
    products: list[NDArray[np.int64]]
    """high x high, high x low, low x low."""

    @classmethod
    def of(cls, grid: Range, vectors: Vectors) -> Sums:
        """The sums over these vectors."""
        width = len(grid.low)
        products = [np.zeros((width, width), np.int64) for _ in range(3)]
        found = cls(grid, len(vectors), np.zeros(width, np.int64), np.zeros(width, np.int64), products)
        for start in range(0, len(vectors), BLOCK_ROWS):
            whole = np.rint((vectors[start : start + BLOCK_ROWS] - grid.middle) / grid.step)
            high = np.rint(whole / 2**HALF_BITS)
            low = whole - high * 2**HALF_BITS
            found.high += high.sum(axis=0).astype(np.int64)
            found.low += low.sum(axis=0).astype(np.int64)
            for total, one, other in zip(found.products, (high, high, low), (high, low, low), strict=True):
                total += (one.T @ other).astype(np.int64)
        return found

    def add(self, more: Sums) -> None:
        """Add the sums over other rows, on the same grid."""
        self.count += more.count
        if self.count > MOST_ROWS:
            raise DataError(
                f"semantic features: {self.count} rows to fit on; at most {MOST_ROWS} can be. Lower fit_rows."
            )
        # Not in place: sums that come from a task are read-only.
        self.high, self.low = self.high + more.high, self.low + more.low
        self.products = [total + part for total, part in zip(self.products, more.products, strict=True)]

    def moments(self) -> tuple[Matrix, Matrix]:
        """Mean and covariance of the vectors."""
        scale, middle = 2.0**HALF_BITS, (self.high * 2.0**HALF_BITS + self.low) / self.count
        both, mixed, least = (part / self.count for part in self.products)
        covariance = (both * scale + (mixed + mixed.T)) * scale + least - np.outer(middle, middle)
        step = self.grid.step
        return self.grid.middle + middle * step, covariance * np.outer(step, step)


def fit_components(vectors: Vectors, k: int) -> Components:
    """Fit at most k components; the same rows in any order give the same fit."""
    return components_of(Sums.of(Range.of(vectors), vectors), k)


def components_of(sums: Sums, k: int) -> Components:
    """At most k components of the vectors that these are the sums of."""
    mean, covariance = sums.moments()
    width = len(mean)
    variance, directions = np.linalg.eigh(covariance)
    variance, directions = variance[::-1], directions.T[::-1]
    rounding = float(np.finfo(np.float32).eps) ** 2 * (float(mean @ mean) + float(np.trace(covariance)))
    found = int((variance[:k] > max(rounding, float(variance[0]) * width * np.finfo(np.float64).eps)).sum())
    components = directions[:found]
    largest = np.abs(components).argmax(axis=1)
    signs = np.sign(components[np.arange(found), largest])
    return Components(
        mean=mean,
        components=np.ascontiguousarray(components * signs[:, None]),
        variance=variance[:found].copy(),
        total=max(0.0, float(np.trace(covariance))),
    )


def project(fit: Components, vectors: Vectors) -> Matrix:
    """The unscaled scores (rows, k); each row's scores are independent of the other rows."""
    if vectors.ndim != 2 or vectors.shape[1] != len(fit.mean):
        raise DataError(
            f"semantic features: vectors of shape {vectors.shape}; the components were fitted on vectors of "
            f"{len(fit.mean)} numbers. Embed the rows with the encoder that the fit was made with."
        )
    scores = np.empty((len(vectors), len(fit.components)))
    for start, (block, rows) in zip(range(0, len(vectors), BLOCK_ROWS), _blocks(vectors), strict=True):
        scores[start : start + rows] = ((block - fit.mean) @ fit.components.T)[:rows]
    return scores


def _blocks(vectors: Vectors) -> Iterator[tuple[Matrix, int]]:
    """Blocks of equal size, the last padded with zeros, because matrix products of other sizes round differently."""
    for start in range(0, len(vectors), BLOCK_ROWS):
        part = vectors[start : start + BLOCK_ROWS]
        block = np.zeros((BLOCK_ROWS, vectors.shape[1]))
        block[: len(part)] = part
        yield block, len(part)

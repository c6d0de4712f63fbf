"""Principal components of row vectors, in float64: they reduce vectors of hundreds of numbers to 32.

    covariance = mean of (x - m)(x - m)^T = Q diag(variance) Q^T,   scores = (x - m) Q,   variances in falling order

A component's largest loading is positive, which fixes its sign. Directions whose variance is within the rounding of the
vectors are left out, so there may be fewer components; they are not padded. The paper pools 4096 numbers to 32 and does not
say how.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysift.errors import DataError
from raysift.kcenter.distances import Vectors

Matrix = NDArray[np.float64]

BLOCK_ROWS = 1024


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


def fit_components(vectors: Vectors, k: int) -> Components:
    """Fit at most k components; the same rows in the same order give the same fit."""
    if vectors.ndim != 2 or not len(vectors):
        raise DataError(f"semantic features: vectors of shape {vectors.shape}; expected at least one, as lines.")
    count, width = vectors.shape
    mean = np.sum([block.sum(axis=0) for block, _ in _blocks(vectors)], axis=0) / count
    covariance = np.zeros((width, width))
    for block, rows in _blocks(vectors):
        centred = block[:rows] - mean
        covariance += centred.T @ centred
    covariance /= count
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

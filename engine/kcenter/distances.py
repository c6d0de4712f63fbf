"""Squared Euclidean distances in two qualities: exact for a few pairs, fast with a known error for all of them.

*Exact* is `sum((x - c)^2)` in float64, pair by pair: the same bits for a pair in any batch, order, thread or process.
Equal vectors have distance exactly 0, and pairs that are equally far apart by symmetry tie exactly.

*Fast* is `|x|^2 + |c|^2 - 2 x.c` with the product in float32. Whatever the order in which a library sums, with u = 2^-24

    |fast - exact| <= (d/2 + 12) u (|x| + |c|)^2 (1 + 1 %)

for vectors of d numbers: |fl(x.c) - x.c| <= d u |x| |c| <= d u (|x| + |c|)^2 / 4, plus some five roundings of terms no
larger than (|x| + |c|)^2. So fast distances rule pairs out, and exact ones decide among the rest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysift.errors import DataError
from raysift.kcenter.products import multiply
from raysift.topk import Ids

Vectors = NDArray[np.float32]
Squares = NDArray[np.float64]
Places = NDArray[np.int64]

LONGEST = 1e18
"""Longest vector allowed: the square of twice its length must be a float32."""

_PAIRS_A_TIME = 4096
_FILTERED = 2**22  # fast distances in memory at once


def exact_squares(left: Vectors, rows: Places, right: Vectors, columns: Places) -> Squares:
    """Squared distances of the pairs (left[rows[i]], right[columns[i]])."""
    squares = np.empty(len(rows))
    for start in range(0, len(rows), _PAIRS_A_TIME):
        part = slice(start, start + _PAIRS_A_TIME)
        gap = left[rows[part]].astype(np.float64)
        gap -= right[columns[part]]
        gap *= gap
        squares[part] = gap.sum(axis=1)
    return squares


def nearest_squares(vectors: Vectors, rows: Places, centers: Vectors, error: Squares) -> Squares:
    """Exact smallest squared distance of each of the rows to any centre; fast distances choose the pairs to compute.

    `error` bounds the error of each row's fast distances.
    """
    squares = np.empty(len(rows))
    lengths = squared_lengths(centers).astype(np.float32)
    step = max(1, _FILTERED // len(centers))
    for start in range(0, len(rows), step):
        mine = rows[start : start + step]
        fast = lengths - 2 * (multiply(vectors[mine], centers))  # without |x|^2, the same for all centres of a row
        limit = fast.min(axis=1) + 2 * error[start : start + step]
        row, center = np.nonzero(fast <= limit[:, None])
        exact = exact_squares(vectors, mine[row], centers, center)
        squares[start : start + step] = np.minimum.reduceat(exact, np.searchsorted(row, np.arange(len(mine))))
    return squares


def squared_lengths(vectors: Vectors) -> Squares:
    """|x|^2 of every row in float64, computed for a bounded number of rows at a time."""
    lengths = np.empty(len(vectors))
    for start in range(0, len(vectors), _PAIRS_A_TIME):
        part = vectors[start : start + _PAIRS_A_TIME].astype(np.float64)
        lengths[start : start + _PAIRS_A_TIME] = np.einsum("nd,nd->n", part, part)
    return lengths


def error_factor(dimension: int) -> float:
    """Factor by which (|x| + |c|)^2 is multiplied for the error bound of a fast distance."""
    return 1.01 * (dimension / 2 + 12) * 2.0**-24


def error_floor(dimension: int) -> float:
    """Term added to the error bound for numbers so small that a float32 cannot hold their products."""
    return (4 * dimension + 32) * 2.0**-126


def as_points(ids: ArrayLike, vectors: ArrayLike, metric: str) -> tuple[Ids, Vectors]:
    """Ids and float32 vectors, checked; vectors have length 1 for metric `cosine`. Copies only if necessary."""
    id_array, rows = np.ascontiguousarray(ids), np.ascontiguousarray(vectors, np.float32)
    if rows.ndim != 2 or id_array.shape != rows.shape[:1]:
        raise DataError(
            f"coverage: ids of shape {id_array.shape} with vectors of shape {rows.shape}; expected one id a row."
        )
    if len(id_array) and id_array.dtype.kind not in "iu":
        raise DataError(f"coverage: ids are {id_array.dtype}, expected whole numbers of 64 bits.")
    id_array = id_array.astype(np.int64, copy=False)
    lengths = squared_lengths(rows)
    bad = ~(lengths <= LONGEST**2)  # also true of NaN
    if bad.any():
        raise DataError(
            f"coverage: {int(bad.sum())} of {len(bad)} vectors hold NaN or infinity, or are longer than {LONGEST:g} "
            f"(ids {id_array[bad][:5].tolist()} ...). Set these rows aside with a reason, or scale the vectors down."
        )
    if metric == "cosine":
        rows = _unit_rows(id_array, rows, lengths)
    elif metric != "euclidean":
        raise DataError(f"coverage: metric '{metric}' is unknown. Known: cosine, euclidean.")
    return id_array, rows


def _unit_rows(ids: Ids, vectors: Vectors, lengths: Squares) -> Vectors:
    zero = lengths == 0
    if zero.any():
        raise DataError(
            f"coverage: {int(zero.sum())} vectors are zero (ids {ids[zero][:5].tolist()} ...) and have no direction. "
            "Use metric: euclidean, or set these rows aside."
        )
    units = np.empty_like(vectors)
    for start in range(0, len(vectors), _PAIRS_A_TIME):
        part = slice(start, start + _PAIRS_A_TIME)
        units[part] = vectors[part].astype(np.float64) / np.sqrt(lengths[part])[:, None]
    return units

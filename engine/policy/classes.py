"""Classes of rows, and how many rows of a batch each of them gives.

K-means runs on the semantic scores before they are brought to one scale, so that what sets rows apart most decides. The
paper clusters by K-means and tells neither the space nor what a class gives that has too few rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysift.errors import DataError

Points = NDArray[np.float32]
Classes = NDArray[np.int32]

ITERATIONS = 25
STARTS = 3


def fit_classes(points: Points, classes: int, seed: int) -> Points:
    """The centroids in lexicographic order; fewer than asked where there are fewer different points.

    The points must come in one order always (that of their ids) for the centroids to be the same always.
    """
    if classes < 1 or points.ndim != 2 or not len(points):
        raise DataError(f"classes: {classes} asked of points of shape {points.shape}; expected at least one of each.")
    if classes == 1 or not points.shape[1]:
        return np.asarray(points.mean(axis=0, dtype=np.float64, keepdims=True), np.float32)
    different = np.unique(points, axis=0)
    if len(different) <= classes:
        return different

    rng = np.random.default_rng(seed)
    starts = [_spread(points, classes, rng) for _ in range(STARTS)]
    with _one_thread():
        fits = [_refine(points, start) for start in starts]
    return np.unique(min(fits, key=lambda fit: fit[0])[1], axis=0)


def assign(points: Points, centroids: Points) -> Classes:
    """The nearest centroid of each point, the lower one of equally near ones; each point is judged by itself."""
    if points.ndim != 2 or points.shape[1] != centroids.shape[1]:
        raise DataError(
            f"classes: points of shape {points.shape}, centroids of {centroids.shape[1]} numbers; expected the same."
        )
    nearest, least = np.zeros(len(points), np.int32), np.full(len(points), np.inf)
    for number, centroid in enumerate(centroids.astype(np.float64)):
        squares = ((points - centroid) ** 2).sum(axis=1)
        nearer = squares < least
        nearest[nearer], least[nearer] = number, squares[nearer]
    return nearest


def class_quotas(sizes: ArrayLike, batch: int) -> list[int]:
    """How many rows of a batch each class gives, from the rows it has to give.

    Equal shares; what does not divide goes, a row each, to the classes with most rows, of equal ones the lower first. A
    class with fewer rows than its share gives all, and what it lacks is shared by the others in the same way. The sum is
    the batch, or all rows where there are fewer.
    """
    rows = np.asarray(sizes, np.int64)
    if rows.ndim != 1 or (rows < 0).any() or batch < 0:
        raise DataError(
            f"classes: a batch of {batch} from classes of {rows.tolist()} rows; expected no number below 0."
        )
    quotas = np.zeros_like(rows)
    by_size = np.lexsort((np.arange(len(rows)), -rows))
    left = min(batch, int(rows.sum()))
    while left:
        able = by_size[rows[by_size] > quotas[by_size]][:left]  # of fewer rows than classes, one row each
        given = np.minimum(left // len(able), rows[able] - quotas[able])
        quotas[able] += given
        left -= int(given.sum())
    return [int(quota) for quota in quotas]


def _spread(points: Points, count: int, rng: np.random.Generator) -> Points:
    """Points to start from, each drawn by its squared distance from those before it (k-means++)."""
    places = [int(rng.integers(len(points)))]
    squares = np.full(len(points), np.inf)
    while len(places) < count:
        squares = np.minimum(squares, ((points - points[places[-1]].astype(np.float64)) ** 2).sum(axis=1))
        below = np.cumsum(squares)
        drawn = np.searchsorted(below, rng.random() * below[-1], side="right")
        places.append(min(int(drawn), len(points) - 1))
    return points[places]


def _refine(points: Points, start: Points) -> tuple[float, Points]:
    """What remains of the squared distances, and the centroids."""
    import faiss

    kmeans = faiss.Kmeans(
        points.shape[1],
        len(start),
        niter=ITERATIONS,
        min_points_per_centroid=1,
        max_points_per_centroid=len(points),  # the caller has sampled already
    )
    rest = kmeans.train(np.ascontiguousarray(points, np.float32), init_centroids=np.ascontiguousarray(start))
    return float(rest), np.asarray(kmeans.centroids, np.float32)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """With more, sums are taken in another order on another machine."""
    import faiss

    usual = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(usual)

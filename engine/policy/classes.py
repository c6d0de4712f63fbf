"""Classes of rows, and how many rows each class gives to a batch.

K-means runs on the unscaled semantic scores, so the directions in which rows differ most decide. The paper clusters by
K-means, but states neither the space nor what happens when a class has too few rows.
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
    """The centroids in lexicographic order; fewer than `classes` if there are fewer distinct points.

    Pass the points in a fixed order (that of their ids): the centroids depend on it.
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
    """The nearest centroid of each point; ties go to the lower number. Points do not influence each other."""
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
    """How many rows each class gives to a batch, from the number of rows in each class.

    Shares are equal. The remainder goes, one row each, to the largest classes; ties go to the lower number. A class with
    fewer rows than its share gives all of them, and the other classes share the rest in the same way. The quotas sum to
    `batch`, or to the number of rows if that is smaller.
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
        able = by_size[rows[by_size] > quotas[by_size]][:left]  # with fewer rows left than classes, one row each
        given = np.minimum(left // len(able), rows[able] - quotas[able])
        quotas[able] += given
        left -= int(given.sum())
    return [int(quota) for quota in quotas]


def _spread(points: Points, count: int, rng: np.random.Generator) -> Points:
    """Starting points by k-means++: each is drawn with probability proportional to its squared distance to those before."""
    places = [int(rng.integers(len(points)))]
    squares = np.full(len(points), np.inf)
    while len(places) < count:
        squares = np.minimum(squares, ((points - points[places[-1]].astype(np.float64)) ** 2).sum(axis=1))
        below = np.cumsum(squares)
        drawn = np.searchsorted(below, rng.random() * below[-1], side="right")
        places.append(min(int(drawn), len(points) - 1))
    return points[places]


def _refine(points: Points, start: Points) -> tuple[float, Points]:
    """The sum of squared distances after K-means from `start`, and the centroids."""
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
    """Run faiss on one thread: with more, the order of summation depends on the machine."""
    import faiss

    usual = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(usual)

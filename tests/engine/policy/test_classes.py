"""K-means finds planted groups, the same way always; quotas give the batch away whatever the classes hold."""

import sys

import faiss
import numpy as np
import pytest

from raysift.errors import DataError
from raysift.policy.classes import assign, class_quotas, fit_classes


def groups(count=4, each=100, k=6):
    rng = np.random.default_rng(0)
    centers = 8 * rng.standard_normal((count, k))
    kind = rng.permutation(np.repeat(np.arange(count), each))
    return (centers[kind] + rng.standard_normal((len(kind), k))).astype(np.float32), kind


def test_planted_groups_are_found():
    points, kind = groups()
    centroids = fit_classes(points, 4, 0)
    found = assign(points, centroids)
    assert len(set(zip(found.tolist(), kind.tolist(), strict=True))) == 4
    for number in range(4):
        np.testing.assert_allclose(centroids[number], points[found == number].mean(axis=0), atol=1e-4)


def test_the_same_seed_gives_the_same_centroids_on_any_number_of_threads():
    points = np.random.default_rng(1).standard_normal((3000, 5)).astype(np.float32)
    usual = faiss.omp_get_max_threads()
    try:
        fits = []
        for threads in (1, 2, 5):
            faiss.omp_set_num_threads(threads)
            fits.append(fit_classes(points, 8, 3))
            assert faiss.omp_get_max_threads() == threads
    finally:
        faiss.omp_set_num_threads(usual)
    assert all(np.array_equal(fit, fits[0]) for fit in fits)
    assert fits[0].tolist() == sorted(fits[0].tolist())


def test_all_points_count_and_kmeans_comes_near_a_plain_one():
    points, _ = groups(7, 400)
    found = fit_classes(points, 7, 0)
    loss = ((points - found[assign(points, found)]) ** 2).sum(axis=1).mean()
    assert loss == pytest.approx(6, rel=0.1)  # six coordinates of variance 1 around each planted centre


def test_one_class_needs_no_faiss(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    points, _ = groups()
    centroids = fit_classes(points, 1, 0)
    np.testing.assert_allclose(centroids, points.mean(axis=0, keepdims=True), atol=1e-5)
    assert set(assign(points, centroids).tolist()) == {0}


def test_fewer_different_points_than_classes_give_fewer_classes():
    points = np.float32([[2, 0], [1, 0], [2, 0], [1, 0]])
    assert fit_classes(points, 5, 0).tolist() == [[1, 0], [2, 0]]
    assert fit_classes(np.empty((9, 0), np.float32), 5, 0).shape == (1, 0)


def test_of_equally_near_centroids_the_lower_one():
    centroids = np.float32([[-1, 0], [1, 0], [1, 0]])
    assert assign(np.float32([[0, 5], [2, 1], [-2, 1]]), centroids).tolist() == [0, 1, 0]
    assert assign(np.empty((0, 2), np.float32), centroids).tolist() == []
    with pytest.raises(DataError, match="points of shape"):
        assign(np.float32([[1.0]]), centroids)


@pytest.mark.parametrize(
    ("sizes", "batch", "quotas"),
    [
        ([50, 50, 50, 50], 8, [2, 2, 2, 2]),
        ([50], 8, [8]),
        ([10, 30, 20], 8, [2, 3, 3]),  # the two rows that remain go to the largest
        ([20, 20, 20], 8, [3, 3, 2]),
        ([1, 50, 50], 9, [1, 4, 4]),
        ([1, 2, 50], 10, [1, 2, 7]),
        ([0, 3, 0, 9], 8, [0, 3, 0, 5]),
        ([2, 3], 8, [2, 3]),
        ([5, 5], 1, [1, 0]),
        ([5, 9], 0, [0, 0]),
        ([], 4, []),
    ],
)
def test_quotas(sizes, batch, quotas):
    assert class_quotas(sizes, batch) == quotas


def test_quotas_give_all_that_can_be_given_as_evenly_as_can_be():
    rng = np.random.default_rng(0)
    for _ in range(500):
        sizes, batch = rng.integers(0, 12, rng.integers(1, 9)), int(rng.integers(0, 60))
        quotas = np.array(class_quotas(sizes, batch))
        assert quotas.sum() == min(batch, sizes.sum())
        assert (quotas <= sizes).all()
        can_give_more = quotas[quotas < sizes]
        if len(can_give_more):  # none gives more than one row beyond a class that has rows left
            assert quotas.max() <= can_give_more.min() + 1


def test_numbers_below_zero_are_refused():
    with pytest.raises(DataError, match="expected no number below 0"):
        class_quotas([3, -1], 4)
    with pytest.raises(DataError, match="0 asked"):
        fit_classes(np.zeros((3, 2), np.float32), 0, 0)

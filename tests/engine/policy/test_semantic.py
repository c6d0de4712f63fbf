"""Principal components against a singular value decomposition of all rows at once."""

import numpy as np
import pytest

from raysift.errors import DataError
from raysift.policy.semantic import BLOCK_ROWS, MOST_ROWS, Range, Sums, components_of, fit_components, project


def cloud(rows, width=12, seed=0):
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((width, width)) * 0.7 ** np.arange(width)[:, None]
    return (rng.standard_normal((rows, width)) @ mixing + 3).astype(np.float32)


@pytest.mark.parametrize("rows", [40, BLOCK_ROWS, 2 * BLOCK_ROWS + 7])
def test_components_are_the_right_singular_vectors(rows):
    vectors = cloud(rows)
    fit = fit_components(vectors, 5)
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    _, lengths, right = np.linalg.svd(centred, full_matrices=False)
    right *= np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])[:, None]
    assert fit.components.shape == (5, 12)
    np.testing.assert_allclose(fit.components, right[:5], atol=1e-8)
    np.testing.assert_allclose(fit.variance, lengths[:5] ** 2 / rows, rtol=1e-9)
    np.testing.assert_allclose(fit.explained, (lengths**2 / (lengths**2).sum())[:5], rtol=1e-9)
    np.testing.assert_allclose(project(fit, vectors), centred @ right[:5].T, atol=1e-8)


def test_scores_are_centred_uncorrelated_and_of_the_variance_told():
    vectors = cloud(500)
    fit = fit_components(vectors, 4)
    scores = project(fit, vectors)
    np.testing.assert_allclose(scores.T @ scores / 500, np.diag(fit.variance), atol=1e-9)
    np.testing.assert_allclose(scores.mean(axis=0), 0, atol=1e-9)
    assert (np.diff(fit.variance) <= 0).all()


def test_the_sign_is_that_of_the_largest_loading():
    for vectors in (cloud(200), -cloud(200)):
        components = fit_components(vectors, 6).components
        assert (components[np.arange(6), np.abs(components).argmax(axis=1)] > 0).all()


def test_there_are_no_more_components_than_directions():
    flat = cloud(300, 3) @ np.random.default_rng(1).standard_normal((3, 20)).astype(np.float32)
    assert fit_components(flat, 32).components.shape == (3, 20)
    assert fit_components(cloud(300, 6), 32).components.shape == (6, 6)
    assert fit_components(cloud(4), 32).components.shape == (3, 12)
    same = fit_components(np.tile(cloud(1), (9, 1)), 32)
    assert same.components.shape == (0, 12) and same.explained.tolist() == []
    assert project(same, cloud(5)).shape == (5, 0)


def test_a_score_does_not_depend_on_the_rows_beside():
    vectors = cloud(BLOCK_ROWS + 100, 64)
    fit = fit_components(vectors, 16)
    whole, order = project(fit, vectors), np.random.default_rng(2).permutation(len(vectors))
    parts = np.concatenate([project(fit, vectors[part]) for part in np.array_split(order, 7)])
    assert np.array_equal(parts, whole[order])


def test_vectors_of_another_width_are_refused():
    with pytest.raises(DataError, match="fitted on vectors of 12 numbers"):
        project(fit_components(cloud(30), 3), cloud(30, 8))
    with pytest.raises(DataError, match="expected at least one"):
        fit_components(np.empty((0, 4), np.float32), 2)


def test_sums_are_exact_whatever_order_and_parts_they_are_added_in():
    vectors = cloud(3000, 8) * np.float32(10.0) ** np.arange(-3, 5, dtype=np.float32)
    whole, rng = fit_components(vectors, 5), np.random.default_rng(3)
    for parts in (2, 7):
        shares = np.array_split(rng.permutation(len(vectors)), parts)
        grid = Range.joined(Range.of(vectors[share]) for share in shares)
        total, *rest = (Sums.of(grid, vectors[share]) for share in shares)
        for products in total.products:
            products.flags.writeable = False  # as they come out of Ray's object store
        for part in rest:
            total.add(part)
        found = components_of(total, 5)
        for name in ("mean", "components", "variance", "total"):
            assert np.array_equal(getattr(found, name), getattr(whole, name)), name


def test_more_rows_than_sums_can_hold_are_refused():
    total = Sums.of(Range.of(cloud(3)), cloud(3))
    total.count = MOST_ROWS
    with pytest.raises(DataError, match="Lower fit_rows"):
        total.add(Sums.of(total.grid, cloud(3)))

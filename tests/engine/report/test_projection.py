"""The map's plane is that of numpy's SVD, in whatever chunks the vectors come, and every row lies in one cell."""

import numpy as np
import pytest

from raysift.report.projection import density_of, edges, extent, fit_plane


def vectors(rows, width, seed=0):
    rng = np.random.default_rng(seed)
    return np.float32(rng.standard_normal((rows, width)) * np.linspace(3, 0.5, width) + 100)


@pytest.mark.parametrize(("rows", "width"), [(300, 8), (40, 64), (5, 2)])
def test_the_plane_is_that_of_a_singular_value_decomposition(rows, width):
    points = vectors(rows, width)
    plane = fit_plane([points[: rows // 3], points[rows // 3 :]])
    centred = points.astype(np.float64) - points.mean(axis=0, dtype=np.float64)
    _, lengths, directions = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(plane.explained, (lengths**2 / (lengths**2).sum())[:2], rtol=1e-8)
    np.testing.assert_allclose(np.abs(plane.axes @ directions[:2].T), np.eye(2), atol=1e-6)
    assert (plane.axes[np.arange(2), np.abs(plane.axes).argmax(axis=1)] > 0).all()
    np.testing.assert_allclose(plane.place(points), centred @ plane.axes.T, rtol=2e-6, atol=1e-9)


def test_chunks_and_their_order_change_no_position():
    points = vectors(500, 12)
    whole = fit_plane([points]).place(points)
    for size in (1, 7, 100):
        parts = [points[start : start + size] for start in range(0, 500, size)]
        np.testing.assert_allclose(fit_plane(parts[::-1]).place(points), whole, rtol=2e-6)


def test_one_number_one_row_and_equal_rows_have_a_place():
    for points in (np.ones((4, 1)), np.ones((1, 5)), np.ones((6, 3)), np.arange(4.0)[:, None]):
        plane = fit_plane([points])
        assert plane.place(points).shape == (len(points), 2)
        assert 0 <= plane.explained[1] <= plane.explained[0] <= 1
    assert fit_plane([]) is None
    assert fit_plane([np.empty((0, 3))]) is None


def test_every_row_is_counted_once_also_those_at_the_rim():
    points = fit_plane([vectors(700, 6)]).place(vectors(700, 6))
    parts = [points[:300], points[300:]]
    found = density_of(parts, *extent(parts), bins=16)
    assert found.counts.sum() == 700
    row = points[0]
    x, y = (np.searchsorted(side, value, side="right") - 1 for side, value in ((found.x, row[0]), (found.y, row[1])))
    assert found.counts[min(y, 15), min(x, 15)] > 0
    assert (np.diff(edges(2.0, 2.0, 4)) > 0).all()

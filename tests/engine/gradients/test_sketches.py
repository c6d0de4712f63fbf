"""Sketches: products near the true cosines, the same for the same vector, and in bounded memory for any number of members."""

import numpy as np
import pytest

from raysift.gradients.sketches import MOST_NUMBERS, NARROWEST, SLICE, WIDEST, Sketcher, cosines_with_sum, sketch_width


def units(count, size, seed=0):
    rng = np.random.default_rng(seed)
    found = rng.standard_normal((count, size)) + rng.standard_normal(size)
    return np.float32(found / np.linalg.norm(found, axis=1, keepdims=True))


@pytest.mark.parametrize("size", [500, SLICE + 1000])
def test_products_of_sketches_are_cosines_within_their_error(size):
    vectors, sketch = units(6, size), Sketcher(6)
    small = np.stack([sketch(one) for one in vectors])
    assert small.shape == (6, WIDEST)
    np.testing.assert_allclose(small @ small.T, vectors @ vectors.T, atol=5 / np.sqrt(WIDEST))
    np.testing.assert_array_equal(Sketcher(6)(vectors[3]), small[3])


def test_a_sketch_leaves_the_vector_as_it_is():
    vector = units(1, 300)[0]
    before = vector.copy()
    Sketcher(1)(vector)
    np.testing.assert_array_equal(vector, before)


def test_cosines_with_the_sum_are_those_of_the_vectors_themselves():
    vectors, weights = units(5, 40), np.array([1.0, 2.0, 0.5, 1.0, 3.0])
    total = weights @ vectors.astype(np.float64)
    wanted = vectors @ total / np.linalg.norm(total)
    np.testing.assert_allclose(cosines_with_sum(vectors, weights), wanted, rtol=1e-6)
    assert cosines_with_sum(np.float32([[1, 0], [-1, 0]]), np.ones(2)).tolist() == [0, 0]


def test_memory_of_all_sketches_is_bounded():
    assert sketch_width(1) == sketch_width(128) == WIDEST
    for members in (20_000, 100_000, 1_000_000):
        assert sketch_width(members) * members <= MOST_NUMBERS
    assert sketch_width(10**9) == NARROWEST

"""Sums in float32 that lose no more than their last rounding, with sums in float64 as reference."""

from __future__ import annotations

import numpy as np
import pytest

from raysift.gradients.sums import SLICE, CompensatedSum


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 1e-6), (1e-4, 1e4)])
def test_sums_in_float32_are_those_in_float64_but_for_the_last_rounding(scales: tuple[float, ...]) -> None:
    rng, width = np.random.default_rng(0), SLICE + 7
    summed, plain, exact = CompensatedSum(width, np.dtype(np.float32)), np.zeros(width, np.float32), np.zeros(width)
    for number in range(300):
        vector = ((rng.standard_normal(width) + 0.5) * scales[number % len(scales)]).astype(np.float32)
        summed.add(vector)
        plain += vector
        exact += vector
    found = summed.total()
    assert found.dtype == np.float32
    # Half a unit in the last place is 6e-8 of a number; sums near zero lose by what their parts were rounded to.
    allowed = 6.1e-8 * np.abs(exact) + 1e-12 * max(scales)
    assert (np.abs(found - exact) <= allowed).all()
    assert (np.abs(plain - exact) > allowed).mean() > 0.5

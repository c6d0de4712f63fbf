"""Sums of long vectors whose rounding does not grow with their number."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SLICE = 2**15
"""Numbers added at once: seven passes over so few stay in the processor's cache."""


class CompensatedSum:
    """The sum of vectors in their own precision, with what rounding took from it beside it (Neumaier, after Knuth's TwoSum).

        s = a + x,  z = s - a,  e = (a - (s - z)) + (x - z)        s + e = a + x exactly

    The errors e add up apart and come back at the end, so the result is the exact sum but for its last rounding, unless the sum
    is smaller than its parts by more than their precision. It takes as much memory as a sum in twice the precision, and a
    third of the time, as nothing is converted.
    """

    def __init__(self, width: int, dtype: np.dtype[np.floating]) -> None:
        self._sum = np.zeros(width, dtype)
        self._lost = np.zeros(width, dtype)
        self._scratch = np.empty((4, min(width, SLICE)), dtype)

    def add(self, vector: NDArray[np.floating]) -> None:
        """Adds one vector."""
        for start in range(0, len(vector), SLICE):
            x, a = vector[start : start + SLICE], self._sum[start : start + SLICE]
            s, z, e, f = (row[: len(x)] for row in self._scratch)
            np.add(a, x, out=s)
            np.subtract(s, a, out=z)
            np.subtract(s, z, out=e)
            np.subtract(a, e, out=e)
            np.subtract(x, z, out=f)
            e += f
            self._lost[start : start + SLICE] += e
            a[:] = s

    def total(self) -> NDArray[np.floating]:
        """The sum; nothing can be added afterwards."""
        self._sum += self._lost
        return self._sum

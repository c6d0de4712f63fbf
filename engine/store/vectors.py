"""A row's direction as the store keeps it: the unit vector in half precision, or only the signs of its numbers.

    unit vector      t = x / |x|                 16 bits per number, <t, v> off by about 1.00 / sqrt(d)
    signs            t = sqrt(pi / 2d) sign(x)    1 bit   per number, <t, v> off by about 1.25 / sqrt(d)

Signs need numbers of similar spread, as in a rotated sketch (`rotation`): then E <t, v> is the cosine of x and v times
|v|, as for the unit vector. The same bytes hold sixteen times the numbers, so the error is 3.2 times smaller. With
another batch size, a number that is zero up to rounding may change its sign (among nano rows, one in a hundred had one
such number), which changes the row's score by about 1e-5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysift.errors import DataError
from raysift.settings.gradients import ProjectionSettings

Array = NDArray[np.floating]
Stored = NDArray[Any]
"""Rows as stored in a shard; uint8 means signs, eight numbers per byte, the first in the highest bit."""

_SMALLEST_NORM = 1e-30


@dataclass(frozen=True)
class VectorForm:
    """The format of a projection's vectors on disk."""

    dimension: int
    signs: bool = False

    @classmethod
    def of(cls, projection: ProjectionSettings, width: int) -> VectorForm:
        """The form of a projection's vectors, which are `width` numbers long."""
        return cls(width, projection.kind == "signs")

    @property
    def dtype(self) -> np.dtype:
        return np.dtype("u1" if self.signs else "<f2")

    @property
    def items(self) -> int:
        """Elements of `dtype` per row."""
        return self.dimension // 8 if self.signs else self.dimension

    @property
    def bytes(self) -> int:
        """Bytes per row and checkpoint."""
        return self.items * self.dtype.itemsize

    def pack(self, vectors: Array) -> Stored:
        """Converts row vectors of any norm to the stored form; refuses rows without a direction."""
        units, _ = unit_rows(vectors)
        return np.packbits(vectors > 0, axis=1) if self.signs else units.astype(self.dtype)


def unit_rows(vectors: Array, dtype: type[np.floating] = np.float16) -> tuple[Array, NDArray[np.float32]]:
    """Rows at length 1, and their lengths. Scales before the cast, so small gradients survive half precision."""
    norms = np.linalg.norm(vectors.astype(np.float64, copy=False), axis=1)
    bad = ~np.isfinite(norms) | (norms < _SMALLEST_NORM)
    if bad.any():
        raise DataError(
            f"store: {int(bad.sum())} of {len(bad)} row vectors are zero or not finite, first at "
            f"{int(np.argmax(bad))}. "
            "They have no direction and must be set aside with a reason."
        )
    return (vectors / norms[:, None]).astype(dtype), norms.astype(np.float32)


def dimension_of(stored: Stored) -> int:
    """How many numbers each row represents."""
    return int(stored.shape[1]) * (8 if stored.dtype == np.uint8 else 1)

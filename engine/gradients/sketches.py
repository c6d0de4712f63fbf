"""Small projections of each pair's or example's gradient, by which they are compared later without their gradients.

A sketch is a random-sign projection of the unit gradient (`raysift.store.projection`, one seed for all), so the product of two
estimates their cosine, with an error of about 1 / sqrt(width). All members share a bounded amount of memory: with very many
of them, sketches get narrower.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from raysift.settings.gradients import ProjectionSettings
from raysift.store.projection import ParameterLayout, Projection

MOST_NUMBERS = 2**24  # of all members' sketches at a checkpoint: 64 MiB
WIDEST, NARROWEST = 1024, 16
SLICE = 2**18  # numbers of a gradient that are projected at once

Sketches = NDArray[np.float32]


def sketch_width(members: int) -> int:
    """Numbers of each sketch: a power of two that does not depend on the gradients."""
    width = WIDEST
    while width > NARROWEST and width * members > MOST_NUMBERS:
        width //= 2
    return width


class Sketcher:
    """Projects vectors of one length."""

    def __init__(self, members: int) -> None:
        self.width = sketch_width(members)
        self._projection: Projection | None = None

    def __call__(self, unit: NDArray[np.floating]) -> Sketches:
        """The sketch of one vector."""
        if self._projection is None:
            sizes = [min(SLICE, len(unit) - start) for start in range(0, len(unit), SLICE)]
            layout = ParameterLayout(tuple(map(str, range(len(sizes)))), tuple((size,) for size in sizes))
            self._projection = Projection(ProjectionSettings(kind="sketch", dimension=self.width), layout)
        found = torch.zeros(1, self.width)
        for index, start in enumerate(range(0, len(unit), SLICE)):
            part = torch.from_numpy(np.ascontiguousarray(unit[start : start + SLICE], np.float32)).clone()
            self._projection.add(found, index, part[None])
        return found[0].numpy()


def cosines_with_sum(sketches: Sketches, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The cosine of each vector with the weighted sum of all of them, its own share included."""
    wide = sketches.astype(np.float64)
    total = weights @ wide
    lengths = np.linalg.norm(wide, axis=1) * np.linalg.norm(total)
    found: NDArray[np.float64] = np.divide(wide @ total, lengths, out=np.zeros(len(wide)), where=lengths > 0)
    return found

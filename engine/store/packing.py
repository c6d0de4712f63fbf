"""Vectors that leave their device as the store keeps them: packed there, so that the host neither receives nor packs numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from raysift.store.projection import Projection
from raysift.store.vectors import VectorForm


class PackedProjection:
    """A sink of row gradients whose results have the form of the store (see `VectorForm.pack`)."""

    def __init__(self, projection: Projection, form: VectorForm) -> None:
        self.projection = projection
        self.form = form
        self.width = projection.width

    def add(self, accumulator: Tensor, index: int, gradients: Tensor) -> None:
        """Adds the projection of tensor `index`, as `Projection.add` does."""
        self.projection.add(accumulator, index, gradients)

    def finish(self, accumulator: Tensor) -> Tensor:
        """The packed rows; of a row without direction they mean nothing."""
        vectors = self.projection.finish(accumulator)
        return pack_signs(vectors) if self.form.signs else half_units(vectors)


def pack_signs(vectors: Tensor) -> Tensor:
    """One bit for each number, 1 where it is positive; eight a byte, the first in the highest bit, as numpy packs them."""
    powers = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=vectors.device)
    bits = (vectors > 0).view(len(vectors), -1, 8)
    return (bits * powers).sum(2, dtype=torch.uint8)


def half_units(vectors: Tensor) -> Tensor:
    """Rows at length 1 in half precision. Scaled before the cast, so small gradients survive it."""
    units: Tensor = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return units.half()

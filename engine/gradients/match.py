"""Exact cosines without a store: with targets known beforehand, dot products and norms add up layer by layer."""

from __future__ import annotations

import torch
from torch import Tensor

from raysift.errors import DataError
from raysift.store.projection import ParameterLayout


class ExactMatch:
    """Replaces a projection: a row's result is its cosine-like score against each target, not a vector.

    `targets` is (subtasks, layout.total), as `preference` computes it without projection. A mean of unit rows keeps its
    length on purpose: coherent subtasks give larger scores. Memory: one full gradient per target on each device used.
    """

    def __init__(self, targets: Tensor, layout: ParameterLayout) -> None:
        if targets.dim() != 2 or targets.shape[1] != layout.total:
            raise DataError(
                f"match: targets have shape {tuple(targets.shape)}, expected (subtasks, {layout.total}). "
                "Compute them with projection kind 'none' on the same adapter."
            )
        if not bool(torch.isfinite(targets).all()):
            raise DataError("match: target gradients hold NaN or infinite values.")
        self.layout = layout
        self.width = len(targets) + 1  # the last column gathers the squared norm
        self._parts = list(torch.split(targets, list(layout.sizes), dim=1))

    def add(self, accumulator: Tensor, index: int, gradients: Tensor) -> None:
        """Adds one tensor's share of every dot product and of the squared norm."""
        part = self._parts[index]
        if part.device != gradients.device or part.dtype != gradients.dtype:
            part = self._parts[index] = part.to(device=gradients.device, dtype=gradients.dtype)
        accumulator[:, :-1].addmm_(gradients, part.T)
        accumulator[:, -1].add_(gradients.square().sum(1))

    def finish(self, accumulator: Tensor) -> Tensor:
        """Dot products over the row's norm, (rows, subtasks)."""
        return accumulator[:, :-1] / accumulator[:, -1:].sqrt()

"""Exact cosines without a store: with targets known beforehand, dot products and norms add up layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

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
        _check(targets, layout)
        for row in targets:
            _check_finite(row)
        self.layout = layout
        self.width = len(targets) + 1  # the last column gathers the squared norm
        self._parts = split_by_layer(targets, layout)

    @classmethod
    def to_fill(cls, subtasks: int, layout: ParameterLayout, devices: Sequence[torch.device]) -> ExactMatch:
        """A match whose targets come later, and change: one device per tensor of the layout."""
        made = cls(torch.empty(0, layout.total), layout)
        made.width = subtasks + 1
        made._parts = [torch.empty(subtasks, size, device=on) for size, on in zip(layout.sizes, devices, strict=True)]
        return made

    def fill(self, targets: Tensor) -> int:
        """Match with these targets from now on; returns the bytes copied. Rows are read one by one, as they lie in a file."""
        _check(targets, self.layout)
        for number, row in enumerate(targets):
            sent = {on: row.to(on) for on in dict.fromkeys(part.device for part in self._parts)}
            _check_finite(next(iter(sent.values())))
            for part, offset, size in zip(self._parts, self.layout.offsets, self.layout.sizes, strict=True):
                part[number].copy_(sent[part.device][offset : offset + size])
        return targets.nbytes

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


def split_by_layer(targets: Tensor, layout: ParameterLayout) -> list[Tensor]:
    """Views of the targets, one for each tensor of the layout."""
    return list(torch.split(targets, list(layout.sizes), dim=1))


def _check(targets: Tensor, layout: ParameterLayout) -> None:
    if targets.dim() != 2 or targets.shape[1] != layout.total:
        raise DataError(
            f"match: targets have shape {tuple(targets.shape)}, expected (subtasks, {layout.total}). "
            "Compute them with projection kind 'none' on the same adapter."
        )


def _check_finite(row: Tensor) -> None:
    if not bool(torch.isfinite(row).all()):
        raise DataError("match: target gradients hold NaN or infinite values.")

"""Finds which new centres can matter to which rows, by the triangle inequality over early centres, the pivots.

Rows form groups by their nearest pivot p. With rho_i the distance of row i to p, D_i its squared distance to the nearest
centre so far, and d the distance of a new centre to p: the centre is at least d - rho_i from the row, so if
d >= rho_i + sqrt(D_i), it is no nearer than sqrt(D_i). The largest such sum in a group is its *reach*.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysift.kcenter.distances import Vectors, squared_lengths
from raysift.kcenter.products import multiply

SLACK = 1e-5
"""Margin on each triangle-inequality bound: far more than rounding needs, too little to add visible work."""


class Groups:
    """Rows grouped by pivot: `group` is the number of each row's pivot, `rho` an upper bound of its distance to it."""

    def __init__(self, pivots: Vectors, group: Any, rho: Any) -> None:
        import torch

        self._torch = torch
        self._pivots, self._lengths = pivots.astype(np.float64), squared_lengths(pivots)
        self.group, self.rho = group, rho
        self.sizes = np.bincount(group.cpu().numpy(), minlength=len(pivots))

    def reordered(self, order: Any) -> Groups:
        """These groups for rows in another order."""
        return Groups(self._pivots.astype(np.float32), self.group[order], self.rho[order])

    @property
    def bounds(self) -> list[int]:
        """Start of each group, and the end of the last, when rows are sorted by group."""
        return [0, *np.cumsum(self.sizes).tolist()]

    def matter(self, centers: Vectors, high: Any) -> NDArray[np.bool_]:
        """Table (groups, centres) of which can matter; `high` bounds each row's D_i from above (chosen rows: -inf)."""
        sums = self.rho + high.clamp(min=0).sqrt()
        reach = self._torch.zeros(len(self.sizes), device=sums.device)
        reach.scatter_reduce_(0, self.group, sums, "amax")
        wide = reach.cpu().numpy().astype(np.float64) * (1 + SLACK)
        return np.asarray(self.distances(centers) < wide[:, None])

    def share(self, centers: Vectors, high: Any) -> float:
        """Share of the products of rows and centres that would still be computed."""
        return float(self.sizes @ self.matter(centers, high).mean(axis=1) / self.sizes.sum())

    def distances(self, centers: Vectors) -> NDArray[np.float64]:
        """Lower bounds of the distances between pivots and centres, (pivots, centres)."""
        lengths = squared_lengths(centers)
        squares = self._lengths[:, None] + lengths - 2 * multiply(self._pivots, centers.astype(np.float64))
        # The subtraction leaves an error of about 1e-16 of the lengths, however near the two are.
        rounding = 1e-12 * (self._lengths[:, None] + lengths)
        return np.asarray(np.sqrt(np.maximum(squares - rounding, 0)))

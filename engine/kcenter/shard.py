"""One shard of the points of a k-center: tracks each row's distance to the nearest centre and finds the farthest rows.

Per row it keeps the *fast* (float32, see `distances.py`) squared distance to the nearest centre, the number of that
centre, and the runner-up among the other passes. A pass is one matrix product of all rows with a batch of new centres,
block by block into reused buffers. The few rows that may be among the farthest get their exact distance: if the
runner-up is farther off than the error, only the centres of one pass have to be checked again.

Products that cannot matter are not computed:
- *near rows*: new centres are at least r away from all centres before them, so a row whose distance so far is at most
  r/2 keeps it;
- *far groups*: rows with the same nearest centre lie side by side and skip, as a group, the centres that are too far off
  (see `groups.py`). While there are few centres, rows are regrouped if that saves enough products.

The state depends only on the points and the centres, up to the error of fast distances, and all returned values are
exact: a shard rebuilt from both answers as the lost one would have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysift.draws import seed_for, uniform_of
from raysift.errors import DataError, StageError
from raysift.kcenter.distances import (
    Places,
    Squares,
    Vectors,
    as_points,
    error_factor,
    error_floor,
    exact_squares,
    nearest_squares,
    squared_lengths,
)
from raysift.kcenter.groups import SLACK, Groups
from raysift.kcenter.products import Team, calm
from raysift.topk import Ids

PASS_CENTERS = 256  # most centres of one matrix product
CPU_BLOCK, DEVICE_BLOCK = 1024, 65_536  # rows per product: on a CPU its result should stay in the cache
GATHER_BELOW = 0.7  # rows that still matter are copied together if they are less than this share of a block
FIRST_PIVOTS, MOST_PIVOTS, ROWS_A_PIVOT = 64, 4096, 64
FEWEST_COMING = 16  # fewest new centres for which regrouping is considered
GROUP_BELOW = 0.6  # regroup if products left fall below this share of those with the present groups


@dataclass(frozen=True)
class NewCenters:
    """New centres, the first with number `start`; `radii` are lower bounds of distances to all earlier centres."""

    start: int
    ids: Ids
    vectors: Vectors
    radii: Squares


@dataclass(frozen=True)
class Candidates:
    """The farthest rows of a shard, farthest first, ties by id; every other row comes after `bar`."""

    ids: Ids
    vectors: Vectors
    squares: Squares
    """Exact squared distance to the nearest centre."""
    bar: tuple[float, int] | None
    """Squared distance and id of the first row after the candidates; None if there is no other row."""
    products: int = 0
    """Pairs of a row and a centre that were multiplied since the last answer."""
    possible: int = 0
    """Pairs of a row and a centre without pruning, since the last answer."""


class Shard:
    """Some of the points; `device` is a torch device, `threads` share the work on a CPU."""

    def __init__(
        self,
        ids: ArrayLike,
        vectors: ArrayLike,
        *,
        metric: str = "euclidean",
        device: str = "cpu",
        threads: int | None = None,
        block_rows: int | None = None,
        prune: bool = True,
        owned: bool = False,
    ) -> None:
        """`owned`: the array may be reordered in place; otherwise it is copied when reordering pays."""
        import torch

        self._torch = torch
        self.ids, self.vectors = as_points(ids, vectors, metric)
        self._owned = owned or not np.may_share_memory(self.vectors, np.asarray(vectors))
        self.prune, self.device = prune, device
        self.block_rows = block_rows or (CPU_BLOCK if device == "cpu" else DEVICE_BLOCK)
        self._order = np.argsort(self.ids)
        self._team = Team(device, threads)
        n, dimension = self.vectors.shape
        self._factor, self._floor = error_factor(dimension), error_floor(dimension)
        self._x = torch.from_numpy(self.vectors).to(device)
        self._norms = torch.from_numpy(squared_lengths(self.vectors).astype(np.float32)).to(device)
        self._near = torch.full((n,), torch.inf, device=device)
        self._runner = torch.full((n,), torch.inf, device=device)
        self._nearest = torch.full((n,), -1, dtype=torch.int32, device=device)
        self._passes: list[Vectors] = []
        self._starts = [0]  # number of the first centre of each pass, then that of the next pass
        self._longest_center, self._errors = -1.0, torch.zeros(n, device=device)
        self.centers = self.masked = 0
        self._groups: Groups | None = None
        self._blocks = self._cut([0, n])
        self._grouped_at = (0, np.inf)  # number of centres and their distance when regrouping was last considered
        self._products = self._possible = 0

    def first(self, seed: int) -> tuple[float, int, Vectors]:
        """Draw, id and vector of the row with the largest draw by seed and id; the largest of all shards wins."""
        if not len(self.ids):
            return -1.0, 0, self.vectors
        draws = uniform_of(self.ids, seed_for(seed, "coverage"))
        row = int(np.lexsort((self.ids, -draws))[0])
        return float(draws[row]), int(self.ids[row]), self.vectors[row : row + 1].copy()

    def vectors_of(self, ids: Ids) -> tuple[Ids, Vectors]:
        """The given ids that belong to this shard, and their vectors."""
        rows, found = self._find(ids)
        return ids[found], self.vectors[rows]

    def add(self, batch: NewCenters) -> None:
        """Add new centres; those that are rows of this shard are never candidates again."""
        if batch.start != self.centers:
            raise StageError(f"coverage: a shard knows {self.centers} centres and was given those from {batch.start}.")
        rows, found = self._find(batch.ids)
        strange = exact_squares(self.vectors, rows, batch.vectors, np.flatnonzero(found)) > 0
        if strange.any():
            raise DataError(
                f"coverage: centres have other vectors than the rows with their ids {self.ids[rows[strange]][:5].tolist()}"
                " ... Both must come from the same embedding, under the same metric."
            )
        with calm():
            for start in range(0, len(batch.ids), PASS_CENTERS):
                part = slice(start, start + PASS_CENTERS)
                self._add_pass(np.ascontiguousarray(batch.vectors[part]), float(batch.radii[part].min()))
            rows, _ = self._find(batch.ids)  # again, as rows may have been regrouped
            self._near[self._torch.from_numpy(rows).to(self.device)] = -self._torch.inf
            self.masked = int(self._torch.isneginf(self._near).sum())
        self.centers += len(batch.ids)

    def farthest(self, wanted: int) -> Candidates:
        """The `wanted` farthest rows in exact order: squared distance descending, id ascending."""
        with calm():
            rows = self._may_be_farthest(wanted + 1)
            squares = self._exact(rows)
        order = np.lexsort((self.ids[rows], -squares))[: wanted + 1]
        rows, squares = rows[order], squares[order]
        bar = (float(squares[wanted]), int(self.ids[rows[wanted]])) if len(rows) > wanted else None
        rows, squares = rows[:wanted], squares[:wanted]
        products, possible, self._products, self._possible = self._products, self._possible, 0, 0
        return Candidates(self.ids[rows], self.vectors[rows], squares, bar, products, possible)

    def _may_be_farthest(self, count: int) -> Places:
        """All rows that may be among the `count` farthest."""
        free = len(self.ids) - self.masked
        if not free:
            return np.empty(0, np.int64)
        # At least `count` rows are no nearer than `bound`: a row that cannot reach it comes after them.
        bound = self._torch.topk(self._near - self._errors, min(count, free)).values[-1]
        reach = (self._near + self._errors >= bound) & ~self._torch.isneginf(self._near)
        places: Places = self._torch.nonzero(reach).flatten().cpu().numpy()
        return places

    def step(self, batch: NewCenters, wanted: int) -> Candidates:
        """`add` and `farthest` in one exchange."""
        self.add(batch)
        return self.farthest(wanted)

    def close(self) -> None:
        """End the threads."""
        self._team.close()

    def _find(self, ids: Ids) -> tuple[Places, Any]:
        """Rows of the given ids that are in this shard, and a mask of these ids."""
        if not len(self.ids):
            return np.empty(0, np.int64), np.zeros(len(ids), bool)
        place = np.searchsorted(self.ids, ids, sorter=self._order)
        rows = self._order[np.minimum(place, len(self.ids) - 1)]
        found = self.ids[rows] == ids
        return rows[found], found

    def _lengthen(self, longest: float) -> None:
        """Bound the error of each row's fast distance to any centre, none of which is longer than `longest`."""
        if longest > self._longest_center:
            self._longest_center = longest
            self._errors = (self._norms.sqrt() + longest).square() * self._factor + self._floor

    def _add_pass(self, vectors: Vectors, apart: float) -> None:
        torch, known = self._torch, self._starts[-1]
        if self.prune:
            self._regroup(vectors, apart)
        lengths = squared_lengths(vectors)
        self._lengthen(float(np.sqrt(lengths.max())))
        self._passes.append(vectors)
        self._starts.append(known + len(vectors))
        centers = torch.from_numpy(vectors).to(self.device)
        norms = torch.from_numpy(lengths.astype(np.float32)).to(self.device)
        numbers = torch.arange(known, known + len(vectors), dtype=torch.int32, device=self.device)
        matters: Any = None
        matter: NDArray[np.bool_] | None = None
        if self.prune and known:
            high = self._near + self._errors
            if apart:
                matters = high > (apart / 2) ** 2 * (1 - SLACK)
            if self._groups:
                matter = self._groups.matter(vectors, high)
        columns = None if matter is None else _places_of(torch, matter)

        def work(span: tuple[int, int, int]) -> int:
            start, end, group = span
            rows, mine = self._mattering(matters, start, end), (centers, norms, numbers)
            if columns is not None and columns[group].shape[0] < len(vectors):
                mine = (centers[columns[group]], norms[columns[group]], numbers[columns[group]])
            return self._lower(rows, *mine)

        self._products += sum(self._team.each(work, self._spans(matters, matter)))
        self._possible += len(self.ids) * len(vectors)

    def _spans(self, matters: Any, matter: NDArray[np.bool_] | None) -> list[tuple[int, int, int]]:
        """Blocks of rows within one group, as (start, end, group), without those in which nothing can change."""
        spans = self._blocks
        if matters is not None:
            before = np.concatenate([[0], np.cumsum(matters.cpu().numpy())])
            spans = spans[before[spans[:, 1]] > before[spans[:, 0]]]
        if matter is not None:
            spans = spans[np.asarray(matter.any(axis=1))[spans[:, 2]]]
        return [(start, end, group) for start, end, group in spans.tolist()]

    def _mattering(self, matters: Any, start: int, end: int) -> Any:
        """The rows of a block whose distance can still change: a slice, or places if that saves enough."""
        if matters is not None:
            inside = self._torch.nonzero(matters[start:end]).flatten()
            if inside.shape[0] < GATHER_BELOW * (end - start):
                return inside + start
        return slice(start, end)

    def _lower(self, rows: Any, centers: Any, norms: Any, numbers: Any) -> int:
        """Update the nearest distances of some rows with these centres; returns the number of pairs."""
        torch, x = self._torch, self._x[rows]
        shape = x.shape[0], centers.shape[0]
        fast = self._team.buffer(shape[0] * shape[1]).view(shape)
        torch.addmm(norms, x, centers.T, alpha=-2, out=fast)
        value = fast.amin(1).add_(self._norms[rows])
        near, nearest = self._near[rows], self._nearest[rows]
        nearer = value < near
        self._runner[rows] = torch.where(nearer, near, torch.minimum(self._runner[rows], value))
        self._near[rows] = torch.minimum(near, value)
        places = torch.nonzero(nearer).flatten()  # few, once there are many centres: a minimum's place costs far more
        nearest[places] = numbers[fast[places].argmin(1)]
        self._nearest[rows] = nearest
        return int(shape[0] * shape[1])

    def _exact(self, rows: Places) -> Squares:
        """Exact squared distances of rows to their nearest centres."""
        at = self._torch.from_numpy(rows).to(self.device)
        near, error = self._near[at], self._errors[at]
        # The nearest centre is of the recorded pass, unless another pass has one as near within the error.
        settled = (self._runner[at] > near + 2 * error).cpu().numpy()
        pass_of = np.searchsorted(self._starts, self._nearest[at].cpu().numpy(), side="right") - 1
        pass_of[~settled] = -1
        bounds = error.cpu().numpy().astype(np.float64)
        squares = np.empty(len(rows))

        def work(number: int) -> None:
            which = np.flatnonzero(pass_of == number)
            centers = self._passes[number] if number >= 0 else np.concatenate(self._passes)
            squares[which] = nearest_squares(self.vectors, rows[which], centers, bounds[which])

        self._team.each(work, np.unique(pass_of).tolist())
        return squares

    def _regroup(self, coming: Vectors, apart: float) -> None:
        """Sort rows by their nearest centre so far, if that saves enough products with the coming centres.

        Considered again when there are 1.5 times as many centres, or they lie half as far apart.
        """
        known, groups_now = self._starts[-1], len(self._groups.sizes) if self._groups else 1
        due = known >= 1.5 * self._grouped_at[0] or apart <= self._grouped_at[1] / 2
        most = min(MOST_PIVOTS, len(self.ids) // ROWS_A_PIVOT)
        if not due or len(coming) < FEWEST_COMING or not max(FIRST_PIVOTS, groups_now + 1) <= known <= most:
            return
        self._grouped_at = (known, apart)
        high = self._near + self._errors
        today = self._groups.share(coming, high) if self._groups else 1.0
        groups = Groups(np.concatenate(self._passes), self._nearest.long(), high.clamp(min=0).sqrt())
        if groups.share(coming, high) < GROUP_BELOW * today:
            order = self._torch.argsort(groups.group, stable=True)
            self._reorder(order)
            self._groups = groups.reordered(order)
            self._blocks = self._cut(self._groups.bounds)

    def _cut(self, bounds: Sequence[int]) -> NDArray[np.int64]:
        """Start, end and group of blocks of rows; `bounds` are the starts of the groups and the end of the last."""
        blocks = [
            (start, min(start + self.block_rows, last), group)
            for group, (first, last) in enumerate(pairwise(bounds))
            for start in range(first, last, self.block_rows)
        ]
        return np.array(blocks, np.int64).reshape(-1, 3)

    def _reorder(self, order: Any) -> None:
        places = order.cpu().numpy()
        if not self._owned:
            self.vectors, self._owned = self.vectors.copy(), True
        _permute_rows(self.vectors, places)
        if self.device == "cpu":
            self._x = self._torch.from_numpy(self.vectors)
        else:
            _permute_rows(self._x, order)
        for name in ("_norms", "_errors", "_near", "_runner", "_nearest"):
            setattr(self, name, getattr(self, name)[order])
        self.ids = self.ids[places]
        self._order = np.argsort(self.ids)


def _places_of(torch: Any, table: NDArray[np.bool_]) -> list[Any]:
    """The columns in which each row of a table is true."""
    row, column = np.nonzero(table)
    ends = np.searchsorted(row, np.arange(1, len(table))).tolist()
    return list(torch.tensor_split(torch.from_numpy(column), ends))


def _permute_rows(matrix: Any, order: Any) -> None:
    """Reorder rows without a second matrix, some columns at a time."""
    width = max(16, matrix.shape[1] // 12)
    for start in range(0, matrix.shape[1], width):
        matrix[:, start : start + width] = matrix[order, start : start + width]

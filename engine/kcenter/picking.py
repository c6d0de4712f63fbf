"""Greedy k-center: repeatedly picks u = argmax over rows not chosen of min over centres c of |x - c|.

Algorithm 1 of MoDS (arXiv 2311.15653), after Sener and Savarese: it starts from an existing pool of centres, or from a
centre drawn by seed and id. Its radius is at most twice the smallest possible one. Ties go to the smaller id; no row is
chosen twice; it ends early if every row lies on a centre.

It picks the same centres as the paper's greedy, but multiplies rows with many centres at once. Each shard returns its m
farthest rows, the candidates, and the first row after them, the bar. Adding centres only brings rows nearer. So while
the best candidate comes before the bar, it is the next centre, and only distances between candidates need updating.
Shards then receive a whole batch of centres. Exact distances (`distances.py`) decide which row comes first, so the
result depends on neither the number of shards, nor the order of rows, nor blocks, nor threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from raysift.errors import DataError
from raysift.kcenter.distances import (
    Squares,
    Vectors,
    as_points,
    error_factor,
    error_floor,
    exact_squares,
    squared_lengths,
)
from raysift.kcenter.products import calm, multiply
from raysift.kcenter.shard import Candidates, NewCenters, Shard
from raysift.topk import Ids

AIM = 192  # picks per pass: enough to make a matrix product efficient
FIRST_WANTED, LEAST_WANTED, MOST_WANTED = 128, 64, 2048
_ROWS_AHEAD = 32  # candidates whose distances to all others are multiplied together

AskShards = Callable[[NewCenters, int], Sequence[Candidates]]
"""Sends new centres to all shards and returns each one's farthest rows: (new centres, number in all) -> candidates."""


@dataclass(frozen=True)
class Centers:
    """Rows that cover the others, in picking order."""

    ids: Ids
    radii: Squares
    """Distance of each pick to the nearest centre before it; infinity for the first if there was none."""
    final_radius: float
    """Largest distance of any row to its nearest centre at the end."""
    asked: int
    lower_bound: float
    """Lower bound of the radius of any choice of as many rows, given the initial centres."""
    exact: bool = True
    message: str | None = None
    """Why there are fewer centres than asked."""
    passes: int = 0
    products: int = 0
    """Pairs of a row and a centre that were multiplied, out of `possible`; bounds ruled out the others."""
    possible: int = 0

    @property
    def ratio(self) -> float:
        """The radius divided by the lower bound of the smallest possible one; at most 2 for the exact greedy."""
        return self.final_radius / self.lower_bound if self.lower_bound else 1.0


@dataclass
class Picked:
    """The centres so far; the first `initial` were given and may be arbitrarily near to each other."""

    ids: list[int] = field(default_factory=list)
    vectors: list[Vectors] = field(default_factory=list)
    radii: list[float] = field(default_factory=list)
    initial: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def copy(self) -> Picked:
        """A copy to which centres can be added independently."""
        return Picked(list(self.ids), list(self.vectors), list(self.radii), self.initial)

    def without_initial(self) -> Picked:
        """Only the picked centres, without the given ones."""
        start = self.initial
        return Picked(self.ids[start:], self.vectors[start:], self.radii[start:])

    def add(self, ids: Ids, vectors: Vectors, radii: Sequence[float]) -> None:
        """Append centres in their order."""
        self.ids += ids.tolist()
        self.vectors += list(vectors)
        self.radii += radii

    def since(self, start: int) -> NewCenters:
        """The centres from number `start` on, as a batch for shards."""
        return self.between(start, len(self))

    def between(self, start: int, end: int) -> NewCenters:
        """The centres from number `start` to before `end`."""
        vectors = np.stack(self.vectors[start:end]) if start < end else np.empty((0, 0), np.float32)
        return NewCenters(start, np.array(self.ids[start:end], np.int64), vectors, np.array(self.radii[start:end]))


def k_center(
    points: ArrayLike,
    k: int,
    ids: ArrayLike | None = None,
    *,
    seed: int = 0,
    metric: str = "euclidean",
    initial: tuple[ArrayLike, ArrayLike] | None = None,
    shards: int = 1,
    device: str = "cpu",
    threads: int | None = None,
    block_rows: int | None = None,
    prune: bool = True,
) -> Centers:
    """The k rows of a matrix that greedy k-center picks; computed on float32 values.

    `ids` (default: row numbers) break ties and, with the seed, determine the first centre. `initial` (ids, vectors) are
    centres to start from; they are not in the result, and rows with their ids are not picked. `shards`, `device`,
    `threads`, `block_rows` and `prune` do not change the result.
    """
    matrix = np.asarray(points)
    id_array = np.arange(len(matrix)) if ids is None else np.asarray(ids)
    if id_array.shape != matrix.shape[:1]:
        raise DataError(f"coverage: {id_array.shape} ids for points of shape {matrix.shape}; expected one id a row.")
    if len(np.unique(id_array)) < len(id_array):
        raise DataError("coverage: some ids occur more than once; every row needs its own.")
    options: dict[str, Any] = {
        "metric": metric,
        "device": device,
        "threads": threads,
        "block_rows": block_rows,
        "prune": prune,
    }
    parts: list[Shard] = []
    try:
        for start, end in pairwise(np.linspace(0, len(matrix), shards + 1).astype(int)):
            parts.append(Shard(id_array[start:end], matrix[start:end], **options))
        picked = start_from(initial, metric)
        if not len(picked):
            seed_first(picked, [part.first(seed) for part in parts])
        return greedy(
            lambda batch, wanted: [part.step(batch, rows_to_ask(wanted, shards)) for part in parts], k, picked
        )
    finally:
        for part in parts:
            part.close()


def start_from(initial: tuple[ArrayLike, ArrayLike] | None, metric: str) -> Picked:
    """The initial centres, checked; empty if there are none."""
    picked = Picked()
    if initial is not None:
        if len(initial) != 2 or (np.ndim(initial[0]), np.ndim(initial[1])) != (1, 2):
            raise DataError(
                "coverage: `initial` must be a pair (ids, vectors) of the centres to start from: a list of ids, and a matrix "
                "with a row for each of them."
            )
        ids, vectors = as_points(initial[0], initial[1], metric)
        picked.add(ids, vectors, [0.0] * len(ids))
        picked.initial = len(ids)
    return picked


def seed_first(picked: Picked, firsts: Sequence[tuple[float, int, Vectors]]) -> None:
    """Add the first centre: the row with the largest draw among the results of each shard's `first`."""
    draw, row, vector = max(firsts, key=lambda first: (first[0], -first[1]))
    if draw < 0:
        raise DataError("coverage: there are no vectors to choose from.")
    picked.add(np.array([row]), vector, [math.inf])


def rows_to_ask(wanted: int, shards: int) -> int:
    """Farthest rows to ask of each shard: slightly more than its part, since they are spread by chance."""
    return wanted if shards == 1 else math.ceil(1.25 * wanted / shards) + 8


def greedy(exchange: AskShards, k: int, picked: Picked, on_pass: Callable[[Picked], None] | None = None) -> Centers:
    """Pick until there are k centres besides the initial ones; `picked` holds the centres to start or continue from.

    `on_pass` is called after each batch of picks, before the shards receive it.
    """
    if k < 1:
        raise DataError(f"coverage: {k} centres asked; ask for at least 1.")
    sent, wanted, passes, products, possible = 0, FIRST_WANTED, 0, 0, 0
    while True:
        left = k - (len(picked) - picked.initial)
        answers = exchange(picked.since(sent), wanted if left > 0 else 1)
        sent, passes = len(picked), passes + 1
        products, possible = products + sum(a.products for a in answers), possible + sum(a.possible for a in answers)
        found = _merge(answers)
        farthest = math.sqrt(found.squares.max(initial=0.0))
        if left <= 0 or farthest == 0:
            break
        with calm():
            order, squares = pick(found, left)
        picked.add(found.ids[order], found.vectors[order], np.sqrt(squares).tolist())
        wanted = _adapt(wanted, len(order))
        if on_pass:
            on_pass(picked)
    own = slice(picked.initial, None)
    radii = np.array(picked.radii[own])
    return Centers(
        ids=np.array(picked.ids[own], np.int64),
        radii=radii,
        final_radius=farthest,
        asked=k,
        # k picks and the farthest row are k + 1 rows at least this far apart: two of them share a centre.
        lower_bound=farthest / 2,
        message=_shortage(k, len(radii), picked.initial),
        passes=passes,
        products=products,
        possible=possible,
    )


def pick(found: Candidates, most: int) -> tuple[list[int], list[float]]:
    """Numbers and squared distances of the candidates that come before the bar, picked one by one.

    Candidates are sorted by id, so the first of several maxima has the smallest id.
    """
    x, away = found.vectors, found.squares.copy()
    lengths = np.sqrt(squared_lengths(x))
    norms = np.square(lengths).astype(np.float32)
    factor, floor = error_factor(x.shape[1]), error_floor(x.shape[1])
    fast: dict[int, Vectors] = {}
    order: list[int] = []
    squares: list[float] = []
    while len(order) < most:
        best = int(away.argmax())
        square = float(away[best])
        if square <= 0 or (found.bar and (-square, int(found.ids[best])) > (-found.bar[0], found.bar[1])):
            break
        order.append(best)
        squares.append(square)
        if best not in fast:
            fast |= _products_ahead(x, norms, away, list(fast))
        error = np.square(lengths + lengths[best]) * factor + floor
        nearer = np.flatnonzero(fast[best] - error < away)
        exact = exact_squares(x, nearer, x, np.full(len(nearer), best))
        away[nearer] = np.minimum(away[nearer], exact)
        away[best] = -np.inf
    return order, squares


def _products_ahead(x: Vectors, norms: Vectors, away: Squares, done: list[int]) -> dict[int, Vectors]:
    """Fast squared distances to all candidates from the farthest ones without any yet, as these may be picked next."""
    left = away.copy()
    left[done] = -np.inf
    ahead = np.argpartition(-left, min(_ROWS_AHEAD, len(left)) - 1)[:_ROWS_AHEAD]
    # The first maximum must be among them, whichever of several equal ones the partition took.
    ahead = np.union1d(ahead, [away.argmax()])
    rows = norms[ahead, None] + norms - 2 * multiply(x[ahead], x)
    return dict(zip(ahead.tolist(), rows, strict=True))


def _merge(answers: Sequence[Candidates]) -> Candidates:
    """Candidates of all shards, sorted by id, and the bar that comes first."""
    ids = np.concatenate([answer.ids for answer in answers])
    order = np.argsort(ids)
    bars = [answer.bar for answer in answers if answer.bar]
    return Candidates(
        ids[order],
        np.concatenate([answer.vectors for answer in answers])[order],
        np.concatenate([answer.squares for answer in answers])[order],
        max(bars, key=lambda bar: (bar[0], -bar[1]), default=None),
    )


def _adapt(wanted: int, taken: int) -> int:
    """How many candidates would give about AIM picks if the share picked stays that of the last pass."""
    return int(min(max(wanted * min(AIM / max(taken, 1), 4.0), LEAST_WANTED), MOST_WANTED))


def _shortage(asked: int, given: int, initial: int) -> str | None:
    if given >= asked:
        return None
    beside = f" beside the {initial} centres it started from" if initial else ""
    return f"{asked} centres asked, only {given} distinct vectors{beside}; {given} are given."

"""Scores each row from stored row vectors and target vectors, and finds the best rows.

    score(z) = max over subtasks j of sum over checkpoints i of w_i <t_i(z), v_ij>

t_i(z): the row's unit vector at checkpoint i; v_ij: the target of subtask j there, a mean of unit vectors (so the
product is the mean of cosines over shots); w_i: the mean learning rate of the training between checkpoints i - 1 and i,
divided by the sum of these rates. Each row is scored by itself, so shards may be scored anywhere, in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysift.errors import DataError
from raysift.settings.gradients import MatchSettings
from raysift.store.vectors import Array, Stored, dimension_of
from raysift.topk import TopK

_CHUNK_NUMBERS = 2**23
_CHUNK_ROWS = 1024


@dataclass(frozen=True)
class TargetColumns:
    """Which target each subtask column belongs to, and the weight of each target. Default: one target of weight 1."""

    subtasks: tuple[str, ...]
    target_of: tuple[int, ...]
    weights: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not self.subtasks or len(self.subtasks) != len(self.target_of):
            raise DataError(f"match: {len(self.subtasks)} subtasks and {len(self.target_of)} target numbers")
        if set(self.target_of) != set(range(len(self.weights))):
            raise DataError(f"match: targets {sorted(set(self.target_of))} and {len(self.weights)} target weights")
        if not all(np.isfinite(weight) and weight > 0 for weight in self.weights):
            raise DataError(f"match: target weights {list(self.weights)}, expected positive numbers")

    @classmethod
    def single(cls, subtasks: Sequence[str]) -> TargetColumns:
        """All subtasks belong to one target."""
        return cls(tuple(subtasks), (0,) * len(subtasks))


def checkpoint_weights(rates: Sequence[float]) -> NDArray[np.float64]:
    """Checkpoint weights: the learning rates recorded during their training, divided by their sum."""
    weights = np.asarray(rates, dtype=np.float64)
    if weights.ndim != 1 or not len(weights) or not np.isfinite(weights).all() or (weights < 0).any():
        raise DataError(f"match: learning rates {weights.tolist()}, expected one number from 0 up per checkpoint")
    if not weights.any():
        raise DataError("match: all recorded learning rates are 0, so no checkpoint has any weight")
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares


def match_rows(rows: Array | Stored, targets: Array) -> NDArray[np.float32]:
    """Products of stored rows with target vectors (subtasks, d); a row's result is bit-identical in any shard."""
    if rows.ndim != 2 or targets.ndim != 2 or dimension_of(rows) != targets.shape[1]:
        raise DataError(
            f"match: rows of shape {rows.shape} against targets of shape {targets.shape}. Rebuild one of them."
        )
    if rows.dtype == np.uint8:
        from raysift.store.sign_products import match_signs  # imports torch, which other dtypes do not need

        return match_signs(rows, targets)
    wide = np.ascontiguousarray(targets.T, dtype=np.float32)
    scores = np.empty((len(rows), len(targets)), np.float32)
    # All products have one shape, with the last chunk padded with zeros: rounding may depend on a product's shape, and
    # a row's score must not depend on its shard.
    size = max(1, min(_CHUNK_ROWS, _CHUNK_NUMBERS // targets.shape[1]))
    chunk = np.zeros((size, targets.shape[1]), np.float32)
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        chunk[: len(part)] = part
        chunk[len(part) :] = 0
        scores[start : start + len(part)] = (chunk @ wide)[: len(part)]
    return scores


def weigh_checkpoints(matches: Array, weights: ArrayLike) -> NDArray[np.float64]:
    """The module formula's sum over checkpoints: (rows, subtasks) from products (rows, checkpoints, subtasks)."""
    total: NDArray[np.float64] = np.einsum("c,ncs->ns", np.asarray(weights, np.float64), matches.astype(np.float64))
    return total


def aggregate_subtasks(scores: Array, columns: TargetColumns, rule: str = "max") -> NDArray[np.float64]:
    """One score per row: max or mean over each target's subtasks, then the weighted sum over targets."""
    if scores.shape[1] != len(columns.subtasks):
        raise DataError(f"match: {scores.shape[1]} score columns for {len(columns.subtasks)} subtasks")
    if rule not in ("max", "mean"):
        raise DataError(f"match: no single score per row under rule {rule!r} (known: max, mean)")
    total = np.zeros(len(scores))
    for target, weight in enumerate(columns.weights):
        own = scores[:, [i for i, of in enumerate(columns.target_of) if of == target]]
        total += weight * (own.max(axis=1) if rule == "max" else own.mean(axis=1))
    return total


class InfluenceReduce:
    """Finds the k best rows of any number of scored shards, added in any order.

    Under `round_robin` the subtasks take turns; each picks its best row not yet picked. Keeping k rows per subtask is
    enough: before a subtask's last turn, fewer than k rows have been picked.
    """

    def __init__(self, k: int, columns: TargetColumns, settings: MatchSettings | None = None) -> None:
        self.columns = columns
        self.rule = (settings or MatchSettings()).subtasks
        self._best = [TopK(k) for _ in (columns.subtasks if self.rule == "round_robin" else "1")]
        self.k = k

    def add(self, ids: ArrayLike, scores: Array) -> NDArray[np.float64]:
        """Takes (rows, subtasks) scores of one shard and returns one score for every row, to be stored."""
        rule = "max" if self.rule == "round_robin" else self.rule
        single = aggregate_subtasks(scores, self.columns, rule)
        offered = scores.T if self.rule == "round_robin" else single[None, :]
        for best, column in zip(self._best, offered, strict=True):
            best.add(ids, column)
        return single

    def result(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Ids and scores of the chosen rows, best (or first picked) first."""
        rankings = [best.result() for best in self._best]
        if self.rule != "round_robin":
            return rankings[0]
        ids, _picked_by, scores = round_robin(rankings, self.k)
        return ids, scores


def round_robin(
    rankings: Sequence[tuple[NDArray[np.int64], NDArray[np.float64]]], k: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Ids in picking order, the number of the ranking that picked each, and its score in that ranking."""
    taken: dict[int, tuple[int, float]] = {}
    places = [0] * len(rankings)
    left = list(range(len(rankings)))
    while left and len(taken) < k:
        for i in list(left):
            ids, scores = rankings[i]
            while places[i] < len(ids) and int(ids[places[i]]) in taken:
                places[i] += 1
            if places[i] == len(ids):
                left.remove(i)
            elif len(taken) < k:
                taken[int(ids[places[i]])] = (i, float(scores[places[i]]))
    picked = list(taken.values())
    return np.array(list(taken), np.int64), np.array([i for i, _ in picked], np.int64), np.array([s for _, s in picked])

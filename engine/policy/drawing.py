"""A batch from scores: the best of every class, or a draw.

Drawing without replacement with probabilities by softmax is taking the highest of score/temperature + Gumbel noise. The
noise of a row follows from seed, round, training, step and the row's id, so that a draw is the same wherever it is made,
and in whatever order the rows lie.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysift.draws import seed_for, uniform_of
from raysift.policy.classes import class_quotas
from raysift.topk import Ids, top_k

FINAL_DRAW = "final training"
"""The purpose under which the training with the finished policy draws its batches."""


@dataclass(frozen=True)
class Draw:
    """Names the one draw among all of a run."""

    seed: int
    purpose: str
    """Such as `round 3, training 0`."""

    def noise(self, ids: Ids, step: int) -> NDArray[np.float64]:
        """Standard Gumbel noise of each row at a step."""
        uniform = uniform_of(ids, seed_for(self.seed, f"pick, {self.purpose}, step {step}"))
        # uniform_of gives multiples of 2^-53 below 1; at 0 the logarithm would not be finite.
        gumbel: NDArray[np.float64] = -np.log(-np.log(np.maximum(uniform, 2.0**-54)))
        return gumbel


def class_members(classes: ArrayLike) -> list[NDArray[np.int64]]:
    """Positions of the rows of each class, in their order."""
    numbers = np.asarray(classes)
    order = np.argsort(numbers, kind="stable")
    return np.split(order, np.cumsum(np.bincount(numbers))[:-1])


def best_of_classes(
    ids: Ids,
    keys: NDArray[np.float64],
    members: list[NDArray[np.int64]],
    size: int,
    open_rows: NDArray[np.bool_] | None = None,
) -> Ids:
    """The rows with the highest keys of each class, as many as its share of the batch; ties to the smaller id."""
    if open_rows is not None:
        members = [rows[open_rows[rows]] for rows in members]
    shares = class_quotas([len(rows) for rows in members], size)
    found = [top_k(ids[rows], keys[rows], share)[0] for rows, share in zip(members, shares, strict=True) if share]
    return np.concatenate([np.empty(0, np.int64), *found])

"""A batch from scores: the best rows of every class, or a random draw.

Taking the highest values of score/temperature + Gumbel noise is drawing without replacement with softmax probabilities.
A row's noise follows from seed, round, training, step and the row's id, so a draw depends neither on the machine nor on the
order of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysift.draws import seed_for, uniform_of
from raysift.policy.classes import class_quotas
from raysift.topk import Ids, top_k

FINAL_DRAW = "final training"
"""The `purpose` of draws in the training with the finished policy."""


@dataclass(frozen=True)
class Draw:
    """Identifies one sequence of draws within a run."""

    seed: int
    purpose: str
    """For example `round 3, training 0`."""

    def noise(self, ids: Ids, step: int) -> NDArray[np.float64]:
        """Standard Gumbel noise of each row at a step."""
        uniform = uniform_of(ids, seed_for(self.seed, step_purpose(self, step)))
        # uniform_of gives multiples of 2^-53 below 1; at 0 the logarithm would not be finite.
        gumbel: NDArray[np.float64] = -np.log(-np.log(np.maximum(uniform, 2.0**-54)))
        return gumbel


def step_purpose(draw: Draw, step: int) -> str:
    """What the draws of a step are for, from which their seed follows."""
    return f"pick, {draw.purpose}, step {step}"


def class_members(classes: ArrayLike) -> list[NDArray[np.int64]]:
    """For each class, the positions of its rows in rising order."""
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
    """The rows with the highest keys in each class, up to its share of the batch; ties go to the smaller id."""
    if open_rows is not None:
        members = [rows[open_rows[rows]] for rows in members]
    shares = class_quotas([len(rows) for rows in members], size)
    found = [top_k(ids[rows], keys[rows], share)[0] for rows, share in zip(members, shares, strict=True) if share]
    return np.concatenate([np.empty(0, np.int64), *found])

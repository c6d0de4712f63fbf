"""How well a score separates what should be high from what should be low."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysift.errors import DataError


def auc(high: ArrayLike, low: ArrayLike) -> float:
    """Chance that a score drawn from `high` exceeds one drawn from `low`, ties counted half (area under the ROC curve).

    0.5 is no better than chance; 1 minus it is the value of the reversed score.
    """
    upper, lower = _scores(high, "high"), np.sort(_scores(low, "low"))
    beaten, not_above = (np.searchsorted(lower, upper, side) for side in ("left", "right"))
    return float((beaten + not_above).mean() / 2 / len(lower))


def share_raised(before: ArrayLike, after: ArrayLike) -> float:
    """Share of pairs whose second score is higher than the first, ties counted half."""
    first, second = _scores(before, "before"), _scores(after, "after")
    if len(first) != len(second):
        raise DataError(f"ranking: {len(first)} scores before and {len(second)} after; expected pairs.")
    return float((np.sign(second - first).mean() + 1) / 2)


def _scores(values: ArrayLike, name: str) -> NDArray[np.float64]:
    scores = np.asarray(values, np.float64)
    if scores.ndim != 1 or not len(scores) or np.isnan(scores).any():
        raise DataError(f"ranking: '{name}' must be at least one score, none of them NaN (shape {scores.shape}).")
    return scores

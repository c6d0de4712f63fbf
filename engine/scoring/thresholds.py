"""Bars that scores must be strictly beyond, as in MoDS: quality > alpha, necessity < beta.

A bar is a number, or a quantile of the given scores. With n scores in rising order s_1 .. s_n and quantile q:

    above:  bar = s_k,     k = ceil(q n)    so that at most n - k rows pass (all of them at q = 0)
    below:  bar = s_(k+1), k = floor(q n)   so that at most k rows pass (all of them at q = 1)

The bar is exact, and independent of the order and sharding of the scores. Rows whose score equals the bar do not pass, so with
many equal scores fewer rows pass than asked for; `describe_cut` warns of this. A row without a score never passes and is
counted separately.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from raysift.errors import DataError
from raysift.scoring.settings import Threshold

Side = Literal["above", "below"]
Scores = NDArray[np.float64]

FEW_VALUES = 10
MANY_ROWS = 100


@dataclass(frozen=True)
class Cut:
    """A bar applied to some scores."""

    side: Side
    value: float | None
    """The bar: scores strictly beyond it pass. None lets every row with a score pass."""
    passed: int
    failed: int
    unscored: int
    at_bar: int
    """Rows whose score equals the bar; they do not pass."""

    def passes(self, scores: ArrayLike) -> NDArray[np.bool_]:
        """Which of these scores pass; none of them may be missing."""
        return _beyond(_checked(np.asarray(scores, np.float64)), self.value, self.side)

    def as_dict(self) -> dict[str, Any]:
        """The fields as a manifest stores them."""
        return asdict(self)


def gather_scores(chunks: Iterable[pa.Array | pa.ChunkedArray | ArrayLike]) -> tuple[Scores, int]:
    """All scores of a stage, and the number of rows without one (null); refuses NaN."""
    parts: list[Scores] = []
    missing = 0
    for chunk in chunks:
        if isinstance(chunk, pa.Array | pa.ChunkedArray):
            missing += chunk.null_count
            chunk = chunk.drop_null().to_numpy()
        parts.append(_checked(np.asarray(chunk, np.float64)))
    return (np.concatenate(parts) if parts else np.empty(0)), missing


def cut_above(scores: ArrayLike, threshold: Threshold, unscored: int = 0) -> Cut:
    """Cut that passes scores strictly above the bar, as with alpha of MoDS."""
    return _cut(scores, threshold, "above", unscored)


def cut_below(scores: ArrayLike, threshold: Threshold, unscored: int = 0) -> Cut:
    """Cut that passes scores strictly below the bar, as with beta of MoDS."""
    return _cut(scores, threshold, "below", unscored)


def _cut(scores: ArrayLike, threshold: Threshold, side: Side, unscored: int) -> Cut:
    values = _checked(np.asarray(scores, np.float64))
    bar = threshold.value
    if threshold.quantile is not None:
        bar = _quantile_bar(values, threshold.quantile, side)
    passed = int(np.count_nonzero(_beyond(values, bar, side)))
    at_bar = 0 if bar is None else int(np.count_nonzero(values == bar))
    return Cut(side, bar, passed, len(values) - passed, unscored, at_bar)


def _quantile_bar(values: Scores, quantile: float, side: Side) -> float | None:
    if not len(values):
        raise DataError("threshold: a quantile was asked for and no row has a score. Look at the failed rows first.")
    share = Fraction(repr(quantile)) * len(values)  # exact for the decimal as written: 0.1 of 30 is 3
    place = math.ceil(share) - 1 if side == "above" else math.floor(share)
    if not 0 <= place < len(values):
        return None
    return float(np.partition(values, place)[place])


def _beyond(values: Scores, bar: float | None, side: Side) -> NDArray[np.bool_]:
    if bar is None:
        return np.ones(len(values), bool)
    return values > bar if side == "above" else values < bar


def _checked(values: Scores) -> Scores:
    if values.ndim != 1:
        raise DataError(f"threshold: scores have the shape {values.shape}, expected one number per row.")
    bad = int(np.count_nonzero(np.isnan(values)))
    if bad:
        raise DataError(f"threshold: {bad} of {len(values)} scores are NaN. A row without a score must be null.")
    return values


# --- warnings --------------------------------------------------------------------------------------------------------


def describe_cut(name: str, cut: Cut, threshold: Threshold) -> list[str]:
    """Warnings about a bar that passes nothing or everything, or equals many scores."""
    scored = cut.passed + cut.failed
    if cut.value is None or not scored:
        return []
    sign = ">" if cut.side == "above" else "<"
    if not cut.passed:
        return [f"{name}: none of {scored:,} scores is {sign} {cut.value:g}, so nothing is left. Move the threshold."]
    if not cut.failed:
        return [f"{name}: all {scored:,} scores are {sign} {cut.value:g}, so the threshold sorts nothing out."]
    if threshold.quantile is not None:
        asked = (1 - threshold.quantile if cut.side == "above" else threshold.quantile) * scored
        if cut.at_bar > 1 and cut.passed < 0.99 * asked:
            return [
                f"{name}: {cut.at_bar:,} rows share the score {cut.value:g} of the threshold and do not pass, so "
                f"{cut.passed:,} rows pass instead of {round(asked):,}."
            ]
    return []


def describe_scale(name: str, scores: ArrayLike) -> list[str]:
    """Warnings about scores that hardly distinguish rows: all equal, most equal, few values, or a few outliers."""
    values = _checked(np.asarray(scores, np.float64))
    if len(values) < 2:
        return []
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) == 1:
        return [f"{name}: all {len(values):,} scores are {distinct[0]:g}; they tell no row from another."]
    most = int(counts.max())
    if most > len(values) / 2:
        value = distinct[counts.argmax()]
        return [f"{name}: {most / len(values):.0%} of {len(values):,} rows have the very same score, {value:g}."]
    if len(values) >= MANY_ROWS and len(distinct) < FEW_VALUES:
        return [f"{name}: {len(values):,} rows have only {len(distinct)} different scores."]
    if not np.isfinite(distinct).all():
        return [f"{name}: some scores are infinite."]
    spread, reach = float(values.std()), float(distinct[-1] - distinct[0])
    if spread < 0.01 * reach:
        return [
            f"{name}: nearly all scores are alike (standard deviation {spread:.3g}), and a few lie far off "
            f"({distinct[0]:.3g} to {distinct[-1]:.3g})."
        ]
    if spread <= 1e-4 * float(np.abs(values).max()):
        return [f"{name}: scores differ by {reach:.2g} only, around {float(values.mean()):.4g}."]
    return []


@dataclass(frozen=True)
class Bin:
    """Scores from `low` up to but excluding `high`; the last bin of `histogram` includes `high`."""

    low: float
    high: float
    count: int
    share: float


def histogram(scores: ArrayLike, bins: int = 20) -> list[Bin]:
    """Bins of equal width between the lowest and the highest score; one bin if all scores are equal."""
    values = _finite(scores)
    if not len(values):
        return []
    if values.min() == values.max():
        return [Bin(float(values[0]), float(values[0]), len(values), 1.0)]
    counts, edges = np.histogram(values, bins=bins)
    pairs = zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True)
    return [Bin(low, high, int(n), int(n) / len(values)) for low, high, n in pairs]


def _finite(scores: ArrayLike) -> Scores:
    values = _checked(np.asarray(scores, np.float64))
    if not np.isfinite(values).all():
        raise DataError("histogram: some scores are infinite.")
    return values

"""Whether a policy has learned anything, in a sentence for the person who is to use its selection.

    gain       slope of the rounds' performance x (rounds - 1), by least squares, with Student's interval for a slope
    narrow     different rows picked / N (1 - (1 - B/N)^T), what T uniform draws of B among N rows give on average

The first round's policy is untrained and picks almost uniformly, so the gain over the rounds is the gain over uniform picks.
It counts on the examples that reward the policy, or on those kept for the report. The best round alone would look better than
it is: it is the largest of many noisy numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from raysift.evaluation.intervals import t_quantile

DOUBT = "doubt"
"""Name of the sentence among the values of a stage."""
FEWEST_ROUNDS = 5
"""With fewer the interval of a slope says nothing."""
CONFIDENCE = 0.95
NO_ENTROPY = 0.1
"""As a share of the largest: a policy below it knows two rows of a thousand, and picks these again and again."""
COLLAPSED, NARROW = 0.25, 0.5
"""Different rows, as a share of what uniform draws would pick."""
REMEDIES = (
    "More rounds, raise.policy.max_repeats=1, or raise.learning.entropy=0.01 may help; else take another method, and see "
    "`raysift compare`."
)


class Gain(NamedTuple):
    """Change of the performance from the first round to the last, and the ends of its interval."""

    change: float
    low: float
    high: float


@dataclass(frozen=True)
class PolicyStory:
    """What learning and the training under the finished policy left in numbers."""

    performances: Sequence[float]
    """Final performance of each round; empty if the policy was learned elsewhere."""
    reports: Sequence[float | None]
    """The same on the examples that no policy sees; None where none are kept."""
    entropy: float | None
    """Of the last policy, as a share of the largest; None if unknown."""
    pool: int
    batch: int
    steps: int
    distinct: int
    """Different rows that the training under the finished policy picked."""
    start: float
    """Performance before that training; `end` is after it."""
    end: float


def describe_policy(story: PolicyStory) -> str | None:
    """What is wrong with the policy, in a sentence and what to do; None if nothing shows."""
    found = gain(story.performances)
    unseen = gain([value for value in story.reports if value is not None])
    share = story.distinct / uniform_distinct(story.pool, story.batch, story.steps)
    collapsed = share < COLLAPSED or (story.entropy is not None and story.entropy < NO_ENTROPY)
    gained = found is None or found.low > 0 or (unseen is not None and unseen.low > 0)
    if gained and not collapsed:
        return None
    kind = "has collapsed" if collapsed or share < NARROW else "has not learned to pick better than uniform draws"
    told = []
    if collapsed or share < NARROW:
        told.append(
            f"the training under it picked {story.distinct:,} different rows in {story.batch * story.steps:,} picks, where "
            f"uniform draws would pick {uniform_distinct(story.pool, story.batch, story.steps):,.0f}"
        )
    if found is not None:
        told.append(
            f"from the first to the last of {len(story.performances)} rounds its performance changed by {found.change:.3g} "
            f"({CONFIDENCE:.0%} interval {found.low:.3g} to {found.high:.3g})"
        )
    if story.end <= story.start:
        told.append(
            f"the training left the model no better on the target's examples ({story.start:.4g} before, {story.end:.4g} after)"
        )
    worth = "" if found is not None and gained else " Trust the selection no more than a random one."
    return f"The policy {kind}: {_joined(told)}.{worth} {REMEDIES}"


def gain(performances: Sequence[float]) -> Gain | None:
    """The change over the rounds by a straight line through them; None for too few rounds."""
    count = len(performances)
    if count < FEWEST_ROUNDS:
        return None
    rounds, values = np.arange(count) - (count - 1) / 2, np.asarray(performances, np.float64)
    spread = float(rounds @ rounds)
    slope = float(rounds @ values) / spread
    left = values - values.mean() - slope * rounds
    error = math.sqrt(float(left @ left) / (count - 2) / spread)
    half = t_quantile((1 + CONFIDENCE) / 2, count - 2) * error
    return Gain(*(step * (count - 1) for step in (slope, slope - half, slope + half)))


def uniform_distinct(pool: int, batch: int, steps: int) -> float:
    """Different rows in `steps` uniform draws of `batch` rows each, on average."""
    return float(pool * -math.expm1(steps * math.log1p(-min(batch / pool, 1 - 1e-12))))


def _joined(parts: Sequence[str]) -> str:
    return ", and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)

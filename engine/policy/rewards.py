"""What a step of a training was worth.

    R_t   = P(M_t) - P(M_{t-1});  they sum to P(M_T) - P(M_0)
    d_t   = R_t + gamma V(S_{t+1}) - V(S_t),  V(S_{T+1}) = 0
    Adv_t = sum_l (gamma lambda)^l d_{t+l},   G_t = V(S_t) + Adv_t                    (the paper's)

    A_t = R_t - curve_t: what the same step of all trainings gained, smoothed over neighbouring steps
    surprise_t = A_t / spread_t - momentum x A_{t-1} / spread_{t-1}                   (for `credit`)

Gains fall steeply in the course of any training, whatever is picked. Without that curve, what is left is owed to the picks;
over the spread of neighbouring steps, the small gains of late steps count as well.

A surprise is also without what was under way. Adam's step is a mean over the last batches, the newest of which has a weight of
1 - beta1, a tenth: most of what a step gains was decided by the batches before it. Gains of neighbouring steps therefore
correlate at 0.8 to 0.9 on the nano world, and hide what the newest batch did (figures in credit.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from raysift.policy.state import Episode, Numbers


def intervals(episode: Episode) -> list[tuple[int, int]]:
    """First step and the step after the last, of the steps between two measurements."""
    found = episode.performance
    measured = np.flatnonzero(~np.isnan(found)).tolist()
    if not measured or measured[0] != 0 or measured[-1] != len(found) - 1:
        raise ValueError("rewards: performance must be measured at the start and after the last step")
    return list(pairwise(measured))


def interval_gains(episode: Episode) -> Numbers:
    """What performance rose by from one measurement to the next."""
    return np.array([episode.performance[stop] - episode.performance[start] for start, stop in intervals(episode)])


def interval_steps(episode: Episode) -> int:
    """Steps of an interval; the last one may have fewer."""
    start, stop = intervals(episode)[0]
    return stop - start


def over_steps(numbers: Numbers, episode: Episode) -> Numbers:
    """A number for each interval, repeated for each of its steps."""
    return np.repeat(numbers, [stop - start for start, stop in intervals(episode)])


def rewards(episode: Episode) -> Numbers:
    """The gain of each step; steps between two measurements share the gain alike."""
    lengths = np.array([stop - start for start, stop in intervals(episode)])
    return over_steps(interval_gains(episode) / lengths, episode)


def generalised_advantages(gains: Numbers, values: Numbers, gamma: float, lam: float) -> tuple[Numbers, Numbers]:
    """Advantages and returns of one training."""
    following = np.append(values[1:], 0.0)
    surprise = gains + gamma * following - values
    advantages = np.zeros(len(gains))
    rest = 0.0
    for step in range(len(gains) - 1, -1, -1):
        rest = surprise[step] + gamma * lam * rest
        advantages[step] = rest
    return advantages, values + advantages


def centred(advantages: Sequence[Numbers]) -> list[Numbers]:
    """With mean 0 and spread 1 over the trainings of a round; the scale of a loss then does not matter."""
    every = np.concatenate(list(advantages))
    return [(found - every.mean()) / (every.std() or 1.0) for found in advantages]


def scaled_by_step(advantages: Sequence[Numbers], window: int) -> list[Numbers]:
    """Divided by their spread around 0 over neighbouring steps, so that the small gains of late steps count as well."""
    squares = np.mean(np.stack(advantages) ** 2, axis=0)
    spread = np.sqrt(smoothed(squares, window))
    return [found / np.where(spread > 0, spread, 1.0) for found in advantages]


def less_carried_over(advantages: Sequence[Numbers], momentum: float) -> list[Numbers]:
    """Of each step, less what the step before it foretells."""
    return [found - momentum * np.append(0.0, found[:-1]) for found in advantages]


def carried_over(momentum: float, steps: int) -> float:
    """The share of an interval's gain that the interval before it foretells, each of so many steps: of one it is `momentum`.

    Gains of single steps being an autoregression, it is the covariance of neighbouring sums over the variance of one.
    """
    apart = np.abs(np.subtract.outer(np.arange(steps), np.arange(steps)))
    between = sum(momentum**lag for start in range(steps) for lag in range(start + 1, start + 1 + steps))
    return float(between / np.sum(momentum**apart))


def surprises(gains: Sequence[Numbers], momentum: float, window: int) -> list[Numbers]:
    """Each training against the mean of all of them."""
    curve = smoothed(np.mean(np.stack(gains), axis=0), window)
    return less_carried_over(scaled_by_step([found - curve for found in gains], window), momentum)


def smoothed(numbers: Numbers, window: int) -> Numbers:
    """The mean over `window` neighbouring steps; at the ends over fewer."""
    reach = window // 2
    return np.array([numbers[max(0, t - reach) : t + reach + 1].mean() for t in range(len(numbers))])

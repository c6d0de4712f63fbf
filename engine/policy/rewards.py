"""Rewards, advantages and surprises of the steps of a training.

    R_t   = P(M_t) - P(M_{t-1});  they sum to P(M_T) - P(M_0)
    d_t   = R_t + gamma V(S_{t+1}) - V(S_t),  V(S_{T+1}) = 0
    Adv_t = sum_l (gamma lambda)^l d_{t+l},   G_t = V(S_t) + Adv_t                    (as in the paper)

    A_t = R_t - curve_t,  curve_t being the mean gain of step t over all trainings, smoothed over neighbouring steps
    surprise_t = A_t / spread_t - momentum x A_{t-1} / spread_{t-1}                   (for `credit`)

Gains fall steeply during any training, whatever is picked. Subtracting the curve leaves what the picks contributed; dividing
by the spread of neighbouring steps lets the small gains of late steps count too.

A surprise also subtracts the momentum of earlier steps. Adam's step is a mean over the last batches; the newest one has a
weight of 1 - beta1, a tenth, so earlier batches decide most of a step's gain. Gains of neighbouring steps therefore correlate
at 0.8 to 0.9 on the nano world, which hides the effect of the newest batch (figures in credit.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from raysift.policy.state import Episode, Numbers


def intervals(episode: Episode) -> list[tuple[int, int]]:
    """(start, stop) of the steps between each two measurements, `stop` excluded."""
    found = episode.performance
    measured = np.flatnonzero(~np.isnan(found)).tolist()
    if not measured or measured[0] != 0 or measured[-1] != len(found) - 1:
        raise ValueError("rewards: performance must be measured at the start and after the last step")
    return list(pairwise(measured))


def interval_gains(episode: Episode) -> Numbers:
    """The rise of performance from each measurement to the next."""
    return np.array([episode.performance[stop] - episode.performance[start] for start, stop in intervals(episode)])


def interval_steps(episode: Episode) -> int:
    """Steps per interval; the last interval may have fewer."""
    start, stop = intervals(episode)[0]
    return stop - start


def over_steps(numbers: Numbers, episode: Episode) -> Numbers:
    """Repeat each interval's number for each of its steps."""
    return np.repeat(numbers, [stop - start for start, stop in intervals(episode)])


def rewards(episode: Episode) -> Numbers:
    """The gain of each step; steps between two measurements share the gain equally."""
    lengths = np.array([stop - start for start, stop in intervals(episode)])
    return over_steps(interval_gains(episode) / lengths, episode)


def generalised_advantages(gains: Numbers, values: Numbers, gamma: float, lam: float) -> tuple[Numbers, Numbers]:
    """Generalised advantages Adv and returns G of one training."""
    following = np.append(values[1:], 0.0)
    surprise = gains + gamma * following - values
    advantages = np.zeros(len(gains))
    rest = 0.0
    for step in range(len(gains) - 1, -1, -1):
        rest = surprise[step] + gamma * lam * rest
        advantages[step] = rest
    return advantages, values + advantages


def centred(advantages: Sequence[Numbers]) -> list[Numbers]:
    """Standardised to mean 0 and deviation 1 over a round's trainings, so the scale of the loss does not matter."""
    every = np.concatenate(list(advantages))
    return [(found - every.mean()) / (every.std() or 1.0) for found in advantages]


def scaled_by_step(advantages: Sequence[Numbers], window: int) -> list[Numbers]:
    """Divided by their spread around 0 over neighbouring steps, so that the small gains of late steps count too."""
    squares = np.mean(np.stack(advantages) ** 2, axis=0)
    spread = np.sqrt(smoothed(squares, window))
    return [found / np.where(spread > 0, spread, 1.0) for found in advantages]


def less_carried_over(advantages: Sequence[Numbers], momentum: float) -> list[Numbers]:
    """Each step's advantage minus the part predicted by the previous step."""
    return [found - momentum * np.append(0.0, found[:-1]) for found in advantages]


def carried_over(momentum: float, steps: int) -> float:
    """The share of an interval's gain that the previous interval predicts; with one step per interval, `momentum`.

    Gains of single steps are modelled as an autoregression; the share is the covariance of two neighbouring intervals' sums
    over the variance of one such sum.
    """
    apart = np.abs(np.subtract.outer(np.arange(steps), np.arange(steps)))
    between = sum(momentum**lag for start in range(steps) for lag in range(start + 1, start + 1 + steps))
    return float(between / np.sum(momentum**apart))


def surprises(gains: Sequence[Numbers], momentum: float, window: int) -> list[Numbers]:
    """The surprises of each training, with the mean of all trainings as the curve."""
    curve = smoothed(np.mean(np.stack(gains), axis=0), window)
    return less_carried_over(scaled_by_step([found - curve for found in gains], window), momentum)


def smoothed(numbers: Numbers, window: int) -> Numbers:
    """Moving mean over `window` steps, over fewer at the ends."""
    reach = window // 2
    return np.array([numbers[max(0, t - reach) : t + reach + 1].mean() for t in range(len(numbers))])

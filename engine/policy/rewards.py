"""What a step of a training was worth.

    R_t   = P(M_t) - P(M_{t-1});  they sum to P(M_T) - P(M_0)
    d_t   = R_t + gamma V(S_{t+1}) - V(S_t),  V(S_{T+1}) = 0
    Adv_t = sum_l (gamma lambda)^l d_{t+l},   G_t = V(S_t) + Adv_t                    (the paper's)

    Adv_t = R_t - baseline_t: what the same step of recent rounds gained, smoothed over neighbouring steps

Gains fall steeply in the course of any training, whatever is picked. The second form takes that curve out, so that what is
left is owed to the picks, and divides by the spread of neighbouring steps. It credits a step with its own gain alone: on the
nano world gains correlate with what was picked at 0.25 for any discount up to 0.7, and less above; scaled by step, at 0.28.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raysift.policy.state import Episode, Numbers


def rewards(episode: Episode) -> Numbers:
    """The gain of each step; steps between two measurements share the gain alike."""
    found = episode.performance
    measured = np.flatnonzero(~np.isnan(found))
    if not len(measured) or measured[0] != 0 or measured[-1] != len(found) - 1:
        raise ValueError("rewards: performance must be measured at the start and after the last step")
    lengths = np.diff(measured)
    return np.repeat(np.diff(found[measured]) / np.maximum(1, lengths), lengths)


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


def step_baseline(history: Sequence[Numbers], window: int) -> Numbers:
    """The mean gain of each step over these trainings, smoothed."""
    return smoothed(np.mean(np.stack(history), axis=0), window)


def baseline_advantages(
    gains: Sequence[Numbers], earlier: Sequence[Sequence[Numbers]], rounds: int, window: int
) -> list[Numbers]:
    """Advantages of the trainings of one round; `earlier` holds the gains of each round before it.

    In the first round a training is compared with the others of the round, or, alone, with its own smoothed curve.
    """
    recent = [found for group in earlier[-rounds:] for found in group]
    advantages = []
    for number, found in enumerate(gains):
        others = recent or [other for k, other in enumerate(gains) if k != number] or [found]
        advantages.append(found - step_baseline(others, window))
    return advantages


def centred(advantages: Sequence[Numbers]) -> list[Numbers]:
    """With mean 0 and spread 1 over the trainings of a round; the scale of a loss then does not matter."""
    every = np.concatenate(list(advantages))
    return [(found - every.mean()) / (every.std() or 1.0) for found in advantages]


def scaled_by_step(advantages: Sequence[Numbers], window: int) -> list[Numbers]:
    """Divided by their spread around 0 over neighbouring steps, so that the small gains of late steps count as well."""
    squares = np.mean(np.stack(advantages) ** 2, axis=0)
    spread = np.sqrt(smoothed(squares, window))
    return [found / np.where(spread > 0, spread, 1.0) for found in advantages]


def smoothed(numbers: Numbers, window: int) -> Numbers:
    """The mean over `window` neighbouring steps; at the ends over fewer."""
    reach = window // 2
    return np.array([numbers[max(0, t - reach) : t + reach + 1].mean() for t in range(len(numbers))])

"""Credit of single rows for the gain of their batch: a ridge regression over all steps of all rounds so far.

    surprise_t ~ w . (mean over the batch of x_d - its mean at step t over all trainings)
    credit of a row: c_d = w . x_d,  where x_d is the row's features minus the pool's mean

A training gives T numbers, each the gain of a whole batch and mostly noise. A policy fitted to one round follows that
noise; the regression uses all rounds at once, whichever policy picked in them. Its features are those of the row and how
often the row was picked before. Leave-one-round-out cross-validation chooses the penalty.

Gains enter as surprises (see rewards.py). Measured on two pools of the nano world, with random batches and one of 22 skills
as the target: the share of that skill in a batch correlates with the gain at 0.10 and 0.22, and with the surprise at 0.24
and 0.30. After three rounds of 75 steps, 0.87 and 1.00 of the 5 % of rows with the highest credit have the skill; with plain
gains, 0.00 and 0.77.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysift.policy.pool import PolicyPool
from raysift.policy.rewards import carried_over, interval_gains, interval_steps, intervals, smoothed, surprises
from raysift.policy.state import Episode, Numbers, replay

Matrix = NDArray[np.float64]

PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
FIRST_PENALTY = 10.0
"""Used in the first round, when there is no other round to validate on."""


@dataclass(frozen=True)
class Evidence:
    """One training as regression data: for each interval between measurements, the batches' mean features and the gain."""

    batches: Matrix
    gains: Numbers
    steps: int = 1
    """Steps per interval; the last interval may have fewer."""


def credit_features(episode: Episode, pool: PolicyPool, features: NDArray[np.float32]) -> list[Matrix]:
    """For the rows of each step: features minus the pool's mean, and log1p of how often each row had been picked."""
    mean = features.mean(axis=0, dtype=np.float64)
    return [
        np.column_stack([features[picked] - mean, state.availability(picked)]).astype(np.float64)
        for state, picked in replay(episode, pool)
    ]


def evidence_of(episode: Episode, features: Sequence[Matrix]) -> Evidence:
    """The evidence of a training; `features` come from `credit_features`."""
    by_step = np.array([rows.mean(axis=0) for rows in features])
    batches = np.array([by_step[start:stop].mean(axis=0) for start, stop in intervals(episode)])
    return Evidence(batches, interval_gains(episode), interval_steps(episode))


def fit_credit(rounds: Sequence[Sequence[Evidence]], momentum: float, window: int) -> Numbers:
    """Weights of the features, fitted to the trainings of all rounds; for `momentum` and `window` see `surprises`."""
    carried = carried_over(momentum, rounds[0][0].steps)
    found = surprises([one.gains for trainings in rounds for one in trainings], carried, window)
    batches = _against_each_other([one.batches for trainings in rounds for one in trainings], window)
    ends = np.cumsum([len(trainings) for trainings in rounds]).tolist()
    groups = [
        (np.concatenate(batches[start:stop]), np.concatenate(found[start:stop]))
        for start, stop in zip([0, *ends[:-1]], ends, strict=True)
    ]
    return fit_ridge(groups)


def fit_ridge(groups: Sequence[tuple[Matrix, Numbers]]) -> Numbers:
    """Ridge weights, with the penalty that predicts left-out groups best."""
    grams = [inputs.T @ inputs for inputs, _ in groups]
    products = [inputs.T @ wanted for inputs, wanted in groups]
    gram: Matrix = np.sum(grams, axis=0)
    product: Numbers = np.sum(products, axis=0)
    penalty = FIRST_PENALTY
    if len(groups) > 1:
        errors = [
            sum(
                float(np.sum((wanted - inputs @ _solve(gram - own, product - part, penalty)) ** 2))
                for (inputs, wanted), own, part in zip(groups, grams, products, strict=True)
            )
            for penalty in PENALTIES
        ]
        penalty = PENALTIES[int(np.argmin(errors))]
    return _solve(gram, product, penalty)


def row_credits(
    features: Sequence[Sequence[Matrix]], weights: Numbers, pool_features: NDArray[np.float32]
) -> list[list[Numbers]]:
    """The credit of each row of each step of each training: mean 0 over the round, in units of the spread over the pool.

    The spread of the round would not do: once a policy picks only good rows, only noise is left in it.
    """
    found = [[rows @ weights for rows in episode] for episode in features]
    mean = np.concatenate([credits for episode in found for credits in episode]).mean()
    spread = float((pool_features @ weights[:-1].astype(np.float32)).std()) or 1.0
    return [[(credits - mean) / spread for credits in episode] for episode in found]


def _against_each_other(batches: Sequence[Matrix], window: int) -> list[Matrix]:
    """Mean features minus their mean over all trainings at the same and neighbouring steps; gains are centred alike."""
    mean = np.mean(np.stack(batches), axis=0)
    curve = np.column_stack([smoothed(column, window) for column in mean.T])
    return [found - curve for found in batches]


def _solve(gram: Matrix, product: Numbers, penalty: float) -> Numbers:
    return np.asarray(np.linalg.solve(gram + penalty * np.eye(len(gram)), product), np.float64)

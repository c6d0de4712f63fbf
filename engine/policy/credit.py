"""Which rows of a batch its gain is owed to: a ridge regression over all steps of all rounds so far.

    Adv_t ~ w . mean over the batch of (x_d - mean of the pool);   credit of a row: c_d = w . (x_d - mean of the pool)

A training gives T numbers, each the gain of a whole batch, and most of such a number is chance. A policy that follows one
round's numbers follows chance; the regression hears all rounds at once, whatever policy picked in them. Features are those
of the row and how often it had been picked before. The penalty is the one that foretells rounds left out best.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raysift.policy.pool import PolicyPool
from raysift.policy.state import Episode, Numbers, replay

Matrix = NDArray[np.float64]

PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
FIRST_PENALTY = 10.0
"""While there is one round only, and nothing to be foretold."""


def credit_features(episode: Episode, pool: PolicyPool, features: NDArray[np.float32]) -> list[Matrix]:
    """Of each step's rows: features less the pool's mean, and log1p of how often each had been picked."""
    mean = features.mean(axis=0, dtype=np.float64)
    return [
        np.column_stack([features[picked] - mean, state.availability(picked)]).astype(np.float64)
        for state, picked in replay(episode, pool)
    ]


def fit_credit(rounds: Sequence[tuple[Matrix, Numbers]]) -> Numbers:
    """Weights of the features, from the batch means and the advantages of each round."""
    grams = [batches.T @ batches for batches, _ in rounds]
    products = [batches.T @ advantages for batches, advantages in rounds]
    gram: Matrix = np.sum(grams, axis=0)
    product: Numbers = np.sum(products, axis=0)
    penalty = FIRST_PENALTY
    if len(rounds) > 1:
        errors = [
            sum(
                float(np.sum((advantages - batches @ _solve(gram - own, product - part, penalty)) ** 2))
                for (batches, advantages), own, part in zip(rounds, grams, products, strict=True)
            )
            for penalty in PENALTIES
        ]
        penalty = PENALTIES[int(np.argmin(errors))]
    return _solve(gram, product, penalty)


def row_credits(features: Sequence[Sequence[Matrix]], weights: Numbers) -> list[list[Numbers]]:
    """Of each row of each step of each training: its share of the gain, with mean 0 and spread 1 over the round."""
    found = [[rows @ weights for rows in episode] for episode in features]
    every = np.concatenate([credits for episode in found for credits in episode])
    return [[(credits - every.mean()) / (every.std() or 1.0) for credits in episode] for episode in found]


def _solve(gram: Matrix, product: Numbers, penalty: float) -> Numbers:
    return np.asarray(np.linalg.solve(gram + penalty * np.eye(len(gram)), product), np.float64)

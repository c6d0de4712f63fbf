"""Pools of random features and logs of trainings that never took place, for tests of a policy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from raysift.policy.pool import PolicyPool
from raysift.policy.state import LOG, Episode

WIDTH = 36


def tiny_pool(rows: int, classes: int = 1, seed: int = 0, width: int = WIDTH) -> PolicyPool:
    """Rows with ids far apart, below zero too; every class has rows."""
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.choice(10**15, rows, replace=False) - 5 * 10**14)
    numbers = np.concatenate([np.arange(classes), rng.integers(0, classes, rows - classes)]).astype(np.int32)
    return PolicyPool(ids, rng.standard_normal((rows, width)).astype(np.float32), rng.permutation(numbers))


def log_of(
    picks: Sequence[np.ndarray], performance: Sequence[float | None], number: int = 1, which: int = 0
) -> Episode:
    """A log with these batches of ids and this performance, before the first step and after each."""
    steps = range(len(picks) + 1)
    return Episode(
        pa.table(
            {
                "round": [number] * len(steps),
                "episode": [which] * len(steps),
                "step": list(steps),
                "picks": [[], *(batch.tolist() for batch in picks)],
                "performance": list(performance),
                "loss": [None, *(1.0 for _ in picks)],
                "choose_s": [0.0] * len(steps),
                "train_s": [0.0] * len(steps),
                "validate_s": [0.0] * len(steps),
            },
            schema=LOG,
        )
    )


def random_log(pool: PolicyPool, steps: int, batch: int, seed: int = 0, among: int | None = None) -> Episode:
    """Batches at random, of the first `among` rows if given, so that some are picked again and again."""
    rng = np.random.default_rng(seed)
    rows = pool.ids[:among]
    picks = [np.sort(rng.choice(rows, batch, replace=False)) for _ in range(steps)]
    gains = 0.3 * 0.8 ** np.arange(steps) + 0.05 * rng.standard_normal(steps)
    return log_of(picks, np.concatenate([[-2.0], -2.0 + np.cumsum(gains)]).tolist())

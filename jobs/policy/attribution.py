"""What a run's policy prefers, computed from its logs and weights: chances of rows before the first step, credit of features."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysift.errors import ConfigError
from raysift.jobs.policy.transfer import learned_by
from raysift.jobs.runs.run import Run
from raysift.manifest import read_manifest
from raysift.policy.credit import credit_features, evidence_of, fit_credit
from raysift.policy.pool import PolicyPool
from raysift.policy.saved import load_policy
from raysift.policy.settings import RaiseConfig
from raysift.policy.state import Episode, State, masked, stage_inputs
from raysift.storage import Location

Numbers = NDArray[np.float64]


def settings_of(run: Run) -> RaiseConfig | None:
    """The run's settings of RAISE; None where they cannot be read."""
    try:
        found = getattr(run.config(), "raise", None)
    except ConfigError:
        return None
    return found if isinstance(found, RaiseConfig) else None


def policy_file(run: Run) -> Location | None:
    """The frozen policy of the final training, of this run or of the one it was taken from; None if it is gone."""
    learned = read_manifest(run.folder / "learn")
    if learned:
        return run.files(learned, "policy")[0]
    settings = settings_of(run)
    try:
        return learned_by(settings).policy if settings and settings.policy_from else None
    except ConfigError:
        return None


def first_scores(run: Run, pool: PolicyPool, final: Episode) -> tuple[Numbers, float | None] | None:
    """The policy's score of every row before the first step, and the temperature of its draws; None if it draws none."""
    place = policy_file(run)
    if place is None:
        return None
    from raysift.policy.picking import Picker

    network, settings = load_policy(place)
    start = float(final.performance[0])
    state = State(stage_inputs(start, start, 1, final.steps), np.zeros(len(pool), np.int32))
    return Picker(pool, settings, network).scores(state), settings.temperature if settings.deploy == "sampled" else None


def chances(scores: Numbers, temperature: float) -> Numbers:
    """Chance of each of these rows to be drawn first, relative to an equal chance for all: n softmax(score / temperature)."""
    keys = scores / temperature
    weights = np.exp(keys - keys.max())
    found: Numbers = len(scores) * weights / weights.sum()
    return found


def credit_weights(run: Run, pool: PolicyPool, rounds: list[list[Episode]]) -> Numbers | None:
    """Credit of one unit of each feature, as the last update of the policy saw it: in standard deviations of the pool's
    credits. None if the run learned otherwise, or nothing."""
    settings: Any = settings_of(run)
    if not rounds or settings is None or settings.learning.advantage != "credit":
        return None
    features = masked(pool, settings.policy.blocks)
    evidence = [
        [evidence_of(episode, credit_features(episode, pool, features)) for episode in episodes] for episodes in rounds
    ]
    weights = fit_credit(evidence, settings.learning.momentum, settings.learning.baseline_window)[:-1]
    spread = float((features @ weights.astype(np.float32)).std()) or 1.0
    found: Numbers = weights / spread
    return found


def credits_of(run: Run, pool: PolicyPool, weights: Numbers) -> Numbers:
    """The credit of every row, with mean 0 over the pool."""
    settings: Any = settings_of(run)
    found: Numbers = masked(pool, settings.policy.blocks).astype(np.float64) @ weights
    found -= found.mean()
    return found

"""Credit for rows out of gains of batches: a ridge regression, checked against planted weights and a slow reference."""

from __future__ import annotations

import numpy as np
import pytest

from raysift.policy.credit import (
    PENALTIES,
    Evidence,
    credit_features,
    evidence_of,
    fit_credit,
    fit_ridge,
    row_credits,
)
from raysift.policy.rewards import smoothed, surprises
from raysift.policy.state import replay

from ...tiny_policies import log_of, random_log, tiny_pool  # noqa: TID252


def planted(rounds, steps, noise, seed=0, width=12):
    """Batch means of 16 rows each, and a gain that three of twelve features decide, but for noise."""
    rng = np.random.default_rng(seed)
    weights = np.zeros(width)
    weights[:3] = 2.0, -1.0, 1.0
    found = []
    for _ in range(rounds):
        batches = rng.standard_normal((steps, 16, width)).mean(axis=1)
        found.append((batches, batches @ weights + noise * rng.standard_normal(steps)))
    return weights, found


def test_weights_are_found_and_more_rounds_find_them_better():
    agreement = []
    for rounds in (1, 4, 16, 64):
        weights, found = planted(rounds, 30, noise=2.0)
        fit = fit_ridge(found)
        agreement.append(fit @ weights / np.linalg.norm(fit) / np.linalg.norm(weights))
    assert agreement == sorted(agreement) and agreement[-1] > 0.95 and agreement[0] < 0.9


def test_the_fit_is_ridge_with_the_penalty_that_foretells_left_out_rounds_best():
    _, found = planted(5, 20, noise=1.0)

    def ridge(rounds, penalty):
        batches, gains = np.concatenate([b for b, _ in rounds]), np.concatenate([g for _, g in rounds])
        return np.linalg.inv(batches.T @ batches + penalty * np.eye(12)) @ batches.T @ gains

    def error(penalty):
        return sum(np.sum((g - b @ ridge(found[:i] + found[i + 1 :], penalty)) ** 2) for i, (b, g) in enumerate(found))

    best = min(PENALTIES, key=error)
    np.testing.assert_allclose(fit_ridge(found), ridge(found, best), rtol=1e-8)


def test_noise_alone_takes_the_highest_penalty_and_a_clear_signal_the_lowest():
    rng = np.random.default_rng(3)
    noise = [(batches, rng.standard_normal(len(batches))) for batches, _ in planted(20, 30, 0)[1]]
    clear = planted(20, 30, noise=0.01)[1]
    gram = sum(batches.T @ batches for batches, _ in noise)
    product = sum(batches.T @ gains for batches, gains in noise)
    highest = np.linalg.solve(gram + PENALTIES[-1] * np.eye(12), product)
    np.testing.assert_allclose(fit_ridge(noise), highest)
    np.testing.assert_allclose(fit_ridge(clear), planted(1, 1, 0)[0], atol=0.05)


def test_the_order_of_rounds_does_not_matter():
    _, found = planted(6, 20, noise=1.0)
    np.testing.assert_allclose(fit_ridge(found), fit_ridge(found[::-1]), rtol=1e-9)


def trainings(rounds, steps, momentum, noise=0.0, seed=0, each=1):
    """Gains as Adam makes them: a step moves by the mean of the batches so far, the newest at 1 - momentum; on top of it the
    fall that every training has, and a batch's own chance, which momentum carries on as well."""
    weights, found = planted(rounds * each, steps, noise, seed)
    curve = 3.0 / np.arange(1, steps + 1)
    evidence = []
    for batches, worth in found:
        gains, moved = np.empty(steps), 0.0
        for step in range(steps):
            moved = momentum * moved + (1 - momentum) * worth[step]
            gains[step] = moved
        evidence.append(Evidence(batches, gains + curve))
    return weights, [evidence[start : start + each] for start in range(0, len(evidence), each)]


def agreement(fit, weights):
    return fit @ weights / np.linalg.norm(fit) / np.linalg.norm(weights)


def test_what_momentum_hides_is_found_by_surprises_and_missed_by_plain_gains():
    worlds = [trainings(4, 60, momentum=0.9, noise=1.0, seed=seed) for seed in range(8)]
    found, missed = (
        np.mean([agreement(fit_credit(rounds, momentum, 7), weights) for weights, rounds in worlds])
        for momentum in (0.9, 0.0)
    )
    assert found > 0.9 and 1 - missed > 3 * (1 - found)


def test_a_policy_that_drifts_does_not_pull_the_weights_to_zero():
    """Were features not set against each other, the mean gain of late rounds, taken off, would take the weights with it."""
    weights, rounds = trainings(12, 30, momentum=0.0, noise=0.3)
    drifted = []
    for number, (one,) in enumerate(rounds):
        shift = np.zeros(12)
        shift[0] = number / 4
        drifted.append([Evidence(one.batches + shift, one.gains + shift @ weights)])
    assert agreement(fit_credit(drifted, 0.0, 7), weights) > 0.9


def test_the_fit_is_that_of_surprises_on_features_set_against_each_other():
    _, rounds = trainings(3, 20, momentum=0.5, noise=1.0, each=2)
    every = [one for group in rounds for one in group]
    mean = np.mean([one.batches for one in every], axis=0)
    mean = np.column_stack([smoothed(column, 5) for column in mean.T])
    wanted = surprises([one.gains for one in every], 0.5, 5)
    groups = [
        (np.concatenate([every[2 * r + k].batches - mean for k in (0, 1)]), np.concatenate(wanted[2 * r : 2 * r + 2]))
        for r in range(3)
    ]
    np.testing.assert_allclose(fit_credit(rounds, 0.5, 5), fit_ridge(groups), rtol=1e-10)


def test_steps_between_two_measurements_are_one_piece_of_evidence():
    pool = tiny_pool(40, 2)
    picks = [pool.ids[np.arange(4) + 4 * step] for step in range(5)]
    episode = log_of(picks, [-3.0, None, -2.0, None, None, -1.5])
    features = credit_features(episode, pool, pool.features)
    found = evidence_of(episode, features)
    assert found.gains.tolist() == [1.0, 0.5]
    np.testing.assert_allclose(found.batches[0], np.concatenate(features[:2]).mean(axis=0))
    np.testing.assert_allclose(found.batches[1], np.concatenate(features[2:]).mean(axis=0))


def test_features_are_those_less_the_mean_of_the_pool_and_how_often_a_row_was_picked():
    pool = tiny_pool(40, 2)
    episode = random_log(pool, 6, 8, 1)
    found = credit_features(episode, pool, pool.features)
    for rows, (state, picked) in zip(found, replay(episode, pool), strict=True):
        np.testing.assert_allclose(rows[:, :-1], pool.features[picked] - pool.features.mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(rows[:, -1], np.log1p(state.counts[picked]), rtol=1e-6)
    assert max(rows[:, -1].max() for rows in found) > 0


def test_credits_have_mean_0_over_a_round_and_the_unit_of_the_pool_and_order_rows_by_their_weights():
    pool = tiny_pool(40, 2)
    rows = [credit_features(random_log(pool, 4, 8, n), pool, pool.features) for n in range(2)]
    weights = np.zeros(pool.features.shape[1] + 1)
    weights[2] = 3.0
    credits = row_credits(rows, weights, pool.features)
    every = np.concatenate([step for episode in credits for step in episode])
    assert every.mean() == pytest.approx(0, abs=1e-9)
    for episode, found in zip(rows, credits, strict=True):
        for features, step in zip(episode, found, strict=True):
            wanted = features[:, 2] / pool.features[:, 2].std()
            np.testing.assert_allclose(step - step.mean(), wanted - wanted.mean(), atol=1e-5)


def test_a_policy_that_picks_alike_rows_is_hardly_moved():
    pool = tiny_pool(40, 2)
    best = np.sort(pool.ids[np.argsort(pool.features[:, 2])[-3:]])
    weights = np.zeros(pool.features.shape[1] + 1)
    weights[2] = 1.0

    def spread(picks):
        rows = credit_features(log_of(picks, [-1.0] * (len(picks) + 1)), pool, pool.features)
        return np.std(np.concatenate(row_credits([rows], weights, pool.features)[0]))

    assert spread([best] * 4) < 0.5 * spread([pool.ids[i::4] for i in range(4)])

"""What steps were worth, against sums, hand-worked examples and what must cancel."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from raysift.policy.rewards import (
    carried_over,
    centred,
    generalised_advantages,
    interval_gains,
    interval_steps,
    intervals,
    less_carried_over,
    over_steps,
    rewards,
    scaled_by_step,
    smoothed,
    surprises,
)

from ...tiny_policies import log_of, random_log, tiny_pool  # noqa: TID252


def log_with(performance):
    return log_of([np.array([number]) for number in range(len(performance) - 1)], performance)


@pytest.mark.parametrize("seed", range(5))
def test_rewards_sum_to_what_the_training_gained(seed):
    episode = random_log(tiny_pool(30), 12, 4, seed)
    gains, found = rewards(episode), episode.performance
    assert gains.sum() == pytest.approx(found[-1] - found[0], abs=1e-12)
    assert gains.tolist() == [after - before for before, after in pairwise(found)]


def test_steps_between_two_measurements_share_the_gain():
    gains = rewards(log_with([-3.0, None, None, -1.5, None, -1.0]))
    assert gains.tolist() == [0.5, 0.5, 0.5, 0.25, 0.25]
    assert gains.sum() == 2.0


def test_intervals_lie_between_measurements():
    episode = log_with([-3.0, None, None, -1.5, None, -1.0])
    assert intervals(episode) == [(0, 3), (3, 5)] and interval_gains(episode).tolist() == [1.5, 0.5]
    assert interval_steps(episode) == 3
    assert over_steps(np.array([7.0, 8.0]), episode).tolist() == [7.0, 7.0, 7.0, 8.0, 8.0]


@pytest.mark.parametrize("performance", [[None, -1.0, -0.5], [-1.0, -0.5, None], [None, None]])
def test_a_training_without_its_start_or_end_is_refused(performance):
    with pytest.raises(ValueError, match="at the start and after the last step"):
        rewards(log_with(performance))


def test_advantages_of_a_hand_worked_example():
    """gamma 1/2, lambda 1/2; d_3 = 2 + 0 - 2 = 0, d_2 = 0 + 1 - 4 = -3, d_1 = 1 + 2 - 0 = 3; then back with 1/4."""
    advantages, returns = generalised_advantages(np.array([1.0, 0.0, 2.0]), np.array([0.0, 4.0, 2.0]), 0.5, 0.5)
    assert advantages.tolist() == [3 - 3 / 4, -3.0, 0.0]
    assert returns.tolist() == [2.25, 1.0, 2.0]


def test_without_discount_and_critic_an_advantage_is_the_remaining_gain():
    episode = random_log(tiny_pool(30), 12, 4)
    advantages, returns = generalised_advantages(rewards(episode), np.zeros(12), 1.0, 1.0)
    expected = episode.performance[-1] - episode.performance[:-1]
    np.testing.assert_allclose(advantages, expected, atol=1e-12)
    np.testing.assert_allclose(returns, expected, atol=1e-12)


def test_with_lambda_1_the_returns_are_the_discounted_gains_whatever_the_critic():
    rng = np.random.default_rng(0)
    gains = rng.standard_normal(6)
    expected = [sum(0.9**later * gain for later, gain in enumerate(gains[t:])) for t in range(6)]
    for values in (np.zeros(6), rng.standard_normal(6)):
        np.testing.assert_allclose(generalised_advantages(gains, values, 0.9, 1.0)[1], expected, atol=1e-12)
    one_step, _ = generalised_advantages(gains, np.zeros(6), 0.9, 0.0)
    np.testing.assert_allclose(one_step, gains)


def test_the_window_narrows_at_the_ends():
    assert smoothed(np.array([1.0, 2.0, 6.0, 7.0]), 3).tolist() == [1.5, 3.0, 5.0, 6.5]
    assert smoothed(np.array([1.0, 2.0]), 1).tolist() == [1.0, 2.0]
    assert smoothed(np.array([1.0, 3.0]), 99).tolist() == [2.0, 2.0]


def test_the_curve_that_all_trainings_have_is_taken_out():
    curve = 0.5 ** np.arange(8.0)
    noise = np.random.default_rng(0).standard_normal((4, 8))
    np.testing.assert_allclose(surprises([*noise], 0.5, 1), surprises([*(noise + curve)], 0.5, 1), atol=1e-12)


def test_scales_of_losses_do_not_matter():
    rng = np.random.default_rng(0)
    advantages = [rng.standard_normal(9) for _ in range(3)]
    tiny = [1e-4 * found for found in advantages]
    np.testing.assert_allclose(centred(advantages), centred(tiny), rtol=1e-9)
    np.testing.assert_allclose(scaled_by_step(advantages, 3), scaled_by_step(tiny, 3), rtol=1e-9)
    every = np.concatenate(centred(advantages))
    assert every.mean() == pytest.approx(0, abs=1e-12) and every.std() == pytest.approx(1)


def test_steps_of_little_gain_count_like_those_of_much():
    falling = [0.5 ** np.arange(12) * sign for sign in (1.0, -1.0)]
    scaled = scaled_by_step(falling, 1)
    np.testing.assert_allclose(np.abs(scaled), 1.0)
    assert (scaled[0] > 0).all() and (scaled[1] < 0).all()


def test_gains_that_are_all_alike_divide_by_nothing():
    same = [np.zeros(4), np.zeros(4)]
    assert np.array_equal(scaled_by_step(same, 3), same) and np.array_equal(centred(same), same)


def test_what_the_step_before_foretells_is_taken_off():
    assert less_carried_over([np.array([2.0, 1.0, 4.0])], 0.5)[0].tolist() == [2.0, 0.0, 3.5]
    found = [np.array([2.0, 1.0]), np.array([0.0, 3.0])]
    assert np.array_equal(less_carried_over(found, 0.0), found)


def test_surprises_of_carried_gains_are_what_each_batch_added():
    """Gains that decay by the momentum from step to step, with spread and curve alike in all trainings."""
    rng = np.random.default_rng(0)
    added = rng.standard_normal((400, 30))
    gains = np.zeros((400, 30))
    for step in range(30):
        gains[:, step] = added[:, step] + (0.9 * gains[:, step - 1] if step else 0)
    found = np.stack(surprises(list(gains + 5.0), 0.9, 1))
    late = slice(15, None)  # where the spread has settled
    assert np.corrcoef(found[:, late].ravel(), added[:, late].ravel())[0, 1] > 0.99
    apart = np.corrcoef(found[:, 15:-1].ravel(), found[:, 16:].ravel())[0, 1]
    together = np.corrcoef(gains[:, 15:-1].ravel(), gains[:, 16:].ravel())[0, 1]
    assert abs(apart) < 0.05 and together > 0.85


def test_one_training_alone_is_set_against_its_own_curve():
    curve = np.array([4.0, 2.0, 1.0])
    assert surprises([curve], 0.0, 1)[0].tolist() == [0.0, 0.0, 0.0]


def test_longer_intervals_foretell_less_of_the_next():
    assert carried_over(0.9, 1) == pytest.approx(0.9) and carried_over(0.0, 4) == 0.0
    shares = [carried_over(0.9, steps) for steps in (1, 2, 5, 20)]
    assert shares == sorted(shares, reverse=True) and shares[-1] > 0
    rng = np.random.default_rng(0)
    gains = np.zeros(200_001)
    for step in range(1, len(gains)):
        gains[step] = 0.9 * gains[step - 1] + rng.standard_normal()
    blocks = gains[1:].reshape(-1, 5).sum(axis=1)
    assert np.corrcoef(blocks[:-1], blocks[1:])[0, 1] == pytest.approx(carried_over(0.9, 5), abs=0.02)

"""A policy that has collapsed or learned nothing is told apart from a healthy one by its numbers alone."""

import numpy as np
import pytest

from raysift.policy.verdict import FEWEST_ROUNDS, PolicyStory, describe_policy, gain, uniform_distinct

FLAT = [-0.951, -0.948, -0.957, -0.95, -0.946, -0.955, -0.949, -0.953, -0.951, -0.95]
RISING = [-0.95, -0.94, -0.93, -0.925, -0.9, -0.89, -0.885, -0.86, -0.85, -0.84]


def story(performances, distinct=85, entropy=0.7, reports=(), start=-0.96, end=-0.94):
    return PolicyStory(performances, reports, entropy, 573, 16, 6, distinct, start, end)


@pytest.mark.parametrize("distinct", [85, 60, 30])
def test_a_policy_whose_trainings_get_better_is_healthy_however_it_narrows_to_good_rows(distinct):
    assert describe_policy(story(RISING, distinct)) is None


def test_a_gain_on_examples_that_no_policy_sees_counts_as_well():
    assert describe_policy(story(FLAT, 60, reports=RISING)) is None
    assert describe_policy(story(FLAT, 60, reports=[None] * len(FLAT))) is not None


def test_a_policy_that_repeats_few_rows_without_gain_has_collapsed():
    """One story of a first-time user: all picks were of one skill, and not the target's."""
    said = describe_policy(story(FLAT, distinct=38))
    assert said.startswith(
        "The policy has collapsed: the training under it picked 38 different rows in 96 picks, where "
    )
    assert "uniform draws would pick 90" in said and "of 10 rounds its performance changed by" in said
    assert "no more than a random one" in said and "raise.policy.max_repeats=1" in said


def test_diverse_picks_without_gain_are_said_to_be_no_better_than_uniform_ones():
    said = describe_policy(story(FLAT))
    assert said.startswith("The policy has not learned to pick better than uniform draws: from the first to the last")


@pytest.mark.parametrize(("distinct", "entropy"), [(85, 0.01), (16, 0.7)])
def test_no_entropy_or_the_same_batch_again_and_again_is_a_collapse_even_with_a_gain(distinct, entropy):
    said = describe_policy(story(RISING, distinct, entropy))
    assert said.startswith("The policy has collapsed") and "random" not in said


def test_a_training_that_leaves_the_model_worse_is_said_too():
    assert "no better on the target's examples (-0.93 before, -0.94 after)" in describe_policy(story(FLAT, start=-0.93))


@pytest.mark.parametrize("rounds", range(FEWEST_ROUNDS))
def test_too_few_rounds_say_nothing_about_gain(rounds):
    assert gain(FLAT[:rounds]) is None
    assert describe_policy(story(FLAT[:rounds], entropy=None if not rounds else 0.7)) is None
    assert describe_policy(story(FLAT[:rounds], distinct=16)).startswith("The policy has collapsed")


def test_the_interval_covers_the_true_change_as_often_as_it_says():
    rng, rounds = np.random.default_rng(0), 12
    true = np.linspace(0, 0.3, rounds)
    covered = [low <= 0.3 <= high for _, low, high in (gain(true + rng.normal(0, 0.1, rounds)) for _ in range(2000))]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_uniform_draws_pick_as_many_different_rows_as_they_do_when_drawn():
    rng = np.random.default_rng(0)
    drawn = [len({row for _ in range(6) for row in rng.choice(573, 16, replace=False)}) for _ in range(300)]
    assert uniform_distinct(573, 16, 6) == pytest.approx(np.mean(drawn), rel=0.01)
    assert uniform_distinct(4, 4, 3) == pytest.approx(4)

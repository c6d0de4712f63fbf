"""Intervals against tables, against each other, and against their own promise: how often they hold the truth."""

import numpy as np
import pytest

from raysift.errors import DataError
from raysift.evaluation.intervals import mean_interval, ratio_interval, seeds_interval, t_quantile, wilson_interval


@pytest.mark.parametrize(
    ("freedom", "expected"),  # the 0.975 column of a printed table of Student's t
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042), (120, 1.980), (10**7, 1.960)],
)
def test_t_quantile_agrees_with_the_printed_table(freedom, expected):
    assert t_quantile(0.975, freedom) == pytest.approx(expected, abs=6e-4)
    assert t_quantile(0.025, freedom) == pytest.approx(-expected, abs=6e-4)


def test_t_quantile_agrees_with_the_closed_form_of_two_degrees_of_freedom():
    for p in (0.6, 0.9, 0.995, 0.9999):
        assert t_quantile(p, 2) == pytest.approx((2 * p - 1) / np.sqrt(2 * p * (1 - p)), rel=1e-9)


def test_wilson_interval_of_a_worked_example():
    # p = 0.8, n = 10, z = 1.96: centre (0.8 + 0.19207) / 1.38415 = 0.71674, half 0.22657 (Wilson 1927)
    assert wilson_interval(8, 10) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (0, 50), (50, 50), (3, 7)])
def test_wilson_interval_stays_inside_and_keeps_a_width(right, n):
    mean, low, high = wilson_interval(right, n)
    assert 0 <= low <= mean <= high <= 1
    assert high > low


def test_wilson_interval_holds_the_truth_as_often_as_it_says():
    rights = np.random.default_rng(0).binomial(60, 0.3, size=4000)
    held = [low <= 0.3 <= high for _, low, high in (wilson_interval(int(r), 60) for r in rights)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.02)


def test_mean_interval_of_a_worked_example():
    # 1, 2, 3: mean 2, s = 1, t(2) = 4.3027, half 4.3027 / sqrt(3) = 2.4841
    assert mean_interval([1, 2, 3]) == pytest.approx((2, 2 - 2.4841, 2 + 2.4841), abs=1e-4)
    assert mean_interval([0.5]) == (0.5, None, None)


def test_ratio_interval_is_the_mean_interval_where_all_counts_agree():
    values = np.random.default_rng(4).random(20)
    assert ratio_interval(7 * values, np.full(20, 7)) == pytest.approx(mean_interval(values))


def test_ratio_interval_agrees_with_the_bootstrap_of_rows():
    rng = np.random.default_rng(5)
    counts = rng.integers(1, 200, 400)
    totals = counts * rng.normal(2, 0.5, 400)
    drawn = rng.integers(0, 400, (4000, 400))
    low, high = np.quantile(totals[drawn].sum(axis=1) / counts[drawn].sum(axis=1), [0.025, 0.975])
    interval = ratio_interval(totals, counts)
    assert interval.mean == pytest.approx(totals.sum() / counts.sum())
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.15 * (high - low))


def test_interval_moves_with_a_shift_and_does_not_know_the_order():
    scores = np.random.default_rng(1).random((4, 30))
    moved = seeds_interval(scores[::-1, ::-1] + 10)
    assert moved == pytest.approx([x + 10 for x in seeds_interval(scores)])


def test_an_interval_ends_where_means_can_lie():
    wide = mean_interval([0.7, 1.0])
    assert wide.high > 1 and wide.low < 0
    assert wide.within(0, 1) == (wide.mean, 0, 1)
    assert mean_interval([0.4, 0.5, 0.6]).within(0, 1) == mean_interval([0.4, 0.5, 0.6])
    assert mean_interval([0.4]).within(0, 1) == (0.4, None, None)


def test_seeds_interval_is_as_wide_as_seeds_alone_when_examples_agree():
    by_seed = np.array([0.2, 0.5, 0.3, 0.4])
    table = np.repeat(by_seed[:, None], 50, axis=1)
    assert seeds_interval(table) == pytest.approx(mean_interval(by_seed))


def test_seeds_interval_is_as_wide_as_examples_alone_when_seeds_agree():
    by_example = np.random.default_rng(2).random(50)
    assert seeds_interval(np.repeat(by_example[None], 4, axis=0)) == pytest.approx(mean_interval(by_example))


def test_seeds_interval_holds_the_truth_where_seeds_or_examples_alone_do_not():
    rng = np.random.default_rng(3)
    held, held_by_seeds, held_by_examples = [], [], []
    for _ in range(500):
        table = rng.normal(0, 1, (5, 1)) + rng.normal(0, 2, (1, 20)) + rng.normal(0, 1, (5, 20))
        for interval, kept in (
            (seeds_interval(table), held),
            (mean_interval(table.mean(axis=1)), held_by_seeds),
            (mean_interval(table.mean(axis=0)), held_by_examples),
        ):
            kept.append(interval.low <= 0 <= interval.high)
    assert 0.93 <= np.mean(held) <= 0.995
    assert np.mean(held_by_seeds) < 0.92
    assert np.mean(held_by_examples) < 0.92


def test_missing_numbers_are_refused_and_counted():
    with pytest.raises(DataError, match="1 of 3 numbers are missing"):
        mean_interval([0.1, float("nan"), 0.3])
    with pytest.raises(DataError, match="shape"):
        seeds_interval([0.1, 0.2])
    with pytest.raises(DataError, match="0 right answers of 0"):
        wilson_interval(0, 0)

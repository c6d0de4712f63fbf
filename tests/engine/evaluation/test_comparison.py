"""Comparing methods: intervals of paired differences, what more seeds would tell, overlap, ranks, and where spread comes from."""

import numpy as np
import pytest

from raysift.errors import DataError
from raysift.evaluation.comparison import (
    Difference,
    Overlap,
    overlap,
    paired_difference,
    rank_correlation,
    seeds_needed,
    split_spread,
    verdict,
)
from raysift.evaluation.intervals import Interval, seeds_interval


def world(rng, seeds, questions, gain=0.0, seed_sd=0.02, question_sd=0.3, rest_sd=0.2):
    """Two methods on the same questions; the first is better by `gain` on average over seeds."""
    hard = rng.normal(0, question_sd, questions)
    base = {s: hard + rng.normal(0, rest_sd, questions) for s in range(seeds)}
    better = {s: base[s] + gain + rng.normal(0, seed_sd) + rng.normal(0, rest_sd, questions) for s in base}
    return better, base


def test_what_both_share_does_not_widen_the_interval():
    better, base = world(np.random.default_rng(0), 5, 400, gain=0.1)
    paired = paired_difference(better, base).interval
    alone = seeds_interval(np.stack(list(better.values())))
    assert paired.high - paired.low < alone.high - alone.low
    assert paired.low < 0.1 < paired.high


def test_only_seeds_that_both_have_are_compared():
    better, base = world(np.random.default_rng(1), 4, 50)
    del better[0], base[3]
    assert paired_difference(better, base).seeds == 2
    with pytest.raises(DataError, match="no seed in common"):
        paired_difference({1: better[1]}, {2: base[2]})


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(200):
        low, high = paired_difference(*world(rng, 4, 40, gain=0.05)).interval[1:]
        inside += low <= 0.05 <= high
    assert 0.92 <= inside / 200 <= 1.0


def test_as_many_seeds_as_are_said_to_be_needed_do_narrow_the_interval():
    rng = np.random.default_rng(3)

    def differences(seeds):
        better, base = world(rng, seeds, 500, seed_sd=0.05, rest_sd=0.1)
        return paired_difference(better, base, gain=0.03)

    more = int(np.median([differences(4).more_seeds for _ in range(25)]))
    assert more > 0
    widths = [(found.high - found.low) / 2 for found in (differences(4 + more).interval for _ in range(25))]
    assert np.median(widths) == pytest.approx(0.03, rel=0.25)


def test_no_seeds_are_missing_where_the_interval_is_narrow_and_none_would_do_where_questions_are_too_few():
    rng = np.random.default_rng(4)
    assert seeds_needed(rng.normal(0, 1e-4, (5, 100)), 0.01) == 0
    by_question = np.tile(rng.normal(0, 0.4, 10), (6, 1))
    assert seeds_needed(by_question + rng.normal(0, 1e-3, by_question.shape), 0.01) is None
    assert seeds_needed(rng.normal(0, 1, (1, 100)), 0.01) is None


def test_overlap_of_random_selections_is_what_chance_gives():
    rng = np.random.default_rng(5)
    draws = [rng.choice(2000, size, replace=False) for size in (200, 300) * 100]
    found = [overlap(draws[i], draws[i + 1], 2000) for i in range(0, 200, 2)]
    assert np.mean([one.jaccard for one in found]) == pytest.approx(found[0].by_chance, rel=0.05)
    assert overlap([1, 2], [1, 2], 4) == Overlap(1.0, 1 / 3)
    assert overlap([1, 2], [3, 4], 4).jaccard == 0
    with pytest.raises(DataError):
        overlap([1, 2], [3, 4], 1)


def test_rank_correlation_is_that_of_mean_ranks():
    assert rank_correlation([1, 2, 3], [10, 20, 90]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 1, 2], [1, 2, 3]) == pytest.approx(np.corrcoef([1.5, 1.5, 3], [1, 2, 3])[0, 1])
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None


def test_spread_of_selection_and_of_training_are_told_apart():
    rng = np.random.default_rng(6)
    found = [split_spread(rng.normal(0, 0.05, (6, 1)) + rng.normal(0, 0.02, (6, 6))) for _ in range(200)]
    assert np.mean([one.selection**2 for one in found]) ** 0.5 == pytest.approx(0.05, rel=0.1)
    assert np.mean([one.training**2 for one in found]) ** 0.5 == pytest.approx(0.02, rel=0.1)
    with pytest.raises(DataError):
        split_spread([[1.0], [2.0]])


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        (Difference(Interval(0.05, 0.02, 0.08), 3, 4), "rose: better than uniform (+5.0, 2.0 to 8.0)"),
        (Difference(Interval(-0.05, -0.08, -0.02), 3, 4), "rose: worse than uniform (-5.0, -8.0 to -2.0)"),
        (
            Difference(Interval(0.004, -0.009, 0.017), 3, 7),
            "rose: not told apart from uniform (+0.4, -0.9 to 1.7; about 7 more seeds would tell 1 point)",
        ),
        (
            Difference(Interval(0.004, -0.009, 0.017), 2, None),
            "rose: not told apart from uniform (+0.4, -0.9 to 1.7; more questions are needed to tell 1 point); "
            "indicative, with 2 seeds",
        ),
        (
            Difference(Interval(0.1, None, None), 1, None),
            "rose: +10.0 against uniform in one seed, which tells nothing of the spread",
        ),
    ],
)
def test_a_verdict_says_what_the_interval_says(difference, said):
    assert verdict("rose", "uniform", difference) == said

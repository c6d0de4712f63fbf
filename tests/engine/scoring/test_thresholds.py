"""Bars against sorting by hand; strict at the bar, the same for any sharding."""

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from raysift.errors import DataError
from raysift.scoring.settings import Threshold
from raysift.scoring.thresholds import (
    cut_above,
    cut_below,
    describe_cut,
    describe_scale,
    gather_scores,
    histogram,
)


def test_both_comparisons_are_strict():
    """MoDS keeps quality > alpha and necessity < beta; a score on the bar passes neither."""
    scores = [-1.0, 0.0, 0.0, 2.5]
    above, below = cut_above(scores, Threshold(value=0.0)), cut_below(scores, Threshold(value=0.0))
    assert above.passes(scores).tolist() == [False, False, False, True]
    assert below.passes(scores).tolist() == [True, False, False, False]
    assert (above.passed, above.failed, above.at_bar) == (1, 3, 2)
    assert (below.passed, below.failed, below.at_bar) == (1, 3, 2)


def test_no_threshold_lets_every_score_pass():
    cut = cut_above([float("-inf"), -5.0], Threshold())
    assert (cut.value, cut.passed) == (None, 2)


@pytest.mark.parametrize("quantile", [0.0, 0.1, 0.25, 0.5, 0.7, 0.99, 1.0])
@pytest.mark.parametrize("n", [1, 2, 7, 30, 1000])
def test_quantile_passes_its_share_where_no_scores_are_equal(quantile, n):
    scores = np.random.default_rng(n).permutation(n) * 1.5 - 3
    in_order = sorted(scores)
    dropped = -(-round(quantile * 100) * n // 100)  # ceil, in whole numbers
    assert in_order[dropped:] == sorted(scores[cut_above(scores, Threshold(quantile=quantile)).passes(scores)])
    kept = round(quantile * 100) * n // 100
    assert in_order[:kept] == sorted(scores[cut_below(scores, Threshold(quantile=quantile)).passes(scores)])


def test_quantile_is_of_the_decimal_number():
    """0.1 x 30 is 3.0000000000000004 in floating point, whose ceiling is 4."""
    assert cut_above(np.arange(30), Threshold(quantile=0.1)).value == 2.0


def test_equal_scores_at_the_bar_stay_out_together_and_it_is_said():
    scores = [0.0] * 10 + [1.0] * 80 + [2.0] * 10
    threshold = Threshold(quantile=0.5)
    cut = cut_above(scores, threshold)
    assert (cut.value, cut.passed, cut.at_bar) == (1.0, 10, 80)
    (warning,) = describe_cut("quality", cut, threshold)
    assert warning == (
        "quality: 80 rows share the score 1 of the threshold and do not pass, so 10 rows pass instead of 50."
    )


@pytest.mark.parametrize("shards", [1, 2, 7])
def test_the_bar_does_not_depend_on_shards_or_their_order(shards):
    rng = np.random.default_rng(1)
    values = [None if rng.random() < 0.1 else float(score) for score in rng.normal(size=500)]
    parts = [pa.array(values[i::shards], pa.float64()) for i in rng.permutation(shards)]
    scores, missing = gather_scores([*parts, pa.chunked_array([], pa.float64())])
    whole = np.array([value for value in values if value is not None])
    assert missing == 500 - len(whole)
    assert cut_above(scores, Threshold(quantile=0.3)) == cut_above(whole, Threshold(quantile=0.3))


def test_scores_that_are_no_numbers_never_reach_the_sort():
    with pytest.raises(DataError, match="1 of 3 scores are NaN"):
        cut_above([1.0, float("nan"), 2.0], Threshold(quantile=0.5))
    with pytest.raises(DataError, match="1 of 2 scores are NaN"):
        gather_scores([pa.array([1.0, float("nan")])])
    with pytest.raises(DataError, match="no row has a score"):
        cut_below([], Threshold(quantile=0.5))


def test_a_threshold_is_a_value_or_a_quantile():
    with pytest.raises(ValidationError, match="not both"):
        Threshold(value=0.0, quantile=0.5)
    with pytest.raises(ValidationError):
        Threshold(value=float("nan"))


def test_nothing_and_everything_passing_is_said():
    scores, threshold = [1.0, 2.0], Threshold(value=5.0)
    assert describe_cut("quality", cut_above(scores, threshold), threshold) == [
        "quality: none of 2 scores is > 5, so nothing is left. Move the threshold."
    ]
    (warning,) = describe_cut("necessity", cut_below(scores, threshold), threshold)
    assert "all 2 scores are < 5" in warning
    middle = Threshold(value=1.5)
    assert describe_cut("quality", cut_above(scores, middle), middle) == []


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([0.25] * 9, "all 9 scores are 0.25"),
        ([0.0] * 60 + list(range(1, 41)), "60% of 100 rows have the very same score, 0."),
        ([i % 4 for i in range(200)], "200 rows have only 4 different scores"),
        ([*np.linspace(0, 1, 20_000), 1e6], "nearly all scores are alike"),
        (7 + np.linspace(0, 1e-5, 50), "scores differ by 1e-05 only, around 7"),
        ([1.0, 2.0, float("inf")], "some scores are infinite"),
    ],
)
def test_scores_that_hardly_tell_rows_apart_are_said(scores, said):
    (warning,) = describe_scale("quality", scores)
    assert said in warning


def test_ordinary_scores_are_left_alone():
    rng = np.random.default_rng(0)
    for scores in (rng.normal(size=300), rng.normal(100, 3, 50), rng.exponential(size=5000), [1.0], []):
        assert describe_scale("quality", scores) == []


def test_histogram_holds_every_score():
    scores = np.random.default_rng(0).normal(size=1000)
    bins = histogram(scores, bins=7)
    assert (len(bins), sum(bin.count for bin in bins)) == (7, 1000)
    assert (bins[0].low, bins[-1].high) == (scores.min(), scores.max())
    assert histogram([2.0, 2.0])[0].count == 2 and histogram([]) == []
    with pytest.raises(DataError, match="infinite"):
        histogram([1.0, float("inf")])

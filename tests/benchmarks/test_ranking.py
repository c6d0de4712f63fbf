"""AUC against counting all pairs."""

import numpy as np
import pytest

from raysift.errors import DataError

from .ranking import auc, share_raised


@pytest.mark.parametrize("seed", range(5))
def test_auc_is_the_share_of_won_pairs(seed):
    rng = np.random.default_rng(seed)
    high, low = rng.integers(0, 8, 40), rng.integers(-3, 6, 55)  # small integers, so many ties
    pairs = [(one > other) + (one == other) / 2 for one in high for other in low]
    assert auc(high, low) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)


def test_auc_knows_perfect_reversed_and_useless():
    assert (auc([3, 4], [1, 2]), auc([1, 2], [3, 4]), auc([1, 1], [1, 1, 1])) == (1.0, 0.0, 0.5)
    assert auc([1, 5], [2, 3]) == 1 - auc([2, 3], [1, 5])


def test_auc_is_unchanged_by_any_rising_map():
    rng = np.random.default_rng(0)
    high, low = rng.normal(1, 1, 50), rng.normal(0, 1, 60)
    assert auc(np.exp(high), np.exp(low)) == auc(high, low)


def test_share_raised_counts_ties_half():
    assert share_raised([1, 2, 3, 4], [2, 2, 1, 9]) == (2 + 0.5) / 4


def test_missing_scores_are_refused():
    with pytest.raises(DataError, match="'low' must be at least one score"):
        auc([1.0], [])
    with pytest.raises(DataError, match="none of them NaN"):
        auc([1.0, float("nan")], [0.0])
    with pytest.raises(DataError, match="2 scores before and 1 after"):
        share_raised([1, 2], [1])

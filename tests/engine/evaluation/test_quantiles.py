"""Bins by rank, the order of their results, and its interval."""

import math
from itertools import pairwise, permutations

import numpy as np
import pytest

from raysift.errors import DataError
from raysift.evaluation.quantiles import cut_bins, draw_rows, order_of, rank_interval


def spearman(values):
    """Of the places and these values: Pearson's of ranks that are counted one by one, ties at the mean of theirs."""
    ranks = [sum(b < a for b in values) + (sum(b == a for b in values) + 1) / 2 for a in values]
    return float(np.corrcoef(np.arange(len(values)), ranks)[0, 1])


def ranked(rows, values, seed=0):
    """Ids and scores with ties, in any order."""
    draw = np.random.default_rng(seed)
    return draw.choice(10**9, rows, replace=False), draw.integers(0, values, rows).astype(float)


@pytest.mark.parametrize(("rows", "quantiles"), [(12, 3), (100, 10), (101, 10), (1009, 7), (12, 11)])
def test_bins_hold_every_row_once_in_the_order_of_a_full_sort(rows, quantiles):
    ids, scores = ranked(rows, max(2, rows // 3))
    found = cut_bins(ids, scores, quantiles)
    by_hand = [row for _, row in sorted(zip(-scores, ids, strict=True))]
    assert np.concatenate([one.ids for one in found.bins]).tolist() == by_hand
    sizes = [len(one.ids) for one in found.bins]
    assert len(sizes) == quantiles and max(sizes) - min(sizes) <= 1
    known = dict(zip(ids.tolist(), scores, strict=True))
    for one in found.bins:
        assert (one.high, one.low) == (known[one.ids[0]], known[one.ids[-1]])
    borders = [(one.low, after.high) for one, after in pairwise(found.bins)]
    assert found.ties == sum(low == high for low, high in borders)


def test_bins_and_draws_are_the_same_for_any_order_of_the_rows():
    ids, scores = ranked(500, 40)
    other = np.random.default_rng(1).permutation(500)
    one, two = cut_bins(ids, scores, 10), cut_bins(ids[other], scores[other], 10)
    for a, b in zip(one.bins, two.bins, strict=True):
        assert a.ids.tolist() == b.ids.tolist()
        drawn = draw_rows(a.ids, 20, 5)
        assert drawn.tolist() == draw_rows(b.ids[::-1], 20, 5).tolist() == sorted({*drawn.tolist()} & {*a.ids.tolist()})
        assert len(drawn) == 20
    assert draw_rows(one.bins[0].ids, 20, 6).tolist() != draw_rows(one.bins[0].ids, 20, 5).tolist()


def test_scores_without_an_order_are_refused():
    with pytest.raises(DataError, match="all 50 scored rows have the same score, 2"):
        cut_bins(np.arange(50), np.full(50, 2.0), 10)
    with pytest.raises(DataError, match="9 rows have a score, 10 bins were asked for"):
        cut_bins(np.arange(9), np.arange(9.0), 10)


@pytest.mark.parametrize("seed", range(8))
def test_the_correlation_is_spearmans_of_the_means(seed):
    draw = np.random.default_rng(seed)
    table = draw.integers(0, 6, (3, 9)) / 7
    expected = spearman(table.mean(axis=0))
    assert order_of(table, rises=False).correlation == pytest.approx(expected)
    assert order_of(table, rises=True).correlation == pytest.approx(-expected)
    counted = [[sum(b < a for b in one) + sum(b == a for b in one) / 2 for a in one] for one in table]
    pairs = [np.corrcoef(counted[a], counted[b])[0, 1] for a, b in ((0, 1), (0, 2), (1, 2))]
    assert order_of(table, rises=False).agreement == pytest.approx(np.mean(pairs))


def test_bins_with_one_result_have_no_order():
    assert order_of(np.full((2, 5), 0.5), rises=False) is None
    assert order_of([[1.0, 2.0, 3.0, 4.0]], rises=False).agreement is None


def share_told(bins, confidence):
    """The share of all orders of so many bins in which an order is told, by going through them."""
    places = range(bins)
    told = 0
    known = {}
    for order in permutations(places):
        square = sum((a - b) ** 2 for a, b in zip(order, places, strict=True))
        if square not in known:
            found = rank_interval(1 - 6 * square / (bins * (bins**2 - 1)), bins, confidence)
            known[square] = not found.low <= 0 <= found.high
        told += known[square]
    return told / math.factorial(bins)


@pytest.mark.parametrize("bins", [4, 5, 6, 7, 8])
def test_an_order_is_told_of_few_orders_drawn_at_random(bins):
    """The exact test, by permutation of the bins, is the slow reference: never more than its share, near it with bins enough."""
    assert share_told(bins, 0.95) <= 0.05
    if bins >= 7:
        assert share_told(bins, 0.95) >= 0.02


def test_three_bins_tell_nothing_and_a_perfect_order_of_few_is_no_certainty():
    assert rank_interval(1.0, 3)[1:] == (-1.0, 1.0)
    lows = [rank_interval(1.0, bins).low for bins in (4, 5, 6, 8, 10, 20)]
    assert lows == sorted(lows) and lows[0] < 0 < lows[1] and lows[-1] < 1
    mirrored = rank_interval(-0.7, 9)
    assert [-end for end in mirrored] == pytest.approx([*rank_interval(0.7, 9)][:1] + [*rank_interval(0.7, 9)][:0:-1])


def test_intervals_hold_the_true_correlation_as_often_as_they_say():
    """Bins are drawn from pairs of known rank correlation; the value that ever more bins would give is the truth."""
    draw = np.random.default_rng(3)
    slope, bins, times = 1.5, 10, 1500

    def results(count):
        rank = np.linspace(-1.7, 1.7, count)
        return slope * rank + draw.normal(size=count)

    many = 200_000  # without ties
    ranks = np.argsort(np.argsort(results(many)))
    truth = np.corrcoef(np.arange(many), ranks)[0, 1]
    held = 0
    for _ in range(times):
        found = order_of([results(bins)], rises=False)
        held += found.low <= truth <= found.high
    assert 0.93 <= held / times <= 1


def test_planted_orders_are_found_and_a_random_one_is_not_however_many_seeds():
    """Bins of a random order differ, and all seeds see that difference; it must not become an order."""
    draw = np.random.default_rng(0)
    told = 0
    for _ in range(300):
        of_bins = draw.normal(size=10)
        found = order_of(of_bins + 0.05 * draw.normal(size=(50, 10)), rises=False)
        told += found.kind != 0
        assert found.agreement > 0.7
    assert told <= 0.05 * 300 + 3 * math.sqrt(300 * 0.05 * 0.95)
    ordered = order_of(np.arange(10) + 0.3 * draw.normal(size=(3, 10)), rises=False)
    assert ordered.correlation > 0.95 and ordered.kind == 1
    assert order_of(-np.arange(10) + 0.3 * draw.normal(size=(3, 10)), rises=False).kind == -1

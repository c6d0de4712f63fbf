"""Which rows stand above the null: what decides signs, the rule of false discoveries on planted data, counts in bins."""

from __future__ import annotations

import numpy as np
import pytest

from raysift.gradients.influence import TargetColumns
from raysift.gradients.null import (
    LEVELS,
    WHOLE,
    NullReduce,
    Tally,
    Weighted,
    excess,
    lowest_above,
    null_counts,
    of_row,
    stand,
    stands_above,
    verdict,
    without_null,
)
from raysift.gradients.null_columns import (
    OLD,
    ROWS,
    SIGNS,
    TOO_FEW,
    NullColumns,
    deal,
    enough_pairs,
    mixes,
    plan_rows,
    random_signs,
    replicates,
    split,
)

PAIRS, WIDTH, POOL = 24, 128, 500


def units(rng, count, width=WIDTH):
    found = rng.standard_normal((count, width))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def signed(rows, pairs, keys, subtasks=1):
    """Scores of rows with the mean of pairs, and with those of random signs: (rows, subtasks), (rows, subtasks, columns)."""
    columns = replicates(subtasks)
    parts = np.array_split(np.arange(len(pairs)), subtasks)
    signs = np.concatenate([random_signs(keys[own], columns) for own in parts])
    real = np.stack([rows @ pairs[own].mean(axis=0) for own in parts], axis=1)
    nulls = np.stack(
        [
            np.stack([rows @ (signs[own, r, None] * pairs[own]).mean(axis=0) for r in range(columns)], axis=1)
            for own in parts
        ],
        axis=1,
    )
    return real, nulls


def held(real, nulls, kind=SIGNS, members=(), rule="max", ids=None):
    subtasks = real.shape[1]
    null = NullColumns(kind, nulls.shape[2], members=(PAIRS,) * subtasks)
    names = TargetColumns.single([f"task {i}" for i in range(subtasks)])
    reduce = NullReduce(null, names, rule, members)
    reduce.add(np.arange(len(real)) if ids is None else ids, real, nulls)
    return reduce.result()


def test_a_members_signs_depend_on_its_content_and_the_seed_alone():
    keys = np.random.default_rng(0).integers(-(2**62), 2**62, 400)
    signs = random_signs(keys, 4, 7)
    assert set(np.unique(signs)) == {-1, 1}
    order = np.random.default_rng(1).permutation(len(keys))
    np.testing.assert_array_equal(random_signs(keys[order], 4, 7), signs[order])
    np.testing.assert_array_equal(random_signs(keys, 2, 7), signs[:, :2])
    assert 0.4 < (random_signs(keys, 4, 8) == signs).mean() < 0.6
    assert np.abs(np.corrcoef(signs.T) - np.eye(4)).max() < 0.2


def test_half_of_a_subtasks_members_have_either_sign_so_that_what_they_share_cancels():
    for count in range(1, 9):
        totals = random_signs(np.arange(count), 4).sum(axis=0)
        assert (np.abs(totals) == count % 2).all()
    assert [enough_pairs(counts) for counts in ([6], [5], [2, 4], [1, 9], [1] * 20)] == [
        True,
        False,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("subtasks", [1, 5])
def test_of_a_hundred_targets_without_meaning_at_most_five_have_a_row_above(subtasks, monkeypatch):
    """The target's own signs are random, too: whatever stands above does so by chance."""
    monkeypatch.setattr("raysift.gradients.null.MOST_BITS", 14)  # fewer bins take less time
    raised = 0
    for draw in range(100):
        rng = np.random.default_rng(draw)
        rows, pairs = units(rng, POOL), units(rng, PAIRS)
        raised += held(*signed(rows, pairs, rng.integers(0, 2**60, PAIRS), subtasks))[WHOLE]["above"] > 0
    assert raised <= 5


@pytest.mark.parametrize("subtasks", [1, 5])
def test_nearly_all_of_a_planted_cluster_stands_above_and_few_others_do(subtasks):
    rng = np.random.default_rng(3)
    meaning = units(rng, 1)[0]
    pairs = units(rng, PAIRS) + 0.7 * meaning
    pairs /= np.linalg.norm(pairs, axis=1, keepdims=True)
    rows = units(rng, POOL)
    planted = rng.random(POOL) < 0.1
    rows[planted] += 0.7 * meaning
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    real, nulls = signed(rows, pairs, rng.integers(0, 2**60, PAIRS), subtasks)
    found = held(real, nulls)[WHOLE]
    above = stands_above(found, real.max(axis=1))
    assert above[planted].mean() > 0.95
    assert found["above"] == above.sum()
    assert not above[real.max(axis=1) <= 0].any()
    best = np.sort(real.max(axis=1))[::-1][: planted.sum()]
    assert excess(found, best) > 3
    assert excess(found, np.sort(nulls.max(axis=(1, 2)))) < excess(found, best)


def test_a_planted_cluster_stands_above_random_rows_and_noise_does_not():
    """All scores share a large offset, and the target's own scale is another one: neither says anything."""
    raised = 0
    for draw in range(100):
        rng = np.random.default_rng(draw)
        real = 0.5 + 0.3 * rng.standard_normal((POOL, 1))
        nulls = rng.uniform(-1, 1, 4) + rng.uniform(0.05, 0.2, 4) * rng.standard_normal((POOL, 1, 4))
        raised += held(real, nulls, ROWS)[WHOLE]["above"] > 0
    assert raised <= 5
    real[:60] += 2
    found = held(real, nulls, ROWS)[WHOLE]
    assert stands_above(found, real[:60, 0]).mean() > 0.95
    assert 60 <= found["above"] <= 68
    again = held(real, 3 * nulls - 1, ROWS)[WHOLE]
    assert again["above"] == found["above"]


def test_rows_that_a_null_target_is_made_of_do_not_count_in_its_pool():
    """They match themselves: among them no row of the pool would stand above."""
    rng = np.random.default_rng(0)
    ids = rng.permutation(POOL).astype(np.int64)
    real = rng.standard_normal((POOL, 1)) * 0.01
    real[:50] += 0.3
    nulls = rng.standard_normal((POOL, 1, 4)) * 0.01
    own = [ids[200 + 20 * r : 220 + 20 * r] for r in range(4)]
    for r in range(4):
        nulls[200 + 20 * r : 220 + 20 * r, 0, r] = 1.0
    assert held(real, nulls, ROWS, own, ids=ids)[WHOLE]["above"] >= 50
    assert held(real, nulls, ROWS, ids=ids)[WHOLE]["above"] == 0


def slow_lowest(real, nulls, pools, most):
    """The rule as its docstring has it, score by score."""
    lowest = None
    for score in sorted(set(real), reverse=True):
        false = np.mean([(null >= score).mean() for null in nulls]) * len(real) + 1 / pools
        if false / (real >= score).sum() <= most:
            lowest = score
    return lowest


def test_the_lowest_score_above_is_that_of_the_rule_score_by_score():
    found = []
    for draw in range(20):
        rng = np.random.default_rng(draw)
        real = np.concatenate([rng.standard_normal(300), rng.standard_normal(draw * 3) + 3]).round(1)
        nulls = [rng.standard_normal(200).round(1) for _ in range(3)]
        own = Weighted(*map(np.float64, np.unique(real, return_counts=True)))
        together = Weighted.of(np.concatenate(nulls), np.full(600, 1 / 600))
        place = lowest_above(own, together, 3)
        found.append(None if place is None else own.values[place])
        assert found[-1] == slow_lowest(real, nulls, 3, 0.1)
    assert None in found and len(set(found)) > 5


def test_counts_in_bins_keep_order_and_value_and_do_not_depend_on_shards():
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.standard_normal(5000) * 10.0 ** rng.integers(-6, 1, 5000), [0.0, -0.0, 1.0, -1.0]])
    whole, parts = Tally(3), Tally(3)
    whole.add(1, scores)
    for part in np.array_split(rng.permutation(scores), 7):
        parts.add(1, part)
    found, other = whole.found(1), parts.found(1)
    np.testing.assert_array_equal(found.values, other.values)
    np.testing.assert_array_equal(found.counts, other.counts)
    assert found.rows == len(scores) and not len(whole.found(0).values)
    assert (np.diff(found.values) > 0).all()
    for level in (0.01, 0.5, 0.99):
        assert found.quantiles(np.array([level]))[0] == pytest.approx(np.quantile(scores, level), rel=2**-8)
    # The lowest number of a bin has in and above it exactly the scores from there on.
    for place in range(0, len(found.values), 97):
        assert found.counts[place:].sum() == (scores.astype(np.float32) >= np.float32(found.values[place])).sum()


def test_combinations_of_null_columns_are_as_long_as_they_and_balanced():
    for columns in (1, 2, 4):
        found = mixes(SIGNS, columns)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1)
        np.testing.assert_allclose(found.sum(axis=0), 0, atol=1e-12)
        assert len(np.unique(found.round(6), axis=0)) == len(found)
    np.testing.assert_array_equal(mixes(ROWS, 3), np.eye(3))


def test_random_rows_are_few_of_the_pool_each_in_one_column_if_there_are_enough():
    counts = {"a": 24, "b": 6}
    assert plan_rows(counts, 2, 25_000) == ({"a": 12, "b": 6}, 36)  # more than 12 rows change nothing
    assert plan_rows(counts, 2, 900) == ({"a": 12, "b": 6}, 36)
    assert plan_rows(counts, 2, 800) is None  # would be 5 for the 6 of b
    assert plan_rows({"a": 24}, 4, 800) == ({"a": 8}, 32) and plan_rows({"a": 24}, 4, 799) is None
    assert plan_rows(dict.fromkeys("abc", 1), 2, 3) == (dict.fromkeys("abc", 1), 3)
    dealt = deal(list(range(36)), counts | {"a": 12}, 2)
    assert sorted(row for own in dealt for rows in own.values() for row in rows) == list(range(36))
    assert deal([1, 2], {"a": 3}, 2) == [{"a": [1, 2]}, {"a": [1, 2]}]
    assert deal([], {"a": 3}, 1) == [{"a": []}]


def test_each_subtask_is_held_against_its_own_null_unless_its_pairs_are_too_few():
    rng = np.random.default_rng(0)
    real, nulls = 0.01 * rng.standard_normal((POOL, 4)), 0.01 * rng.standard_normal((POOL, 4, 1))
    real[:80, 2] += 1
    null = NullColumns(SIGNS, 1, members=(9, 9, 9, 2))
    reduce = NullReduce(null, TargetColumns.single("abcd"), "max")
    for start in range(0, POOL, 300):
        part = slice(start, start + 300)
        reduce.add(np.arange(POOL)[part], real[part], nulls[part])
    found = reduce.result()
    assert [found[name]["above"] for name in "ab"] == [0, 0]
    assert 80 <= found["c"]["above"] <= 90 and 80 <= found[WHOLE]["above"] <= 90
    assert found["d"] == {} and excess({}, real[:, 3]) is None


def test_scores_become_null_scores_by_the_same_rule_over_subtasks():
    rng = np.random.default_rng(0)
    columns = TargetColumns(("a", "b", "c"), (0, 0, 1), (2.0, 0.5))
    real, nulls = rng.standard_normal((POOL, 3)), rng.standard_normal((POOL, 3, 2))
    for rule in ("max", "mean", "round_robin"):
        reduce = NullReduce(NullColumns(ROWS, 2, members=(9,) * 3), columns, rule)
        reduce.add(np.arange(POOL), real, nulls)
        join = np.mean if rule == "mean" else np.max
        expected = [2 * join(n[:, :2], axis=1) + 0.5 * n[:, 2] for n in (real, nulls[..., 0], nulls[..., 1])]
        whole = reduce.result()[WHOLE]
        np.testing.assert_allclose(whole["real"][45], np.quantile(expected[0], LEVELS[45]), rtol=0.02, atol=0.01)
        scaled = [(n - np.median(n)) / (1.4826 * np.median(np.abs(n - np.median(n)))) for n in expected[1:]]
        top = np.quantile(np.concatenate(scaled), LEVELS[50])
        assert whole["null"][50] == pytest.approx(top, rel=0.05)


def test_equal_scores_and_empty_pools_have_no_row_above_and_no_made_up_figures():
    same = Weighted(np.array([0.5]), np.array([100.0]))
    found = stand(SIGNS, 4, same, [same])
    assert (found["above"], found["lowest"]) == (0, None)
    assert not stands_above(found, np.full(3, 0.5)).any()
    assert excess(found, np.full(3, 0.5)) == pytest.approx(0)
    assert stand(ROWS, 1, same, [same])["above"] == 0
    empty = Weighted(np.empty(0), np.empty(0))
    assert stand(SIGNS, 4, empty, [same]) == stand(SIGNS, 4, same, [empty]) == {}


def test_the_nulls_share_of_a_histogram_adds_up_to_the_pool():
    rng = np.random.default_rng(0)
    real, nulls = rng.standard_normal((POOL, 1)), rng.standard_normal((POOL, 1, 4))
    for kind in (SIGNS, ROWS):
        found = held(real, nulls * (2 if kind == ROWS else 1), kind)[WHOLE]
        counts = null_counts(found, np.linspace(-5, 5, 21))
        assert counts.sum() == pytest.approx(POOL, abs=12)
        expected = np.histogram(rng.standard_normal(10 * POOL), np.linspace(-5, 5, 21))[0] / 10
        assert np.abs(counts - expected).max() < 40


def test_columns_of_a_subtask_lie_side_by_side_its_own_first():
    matches = np.arange(24.0).reshape(2, 12)
    real, nulls = split(matches, 4)
    np.testing.assert_array_equal(real, [[0, 4, 8], [12, 16, 20]])
    np.testing.assert_array_equal(nulls[0], [[1, 2, 3], [5, 6, 7], [9, 10, 11]])
    alone, none = split(matches, 1)
    assert alone.shape == (2, 12) and none.shape == (2, 12, 0)
    assert split(matches[:0], 4)[1].shape == (0, 3, 3)  # a file of failed rows alone


def test_a_sentence_says_what_stands_above_and_never_more_than_is_known():
    assert verdict(SIGNS, 81, 78) == "of 81 selected rows 78 stand above what random signs of the same pairs give"
    assert verdict(ROWS, 81, 0) == (
        "no selected row stands above what random rows of the pool give as a target: this selection may be noise"
    )
    assert verdict(SIGNS, 81, 0).endswith("this selection is noise")
    assert verdict(SIGNS, 81, 1).endswith(
        "1 stands above what random signs of the same pairs give: most of this selection may be noise, and a smaller budget "
        "would hold less of it"
    )
    assert NullColumns.of({}).why == OLD and not NullColumns.of({}).usable
    assert "rescore" in without_null(OLD) and "6 different pairs" in without_null(TOO_FEW)
    assert "may be noise" in of_row(SIGNS, False) and "noise" not in of_row(SIGNS, True)

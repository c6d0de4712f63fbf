"""Batches from scores: the shares of classes, ties, and draws against the chances that softmax gives them."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from raysift.errors import DataError
from raysift.policy.classes import class_quotas
from raysift.policy.drawing import Draw, best_of_classes, class_members

from ...tiny_policies import tiny_pool  # noqa: TID252


def keys_of(rows, seed=1):
    return np.random.default_rng(seed).standard_normal(rows)


@pytest.mark.parametrize("classes", [1, 2, 4, 8])
def test_each_class_gives_b_rows_and_they_are_its_best(classes):
    pool, keys = tiny_pool(200, classes), keys_of(200)
    batch = best_of_classes(pool.ids, keys, class_members(pool.classes), 16)
    assert len(set(batch.tolist())) == 16
    for number in range(classes):
        rows = np.flatnonzero(pool.classes == number)
        best = pool.ids[rows[np.argsort(-keys[rows])][: 16 // classes]]
        assert set(best) == set(batch) & set(pool.ids[rows])


def test_a_class_that_has_too_few_rows_gives_all_and_others_the_rest():
    ids, classes = np.arange(20), np.array([0] * 2 + [2] * 9 + [3] * 9)  # no row of class 1
    batch = best_of_classes(ids, -ids.astype(float), class_members(classes), 12)
    assert batch.tolist() == [0, 1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 15]
    assert len(best_of_classes(ids, keys_of(20), class_members(classes), 99)) == 20


def test_ties_go_to_the_smaller_id_wherever_it_lies():
    ids = np.array([9, 3, 7, 1, 5])
    assert best_of_classes(ids, np.zeros(5), class_members([0] * 5), 3).tolist() == [1, 3, 5]


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(DataError, match="NaN"):
        best_of_classes(np.arange(3), np.array([0.0, np.nan, 1.0]), class_members([0, 0, 0]), 1)


def test_closed_rows_are_never_taken_and_what_they_lack_is_made_up_for():
    ids, classes = np.arange(30), np.arange(30) % 3
    open_rows = (ids % 3 != 0) | (ids >= 24)  # of class 0 only 24 and 27
    batch = best_of_classes(ids, -ids.astype(float), class_members(classes), 9, open_rows)
    assert sorted(batch) == [1, 2, 4, 5, 7, 8, 10, 24, 27]
    assert len(best_of_classes(ids, keys_of(30), class_members(classes), 9, np.zeros(30, bool))) == 0


def test_members_are_the_rows_of_each_class_in_order():
    assert [m.tolist() for m in class_members([2, 0, 2, 0])] == [[1, 3], [], [0, 2]]


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_rows_and_the_shards_they_lie_in_are_of_no_effect(seed):
    pool, draw = tiny_pool(120, 3, seed), Draw(seed, "round 1, training 0")
    scores = keys_of(120, seed)
    whole = best_of_classes(pool.ids, scores + draw.noise(pool.ids, 4), class_members(pool.classes), 12)
    for shards in (1, 2, 7):
        order = np.random.default_rng(shards).permutation(120)
        parts = np.array_split(order, shards)
        noise = np.concatenate([draw.noise(pool.ids[part], 4) for part in parts])
        found = best_of_classes(pool.ids[order], scores[order] + noise, class_members(pool.classes[order]), 12)
        assert found.tolist() == whole.tolist()


def test_every_name_draws_differently_and_the_same_name_the_same():
    ids = np.arange(1000)
    noises = [
        Draw(seed, purpose).noise(ids, step) for seed in (0, 1) for purpose in ("round 1", "round 2") for step in (1, 2)
    ]
    assert np.array_equal(noises[0], Draw(0, "round 1").noise(ids, 1))
    correlations = np.corrcoef(noises) - np.eye(8)
    assert np.abs(correlations).max() < 0.15


def test_noise_is_that_of_gumbel_and_always_a_number(monkeypatch):
    noise = Draw(0, "x").noise(np.arange(200_000), 1)
    assert np.isfinite(noise).all()
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=0.01)
    assert noise.var() == pytest.approx(np.pi**2 / 6, rel=0.02)
    monkeypatch.setattr("raysift.policy.drawing.uniform_of", lambda ids, seed: np.array([0.0, 1 - 2.0**-53]))
    assert np.isfinite(Draw(0, "x").noise(np.arange(2), 1)).all()


def test_draws_follow_the_softmax_without_replacement():
    """Five thousand classes of the same four rows: how often each ordered pair comes out first."""
    groups, scores = 5000, np.array([1.0, 0.0, -0.5, 0.5])
    ids, chances = np.arange(4 * groups), np.exp(scores) / np.exp(scores).sum()
    counts: dict[tuple[int, int], int] = dict.fromkeys(permutations(range(4), 2), 0)
    for step in (1, 2, 3):
        keys = np.tile(scores, groups) + Draw(7, "frequency").noise(ids, step)
        for first, second in best_of_classes(ids, keys, class_members(ids // 4), 2 * groups).reshape(-1, 2) % 4:
            counts[first, second] += 1
    total = 3 * groups
    chi = 0.0
    for (first, second), count in counts.items():
        expected = total * chances[first] * chances[second] / (1 - chances[first])
        chi += (count - expected) ** 2 / expected
    assert chi < 31.3  # 11 degrees of freedom, one in a thousand


def test_quotas_sum_to_the_batch_for_any_classes():
    rng = np.random.default_rng(0)
    for _ in range(50):
        classes = rng.integers(0, 6, 40)
        members = class_members(classes)
        size = int(rng.integers(1, 50))
        batch = best_of_classes(np.arange(40), keys_of(40), members, size)
        assert np.bincount(classes[batch], minlength=len(members)).tolist() == class_quotas(
            [len(m) for m in members], size
        )

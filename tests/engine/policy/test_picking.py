"""Batches picked by a network: what it sees, what it does not, and how often a row may come back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raysift.policy.drawing import Draw
from raysift.policy.network import Acquisition
from raysift.policy.picking import Picker, policy_inputs
from raysift.policy.pool import PolicyPool, positions
from raysift.policy.settings import PolicySettings
from raysift.policy.state import State, stage_inputs

from ...tiny_policies import WIDTH, tiny_pool  # noqa: TID252

ROWS, BATCH = 80, 8
DRAW = Draw(0, "round 1, training 0")


def network(settings, gain=10.0):
    """Scores as far apart as those of a policy that has learned something."""
    found = Acquisition(WIDTH, settings.hidden, seed=1)
    with torch.no_grad():
        found.rest[-1].weight.mul_(gain)
    return found


def state_of(counts=None, step=3):
    return State(stage_inputs(-2.0, -1.5, step, 10), np.zeros(ROWS, np.int32) if counts is None else counts)


def some_counts():
    return np.random.default_rng(0).integers(0, 3, ROWS).astype(np.int32)


def test_a_batch_is_the_best_of_each_class_by_the_scores_of_the_network():
    pool, settings = tiny_pool(ROWS, 4), PolicySettings(classes=4)
    picker, state = Picker(pool, settings, network(settings)), state_of(some_counts())
    ids, scores = picker.batch(state, BATCH, 3, None)
    assert ids.tolist() == sorted(set(ids.tolist())) and len(ids) == BATCH
    part = picker.network.static_part(torch.from_numpy(pool.features))
    expected = picker.network.scores(part, *policy_inputs(state, settings)).detach().numpy()
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)
    for number in range(4):
        rows = np.flatnonzero(pool.classes == number)
        assert set(pool.ids[rows[np.argsort(-scores[rows])][:2]]) == set(ids) & set(pool.ids[rows])


def test_a_draw_differs_by_step_and_at_little_temperature_is_the_best():
    pool, settings = tiny_pool(ROWS), PolicySettings()
    picker = Picker(pool, settings, network(settings))
    best, _ = picker.batch(state_of(), BATCH, 1, None)
    one, same, other = (picker.batch(state_of(), BATCH, step, DRAW)[0].tolist() for step in (1, 1, 2))
    assert one == same != other and one != best.tolist()
    cold = Picker(pool, PolicySettings(temperature=1e-6), picker.network)
    assert cold.batch(state_of(), BATCH, 1, DRAW)[0].tolist() == best.tolist()
    hot = Picker(pool, PolicySettings(temperature=1e6), picker.network)
    noise = DRAW.noise(pool.ids, 1)
    assert hot.batch(state_of(), BATCH, 1, DRAW)[0].tolist() == sorted(pool.ids[np.argsort(-noise)[:BATCH]])


def test_a_row_more_in_the_pool_changes_no_draw_but_its_own():
    """The noise is a row's own: without the rows that were not picked the same ones come out."""
    pool, settings = tiny_pool(ROWS), PolicySettings()
    ids, _ = Picker(pool, settings, network(settings)).batch(state_of(), BATCH, 1, DRAW)
    kept = np.union1d(positions(pool, ids), np.arange(0, ROWS, 3))
    less = PolicyPool(pool.ids[kept], pool.features[kept], pool.classes[kept])
    state = State(state_of().stage, np.zeros(len(kept), np.int32))
    assert Picker(less, settings, network(settings)).batch(state, BATCH, 1, DRAW)[0].tolist() == ids.tolist()


def test_no_row_is_picked_more_often_than_allowed():
    pool, settings = tiny_pool(ROWS, 2), PolicySettings(classes=2, max_repeats=2)
    for draw in (None, DRAW):
        picker, counts = Picker(pool, settings, network(settings)), np.zeros(ROWS, np.int32)
        for step in range(1, 40):
            ids, _ = picker.batch(state_of(counts, step), BATCH, step, draw)
            assert len(ids) == min(BATCH, (counts < 2).sum())
            counts[positions(pool, ids)] += 1
        assert (counts == 2).all()
        assert len(picker.batch(state_of(counts), BATCH, 99, draw)[0]) == 0


@pytest.mark.parametrize("left_out", ["stage", "difficulty", "semantic", "availability"])
def test_a_block_that_is_left_out_has_no_say_and_any_other_has(left_out):
    every = ("stage", "difficulty", "semantic", "availability")
    settings = PolicySettings(blocks=tuple(block for block in every if block != left_out))
    pool, actor = tiny_pool(ROWS), network(settings)
    before = Picker(pool, settings, actor).scores(state_of())
    for block in every:
        features, state = pool.features.copy(), state_of()
        if block == "difficulty":
            features[:, :4] += 1
        elif block == "semantic":
            features[:, 4:] += 1
        elif block == "stage":
            state = State(state.stage + 1, state.counts)
        else:
            state = State(state.stage, some_counts())
        after = Picker(PolicyPool(pool.ids, features, pool.classes), settings, actor).scores(state)
        assert np.array_equal(before, after) == (block == left_out)

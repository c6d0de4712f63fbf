"""Batches picked by a network: what it sees, what it does not, and how often a row may come back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raysift.draws import seed_for, uniform_of
from raysift.errors import DataError
from raysift.policy.device_picking import DevicePicker, best, gumbel, uniform_on
from raysift.policy.drawing import Draw, step_purpose
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
    ids, scores = picker.batch(state, BATCH, 3, None), picker.scores(state)
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
    best = picker.batch(state_of(), BATCH, 1, None)
    one, same, other = (picker.batch(state_of(), BATCH, step, DRAW).tolist() for step in (1, 1, 2))
    assert one == same != other and one != best.tolist()
    cold = Picker(pool, PolicySettings(temperature=1e-6), picker.network)
    assert cold.batch(state_of(), BATCH, 1, DRAW).tolist() == best.tolist()
    hot = Picker(pool, PolicySettings(temperature=1e6), picker.network)
    noise = DRAW.noise(pool.ids, 1)
    assert hot.batch(state_of(), BATCH, 1, DRAW).tolist() == sorted(pool.ids[np.argsort(-noise)[:BATCH]])


def test_a_row_more_in_the_pool_changes_no_draw_but_its_own():
    """The noise is a row's own: without the rows that were not picked the same ones come out."""
    pool, settings = tiny_pool(ROWS), PolicySettings()
    ids = Picker(pool, settings, network(settings)).batch(state_of(), BATCH, 1, DRAW)
    kept = np.union1d(positions(pool, ids), np.arange(0, ROWS, 3))
    less = PolicyPool(pool.ids[kept], pool.features[kept], pool.classes[kept])
    state = State(state_of().stage, np.zeros(len(kept), np.int32))
    assert Picker(less, settings, network(settings)).batch(state, BATCH, 1, DRAW).tolist() == ids.tolist()


def test_no_row_is_picked_more_often_than_allowed():
    pool, settings = tiny_pool(ROWS, 2), PolicySettings(classes=2, max_repeats=2)
    for draw in (None, DRAW):
        picker, counts = Picker(pool, settings, network(settings)), np.zeros(ROWS, np.int32)
        for step in range(1, 40):
            ids = picker.batch(state_of(counts, step), BATCH, step, draw)
            assert len(ids) == min(BATCH, (counts < 2).sum())
            counts[positions(pool, ids)] += 1
        assert (counts == 2).all()
        assert len(picker.batch(state_of(counts), BATCH, 99, draw)) == 0


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


# --- on a device: torch's CPU stands for it ---------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [None, DRAW])
@pytest.mark.parametrize("settings", [{}, {"classes": 4}, {"max_repeats": 1}, {"blocks": ("difficulty", "semantic")}])
def test_a_device_chooses_what_the_host_chooses(settings, draw):
    settings = PolicySettings(**settings)
    pool = tiny_pool(ROWS, settings.classes)
    host = Picker(pool, settings, network(settings))
    device = DevicePicker(pool, settings, host.network, "cpu")
    for counts in (None, some_counts()):
        for step in range(1, 6):
            state = state_of(counts, step)
            order = np.argsort(pool.classes, kind="stable")
            np.testing.assert_allclose(device.scores(state).numpy(), host.scores(state)[order], rtol=1e-5, atol=1e-6)
            assert device.batch(state, BATCH, step, draw).tolist() == host.batch(state, BATCH, step, draw).tolist()
    closed = np.ones(ROWS, np.int32)
    if settings.max_repeats:
        assert len(device.batch(state_of(closed), BATCH, 1, draw)) == 0


def test_a_device_draws_the_same_bits_as_the_host():
    ids = tiny_pool(ROWS).ids
    for seed in (0, 2**55 - 3):
        assert np.array_equal(uniform_on(torch.from_numpy(ids), seed).numpy(), uniform_of(ids, seed))
    noise = gumbel(torch.from_numpy(ids), seed_for(DRAW.seed, step_purpose(DRAW, 3))).numpy()
    np.testing.assert_allclose(noise, DRAW.noise(ids, 3), rtol=1e-14)


def test_of_equal_keys_a_device_takes_the_first():
    keys = torch.tensor([1.0, 3.0, 2.0, 2.0, 3.0, 2.0])
    assert [sorted(best(keys, count).tolist()) for count in (1, 3, 4, 6)] == [
        [1],
        [1, 2, 4],
        [1, 2, 3, 4],
        [0, 1, 2, 3, 4, 5],
    ]


def test_scores_that_are_no_numbers_choose_nothing():
    pool, settings = tiny_pool(ROWS), PolicySettings()
    broken = network(settings)
    with torch.no_grad():
        broken.rest[-1].weight.fill_(torch.nan)
    with pytest.raises(DataError, match="NaN"):
        DevicePicker(pool, settings, broken, "cpu").batch(state_of(), BATCH, 1, None)

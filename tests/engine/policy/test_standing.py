"""Where a row stands in a pick: its ranks must tell the batches that were picked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raysift.policy.drawing import Draw
from raysift.policy.network import Acquisition
from raysift.policy.picking import Picker
from raysift.policy.settings import PolicySettings
from raysift.policy.standing import rank_of, standing, state_before
from raysift.policy.state import replay

from ...tiny_policies import WIDTH, random_log, tiny_pool  # noqa: TID252

ROWS, BATCH, STEPS = 50, 9, 6
POOL = tiny_pool(ROWS, 3)


def picker_of(**settings):
    made = PolicySettings(**settings)
    net = Acquisition(WIDTH, made.hidden, seed=1)
    with torch.no_grad():
        net.rest[-1].weight.mul_(10)
    return Picker(POOL, made, net)


def test_a_state_looked_up_is_the_one_that_replay_comes_to():
    log = random_log(POOL, STEPS, BATCH, among=20)
    for step, (state, _) in enumerate(replay(log, POOL), 1):
        found = state_before(log, POOL, step)
        np.testing.assert_array_equal(found.stage, state.stage)
        np.testing.assert_array_equal(found.counts, state.counts)


@pytest.mark.parametrize("draw", [None, Draw(0, "final training")])
@pytest.mark.parametrize("max_repeats", [None, 2])
def test_ranks_within_the_quota_are_the_batch_that_was_picked(draw, max_repeats):
    picker = picker_of(max_repeats=max_repeats, temperature=0.5)
    state = state_before(random_log(POOL, STEPS, BATCH, among=20), POOL, STEPS)
    batch, scores = picker.batch(state, BATCH, STEPS, draw)
    found = [standing(picker, state, STEPS, BATCH, draw, place) for place in range(ROWS)]
    assert [int(POOL.ids[k]) for k, one in enumerate(found) if one.picked] == batch.tolist()
    assert sorted(one.rank for one in found) == list(range(1, ROWS + 1))
    assert [one.score for one in found] == scores.tolist()
    for number in range(3):
        mine = [one for place, one in enumerate(found) if POOL.classes[place] == number]
        can = [one for one in mine if one.pick_rank]
        assert sorted(one.class_rank for one in can) == list(range(1, len(can) + 1)) == sorted(o.pick_rank for o in can)
        assert {one.quota for one in mine} == {sum(one.picked for one in mine)}
        assert np.mean([one.likelihood for one in can]) == pytest.approx(1)
        assert all((one.lacking <= 0) == one.picked for one in can)
    closed = [one for one in found if one.pick_rank is None]
    assert len(closed) == (0 if max_repeats is None else int((state.counts >= 2).sum()))
    assert max_repeats is None or closed


def test_equal_values_rank_by_the_smaller_id():
    ids, values = np.array([-5, 2, 9]), np.array([1.0, 3.0, 1.0])
    assert [rank_of(ids, values, place) for place in range(3)] == [2, 1, 3]

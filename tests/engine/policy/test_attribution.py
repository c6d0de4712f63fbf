"""Attributions of the acquisition function: they sum to the score, agree with a slow integral, and find what matters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raysift.errors import DataError
from raysift.policy.attribution import attributions, by_block, influence, inputs_of, mean_input, score_inputs
from raysift.policy.features import block_slices, input_names
from raysift.policy.network import Acquisition
from raysift.policy.picking import Picker
from raysift.policy.settings import PolicySettings
from raysift.policy.state import State, stage_inputs

from ...tiny_policies import WIDTH, tiny_pool  # noqa: TID252

ROWS = 60
POOL = tiny_pool(ROWS, 2)
SETTINGS = PolicySettings()


def network(gain=5.0, hidden=(16, 16)):
    """With weights several times those of a new one, so that the activations bend."""
    found = Acquisition(WIDTH, hidden, seed=1)
    with torch.no_grad():
        for weight in found.parameters():
            weight.mul_(gain)
    return found


def some_state(step=3):
    counts = np.random.default_rng(step).integers(0, 4, ROWS).astype(np.int32)
    return State(stage_inputs(-2.0, -1.5, step, 10), counts)


def exact(net, inputs):
    """F in float64."""
    with torch.no_grad():
        return score_inputs(net.double(), torch.from_numpy(np.asarray(inputs, np.float64))).numpy()


def test_the_inputs_of_a_row_give_the_score_that_it_is_picked_by():
    net, state = network(), some_state()
    inputs = inputs_of(POOL, state, SETTINGS)
    assert inputs.shape == (ROWS, len(input_names(WIDTH - 4)))
    with torch.no_grad():
        scores = score_inputs(net, torch.from_numpy(inputs)).numpy()
    np.testing.assert_allclose(scores, Picker(POOL, SETTINGS, net).scores(state), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(inputs_of(POOL, state, SETTINGS, [7, 3]), inputs[[7, 3]])
    np.testing.assert_allclose(mean_input(POOL, [state], SETTINGS), inputs.mean(axis=0, dtype=np.float64), atol=1e-7)


@pytest.mark.parametrize("gain", [1.0, 5.0, 20.0])
def test_attributions_sum_to_what_the_score_is_above_that_of_the_mean_row(gain):
    net, state = network(gain), some_state()
    inputs, mean = inputs_of(POOL, state, SETTINGS), mean_input(POOL, [state, some_state(9)], SETTINGS)
    parts = attributions(net, inputs, mean)
    away = exact(net, inputs) - exact(net, mean[None])
    assert (np.abs(parts.sum(axis=1) - away) <= 1e-6 * np.abs(parts).sum(axis=1)).all()
    blocks = by_block(parts)
    assert list(blocks) == list(block_slices(WIDTH - 4))
    np.testing.assert_allclose(sum(blocks.values()), parts.sum(axis=1), atol=1e-12)


def test_attributions_agree_with_differences_along_the_path():
    net, rows = network(2.0).double(), inputs_of(POOL, some_state(), SETTINGS)[:3].astype(np.float64)
    mean = mean_input(POOL, [some_state()], SETTINGS)
    expected, steps, step = np.zeros_like(rows), 400, 1e-5
    for row, line in enumerate(rows):
        places = (np.arange(steps) + 0.5) / steps
        points = mean + places[:, None] * (line - mean)
        for number in range(rows.shape[1]):
            shift = np.zeros(rows.shape[1])
            shift[number] = step
            slopes = (exact(net, points + shift) - exact(net, points - shift)) / (2 * step)
            expected[row, number] = (line - mean)[number] * slopes.mean()
    np.testing.assert_allclose(attributions(net, rows, mean), expected, atol=1e-5)


def test_a_rows_attributions_depend_on_no_other_row_and_leave_the_network_as_it_was():
    net, inputs = network(), inputs_of(POOL, some_state(), SETTINGS)
    before = [weight.clone() for weight in net.parameters()]
    mean = mean_input(POOL, [some_state()], SETTINGS)
    together = attributions(net, inputs, mean)
    alone = np.concatenate([attributions(net, inputs[k : k + 7], mean) for k in range(0, ROWS, 7)])
    np.testing.assert_allclose(together, alone, atol=1e-12)
    for weight, old in zip(net.parameters(), before, strict=True):
        assert weight.dtype == torch.float32
        assert weight.grad is None
        assert torch.equal(weight, old)


def test_a_block_that_the_policy_does_not_see_moves_nothing():
    settings = PolicySettings(blocks=("difficulty", "availability"))
    inputs, mean = inputs_of(POOL, some_state(), settings), mean_input(POOL, [some_state(9)], settings)
    blocks = by_block(attributions(network(), inputs, mean))
    assert not blocks["stage"].any()
    assert not blocks["semantic"].any()
    assert blocks["difficulty"].all()
    assert blocks["availability"].any()


def test_shares_sum_to_one_and_find_the_input_that_alone_decides():
    net, inputs = network(), inputs_of(POOL, some_state(), SETTINGS)
    mean = mean_input(POOL, [some_state(1), some_state(9)], SETTINGS)
    parts = attributions(net, inputs, mean)
    total = parts.sum(axis=1)
    assert sum(influence(part, total).share for part in parts.T) == pytest.approx(1)
    assert sum(influence(part, total).share for part in by_block(parts).values()) == pytest.approx(1)
    assert influence(total, total).share == pytest.approx(1)

    only = 6  # of the features, so number 8 of the inputs
    with torch.no_grad():
        net.static.weight[:, [k for k in range(WIDTH) if k != only]] = 0
        net.availability.weight.zero_()
        net.stage.weight.zero_()
        net.rest = torch.nn.Sequential(torch.nn.Linear(16, 1))
        net.rest[0].weight.copy_(-net.static.weight[:, only][None])  # the more, the lower
    parts = attributions(net, inputs, mean)
    found = [influence(part, parts.sum(axis=1), inputs[:, k]) for k, part in enumerate(parts.T)]
    assert [k for k, one in enumerate(found) if one.spread > 0] == [8]
    assert found[8].share == pytest.approx(1)
    assert found[8].slope < 0
    assert found[0].slope == 0  # the stage is the same for all rows


def test_scores_that_are_all_alike_have_no_shares_and_wrong_shapes_are_refused():
    assert influence(np.zeros(5), np.ones(5)).share == 0
    with pytest.raises(DataError, match="the policy reads 39 inputs"):
        attributions(network(), np.zeros((2, 38)), np.zeros(38))

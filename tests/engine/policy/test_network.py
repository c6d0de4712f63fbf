"""The acquisition function in parts against the plain network on all inputs side by side."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raysift.policy import network
from raysift.policy.network import Acquisition, Critic

ROWS, STATIC = 50, 36


@pytest.fixture(scope="module")
def actor() -> Acquisition:
    return Acquisition(STATIC, (12, 7), seed=3)


def inputs(rows=ROWS, seed=0):
    """Features, the stage of all rows, and how often each was picked, most of them never."""
    rng = np.random.default_rng(seed)
    features = torch.from_numpy(rng.standard_normal((rows, STATIC)).astype(np.float32))
    seen = np.log1p(rng.integers(0, 4, rows) * (rng.random(rows) < 0.2)).astype(np.float32)
    return features, torch.tensor([0.1, 0.7]), torch.from_numpy(seen)


def plain(actor, features, stage, availability):
    """One MLP on [stage, difficulty and semantic, availability]."""
    every = torch.cat([stage.expand(len(features), 2), features, availability[:, None]], dim=1)
    assert every.shape[1] == 39
    weight = torch.cat([actor.stage.weight, actor.static.weight, actor.availability.weight], dim=1)
    return actor.rest(torch.tanh(every @ weight.T + actor.static.bias)).squeeze(1)


def test_scores_are_those_of_the_plain_network_on_39_inputs(actor):
    features, stage, availability = inputs()
    scores = actor.scores(actor.static_part(features), stage, availability)
    torch.testing.assert_close(scores, plain(actor, features, stage, availability), rtol=1e-5, atol=1e-6)
    assert scores.std() > 1e-3


def test_gradients_are_those_of_the_plain_network(actor):
    features, stage, availability = inputs()
    pull = torch.linspace(-1, 1, ROWS)
    found = []
    for score in (actor.scores(actor.static_part(features), stage, availability), plain(actor, *inputs())):
        found.append(torch.autograd.grad((score * pull).sum(), list(actor.parameters())))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 7, 50, 65_536])
def test_scoring_the_pool_gives_the_same_in_chunks_of_any_size(actor, monkeypatch, chunk):
    monkeypatch.setattr(network, "CHUNK_ROWS", chunk)
    features, stage, availability = inputs()
    static = actor.static_part(features).detach()
    before = static.clone()
    scores = actor.score_pool(static, stage, availability)
    assert not scores.requires_grad and torch.equal(static, before)
    torch.testing.assert_close(scores, actor.scores(static, stage, availability).detach(), rtol=1e-5, atol=1e-6)


def test_a_seed_gives_the_same_networks_and_disturbs_no_generator():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    pairs = [(Acquisition(5, (4,), seed), Critic(9, (4, 3), seed)) for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(1), expected)
    one, same, other = [[*(a.state_dict() | c.state_dict()).values()] for a, c in pairs]
    assert all(map(torch.equal, one, same)) and not all(map(torch.equal, one, other))


def test_a_network_of_one_layer_and_first_scores_that_are_close_to_each_other():
    actor = Acquisition(STATIC, (64, 64), seed=0)
    features, stage, availability = inputs(1000)
    scores = actor.score_pool(actor.static_part(features).detach(), stage, availability)
    chances = torch.softmax(scores, 0) * len(scores)
    assert 0.6 < chances.min() < chances.max() < 1.7
    one = Acquisition(STATIC, (8,), seed=0)
    torch.testing.assert_close(one.scores(one.static_part(features), stage, availability), plain(one, *inputs(1000)))
    assert Critic(4, (3,), seed=0)(torch.ones(5, 4)).shape == (5,)

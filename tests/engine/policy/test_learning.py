"""PPO as it is made, step by step and with the first layer in parts, against the plain formula over the whole pool."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from raysift.errors import StageError
from raysift.policy.credit import credit_features, evidence_of, fit_credit, row_credits
from raysift.policy.drawing import Draw
from raysift.policy.learning import Learner, _Rows, ratio_of
from raysift.policy.picking import Picker
from raysift.policy.pool import PolicyPool, positions
from raysift.policy.rewards import (
    centred,
    generalised_advantages,
    rewards,
)
from raysift.policy.settings import LearningSettings, PolicySettings
from raysift.policy.state import State, replay, stage_inputs, summaries

from ...tiny_policies import log_of, random_log, tiny_pool  # noqa: TID252

STEPS, BATCH = 6, 8
POLICY = PolicySettings(classes=3, hidden=(10, 6), critic_hidden=(8,), temperature=0.7)
FAST = LearningSettings(actor_rate=0.05, passes=3, advantage="credit")


def round_of(pool, number=0, count=2, **changes):
    return [random_log(pool, STEPS, BATCH, 10 * number + which, **changes) for which in range(count)]


def learner_of(pool, policy=POLICY, **changes):
    return Learner(pool, policy, FAST.model_copy(update=changes), seed=5)


def passes_of(learner):
    """Weights and gradients of the actor as they are before each of its steps, from now on."""
    found, step = [], learner.actor_steps.step

    def record():
        named = dict(learner.actor.named_parameters())
        weights = {name: weight.detach().clone() for name, weight in named.items()}
        found.append((weights, {name: weight.grad.clone() for name, weight in named.items()}))
        step()

    learner.actor_steps.step = record
    return found


def flat(numbers):
    return torch.cat([values.flatten() for values in numbers.values()])


# --- the plain formula ------------------------------------------------------------------------------------------------


def plain_scores(weights, pool, state):
    """One MLP over all 39 inputs of all rows."""
    stage = torch.from_numpy(state.stage).expand(len(pool), 2)
    seen = torch.log1p(torch.from_numpy(state.counts.astype(np.float32)))[:, None]
    values = torch.cat([stage, torch.from_numpy(pool.features), seen], dim=1)
    first = torch.cat([weights["stage.weight"], weights["static.weight"], weights["availability.weight"]], dim=1)
    values = torch.tanh(values @ first.T + weights["static.bias"])
    layers = sorted({int(name.split(".")[1]) for name in weights if name.startswith("rest")})
    for layer in layers:
        values = values @ weights[f"rest.{layer}.weight"].T + weights[f"rest.{layer}.bias"]
        values = torch.tanh(values) if layer != layers[-1] else values
    return values[:, 0]


def plain_log_p(weights, pool, policy, state, picked):
    """The logarithm of exp F(d) / (sum over the class), for each picked row, and the entropies of the classes they are of."""
    scores = plain_scores(weights, pool, state) / policy.temperature
    open_rows = torch.ones(len(pool), dtype=torch.bool)
    if policy.max_repeats is not None:
        open_rows = torch.from_numpy(state.counts < policy.max_repeats)
    logs, entropies = [], []
    for number in sorted(set(pool.classes[picked].tolist())):
        inside = torch.from_numpy(pool.classes == number) & open_rows
        shares = torch.exp(scores) / torch.exp(scores[inside]).sum()
        logs += [torch.log(shares[row]) for row in picked.tolist() if pool.classes[row] == number]
        mine = shares[inside]
        entropies.append(-(mine * torch.log(mine)).sum() / np.log(len(mine)))
    return torch.stack(logs), torch.stack(entropies).mean()


def plain_gradients(new, old, pool, policy, learning, episodes, advantages):
    """Autograd of the mean of the clipped losses, all steps of all trainings in one graph."""
    new = {name: weight.clone().requires_grad_() for name, weight in new.items()}
    losses = []
    for episode, mine in zip(episodes, advantages, strict=True):
        for (state, picked), advantage in zip(replay(episode, pool), mine, strict=True):
            now, entropy = plain_log_p(new, pool, policy, state, picked)
            before, _ = plain_log_p(old, pool, policy, state, picked)
            ratio = torch.exp(now) / torch.exp(before)
            if learning.advantage != "credit":
                ratio = torch.prod(ratio) ** (1 / len(picked) if learning.ratio == "mean" else 1)
            # plain_log_p goes class by class.
            own = np.concatenate([np.flatnonzero(pool.classes[picked] == c) for c in sorted(set(pool.classes[picked]))])
            worth = torch.tensor(np.asarray(advantage)[own] if learning.advantage == "credit" else float(advantage))
            gain = torch.minimum(ratio * worth, ratio.clamp(1 - learning.clip, 1 + learning.clip) * worth)
            losses.append(-gain.mean() - learning.entropy * entropy)
    torch.stack(losses).mean().backward()
    return {name: weight.grad for name, weight in new.items()}


def plain_advantages(pool, learner, episodes):
    """Of the trainings of a round, before its update, which moves the critic."""
    gains, settings = [rewards(episode) for episode in episodes], learner.learning
    if settings.advantage == "credit":
        rows = [credit_features(episode, pool, pool.features) for episode in episodes]
        evidence = [evidence_of(episode, own) for episode, own in zip(episodes, rows, strict=True)]
        weights = fit_credit([*learner.evidence, evidence], settings.momentum, settings.baseline_window)
        return row_credits(rows, weights, pool.features)
    with torch.no_grad():
        values = [
            learner.critic(torch.from_numpy(summaries(e, pool, learner.policy.blocks))).double().numpy()
            for e in episodes
        ]
    pairs = [generalised_advantages(g, v, settings.gamma, settings.lam) for g, v in zip(gains, values, strict=True)]
    return centred([found for found, _ in pairs])


@pytest.mark.parametrize(
    ("policy", "learning"),
    [
        ({}, {"ratio": "mean", "clip": 0.02, "advantage": "gae"}),
        ({}, {"ratio": "product", "clip": 0.2, "advantage": "gae"}),
        ({}, {"ratio": "product", "clip": 0.2, "advantage": "gae", "entropy": 0.3}),
        ({"classes": 1, "max_repeats": 2}, {"ratio": "mean", "clip": 0.02, "entropy": 0.1, "advantage": "gae"}),
        ({}, {"advantage": "credit", "clip": 0.02}),
    ],
)
def test_the_gradient_of_every_pass_is_that_of_the_plain_formula(policy, learning):
    """Two rounds of two passes; the second round has a baseline, and the second passes have steps beyond the clip."""
    policy, pool = POLICY.model_copy(update=policy), tiny_pool(60, policy.get("classes", POLICY.classes))
    learner, clipped = learner_of(pool, policy, passes=2, **learning), []
    passes = passes_of(learner)
    for number in (1, 2):
        episodes = capped_logs(pool, number) if policy.max_repeats else round_of(pool, number, among=20)
        advantages = plain_advantages(pool, learner, episodes)
        update = learner.update(episodes, number)
        assert update.first_ratio == 1 and update.last_ratio != 1
        clipped.append(update.clipped)
        for weights, gradients in passes[-2:]:
            expected = plain_gradients(weights, passes[-2][0], pool, policy, learner.learning, episodes, advantages)
            rounding = 1e-5 * float(flat(expected).abs().max())
            for name, gradient in gradients.items():
                torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=rounding)
    assert len(passes) == 4 and 0 < np.mean(clipped) < 1


def capped_logs(pool, number):
    """Of the first 24 rows each is picked twice in the six steps."""
    order = [np.random.default_rng([number, which]).permutation(24) for which in range(2)]
    picks = [[np.sort(pool.ids[rows[8 * (s % 3) : 8 * (s % 3) + 8]]) for s in range(STEPS)] for rows in order]
    return [log_of(batches, random_log(pool, STEPS, 1, n).performance.tolist()) for n, batches in enumerate(picks)]


# --- laws -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", ["mean", "product"])
@pytest.mark.parametrize("advantage", ["gae", "credit"])
def test_before_the_first_update_the_ratio_is_exactly_1(ratio, advantage):
    pool = tiny_pool(60, 3)
    learner = learner_of(pool, ratio=ratio, advantage=advantage, passes=1)
    for number in (1, 2, 3):
        update = learner.update(round_of(pool), number)
        assert update.first_ratio == update.last_ratio == 1.0 and update.clipped == 0


def test_a_product_over_many_rows_stays_a_number():
    settings = LearningSettings(ratio="product", max_log_ratio=10)
    new = torch.full((100,), -1.0, requires_grad=True)
    ratio = ratio_of(new, torch.full((100,), -9.0), settings)
    assert float(ratio.detach()) == pytest.approx(np.exp(10))
    small = ratio_of(torch.full((100,), -9.0), torch.full((100,), -1.0), settings)
    assert float(small) == pytest.approx(np.exp(-10))
    mean = ratio_of(torch.full((100,), -1.0), torch.full((100,), -1.5), LearningSettings(ratio="mean"))
    assert float(mean) == pytest.approx(np.exp(0.5))


@pytest.mark.parametrize("advantage", ["gae", "credit"])
def test_an_update_repeats_to_the_bit_and_follows_from_the_seed(advantage):
    pool, found = tiny_pool(200, 3), []
    for seed in (5, 5, 6):
        learner = Learner(pool, POLICY, FAST.model_copy(update={"advantage": advantage, "pool_rows": 64}), seed)
        learner.update(round_of(pool), 1)
        found.append([*learner.actor.state_dict().values(), *learner.critic.state_dict().values()])
    assert all(map(torch.equal, found[0], found[1])) and not all(map(torch.equal, found[0], found[2]))


def test_the_critic_comes_closer_to_the_returns_and_is_left_alone_without_gae():
    pool, episodes = tiny_pool(60, 3), round_of(tiny_pool(60, 3))
    learner = learner_of(pool, advantage="gae", critic_rate=0.02, passes=5)
    losses = [learner.update(episodes, number).critic_loss for number in range(1, 9)]
    assert losses[-1] < losses[0] / 3
    other = learner_of(pool)
    before = [weight.clone() for weight in other.critic.state_dict().values()]
    assert other.update(episodes, 1).critic_loss is None
    assert all(map(torch.equal, before, other.critic.state_dict().values()))


def test_entropy_is_a_share_and_its_weight_keeps_it_up():
    pool, found = tiny_pool(60, 3), []
    for weight in (0.0, 5.0):
        learner = learner_of(pool, actor_rate=0.02, passes=10, entropy=weight)
        for number in range(1, 6):
            update = learner.update(round_of(pool), number)
        found.append(update.entropy)
        assert 0 < update.entropy <= 1
    assert found[1] > found[0] + 0.001


def test_weights_that_blow_up_are_named():
    pool = tiny_pool(60, 3)
    learner = learner_of(pool, actor_rate=1e30)
    with pytest.raises(StageError, match=r"no longer numbers after round 4\. Lower learning\.actor_rate"):
        learner.update(round_of(pool), 4)


# --- a share of the pool ----------------------------------------------------------------------------------------------


def test_rows_drawn_for_the_pool_point_where_all_rows_point():
    pool = tiny_pool(1500, 3)
    episodes = round_of(pool)

    def gradient(number, rows):
        learner = learner_of(pool, advantage="gae", passes=1, pool_rows=rows)
        passes = passes_of(learner)
        learner.update(episodes, number)
        return flat(passes[0][1])

    expected, parts = gradient(1, 1500), [gradient(number, 300) for number in range(1, 31)]
    mean = torch.stack(parts).mean(0)
    away = [float((part - expected).norm() / expected.norm()) for part in parts]
    assert 0.02 < np.mean(away) < 0.5
    assert float((mean - expected).norm() / expected.norm()) < 0.45 * np.mean(away)


def test_rows_drawn_stand_for_the_size_of_their_class():
    """At equal scores p is one over the rows of the class, however many of them were drawn."""
    pool = tiny_pool(2000, 4)
    learner = learner_of(pool, pool_rows=100)
    with torch.no_grad():
        learner.actor.rest[-1].weight.zero_()
    episodes = round_of(pool, count=1)
    rows = _Rows(pool, episodes, learner.policy, 100, 1)
    state, picked = next(replay(episodes[0], pool))
    static = learner.actor.static_part(rows.features)
    log_p, entropy = learner._log_probabilities(static, rows, state, picked)
    sizes = np.bincount(pool.classes)
    expected = np.sort(-np.log(sizes[pool.classes[picked]]))
    np.testing.assert_allclose(np.sort(log_p.detach().numpy()), expected, rtol=1e-5)
    assert float(entropy.detach()) == pytest.approx(1, abs=1e-5)


def test_a_class_of_which_every_drawn_row_is_used_up_still_has_probabilities():
    """Two classes of a pool of which few rows are drawn; the small class is picked until all it has was picked once."""
    pool = tiny_pool(900, 1)
    classes = np.zeros(900, np.int32)
    classes[::100] = 1
    pool = PolicyPool(pool.ids, pool.features, classes)
    small, large = np.flatnonzero(classes == 1), np.flatnonzero(classes == 0)
    picks = [np.sort(pool.ids[[small[step], *large[4 * step : 4 * step + 4]]]) for step in range(9)]
    episode = log_of(picks, np.linspace(-2, -1, 10).tolist())
    policy = POLICY.model_copy(update={"classes": 2, "max_repeats": 1})
    for number in range(8):
        update = learner_of(pool, policy, pool_rows=64).update([episode], number)
        assert update.first_ratio == 1.0 and np.isfinite(update.actor_loss)


def test_memory_does_not_grow_with_the_steps():
    """What autograd keeps at once, counted as it is kept and let go."""
    pool = tiny_pool(500, 3)
    assert peak_of(pool, 40) <= 1.05 * peak_of(pool, 4)


def peak_of(pool, steps):
    held = {"now": 0, "peak": 0}

    class Kept:
        def __init__(self, tensor):
            self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
            held["now"] += self.size
            held["peak"] = max(held["peak"], held["now"])

        def __del__(self):
            held["now"] -= self.size

    learner = learner_of(pool, passes=2)
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        learner.update([random_log(pool, steps, BATCH)], 1)
    assert held["peak"] > 0
    return held["peak"]


def test_settings_refuse_a_handful_of_rows():
    assert LearningSettings().pool_rows >= 1000
    with pytest.raises(ValidationError):
        LearningSettings(pool_rows=1)


# --- does it learn? ---------------------------------------------------------------------------------------------------


def world(rows=400, good_share=0.2, seed=0):
    """Rows of which the good ones can be told by their first semantic feature."""
    rng = np.random.default_rng(seed)
    pool = tiny_pool(rows, seed=seed)
    good = rng.random(rows) < good_share
    features = pool.features.copy()
    features[:, 4] += np.where(good, 2.0, -0.5)
    return PolicyPool(pool.ids, features, pool.classes), good


def episode_in(pool, good, learner, number, which, steps=12, batch=8):
    """A training whose gains fall from step to step, and are higher by noise and the share of good rows."""
    rng = np.random.default_rng([number, which])
    picker = Picker(pool, learner.policy, learner.actor)
    draw = Draw(0, f"round {number}, training {which}")
    counts, now, picks, known = np.zeros(len(pool), np.int32), -3.0, [], [-3.0]
    for step in range(1, steps + 1):
        ids = picker.batch(State(stage_inputs(-3.0, now, step, steps), counts), batch, step, draw)
        rows = positions(pool, ids)
        curve = 0.8**step
        now += curve * (0.2 + 0.2 * good[rows].mean() + 0.03 * rng.standard_normal())
        counts[rows] += 1
        picks.append(ids)
        known.append(now)
    return log_of(picks, known, number, which)


def shares_of_good(learning, rounds):
    pool, good = world()
    policy = PolicySettings(hidden=(32,), critic_hidden=(16,))
    learner = Learner(pool, policy, learning, seed=1)
    shares = []
    for number in range(1, rounds + 1):
        episodes = [episode_in(pool, good, learner, number, which) for which in range(learning.episodes)]
        learner.update(episodes, number)
        picked = positions(pool, np.concatenate([batch for e in episodes for batch in e.picks]))
        shares.append(float(good[picked].mean()))
    return shares


GAE = {"advantage": "gae", "gamma": 0.0, "episodes": 2, "critic_rate": 0.03}


@pytest.mark.parametrize(
    "changes",
    [{}, {"ratio": "product"}, GAE, {"pool_rows": 128}],
    ids=["default", "product", "gae", "part of the pool"],
)
def test_where_gains_come_from_some_rows_the_policy_finds_them(changes):
    """A fifth of the rows is good: the first picks hold a fifth of them, later ones far more."""
    shares = shares_of_good(LearningSettings(actor_rate=2e-2, passes=6, **changes), rounds=14)
    assert 0.1 < np.mean(shares[:2]) < 0.35
    assert np.mean(shares[-3:]) > 0.45


def test_rates_fall_from_round_to_round_or_stay_as_in_the_paper():
    pool = tiny_pool(60, 2)
    episodes = [random_log(pool, 4, 8, 1)]
    for schedule, wanted in (("linear", [0.4, 0.3, 0.2, 0.1]), ("constant", [0.4] * 4)):
        learning = LearningSettings(actor_rate=0.4, critic_rate=0.04, rounds=4, rate_schedule=schedule, passes=1)
        learner = Learner(pool, PolicySettings(classes=2, hidden=(6,), critic_hidden=(4,)), learning, 0)
        found = []
        for number in range(1, 5):
            learner.update(episodes, number)
            found.append(learner.actor_steps.param_groups[0]["lr"])
            assert learner.critic_steps.param_groups[0]["lr"] == pytest.approx(found[-1] / 10)
        assert found == pytest.approx(wanted)

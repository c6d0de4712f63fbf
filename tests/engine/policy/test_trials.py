"""Which settings are tried, and which of them were best."""

import math

import pytest

from raysift.errors import ConfigError
from raysift.policy.learning import Learner
from raysift.policy.saved import load_learner, save_learner
from raysift.policy.search_settings import SearchSettings, SearchSpace
from raysift.policy.settings import LearningSettings, PolicySettings, RaiseConfig
from raysift.policy.trials import (
    ALL_ROUNDS,
    FAILED,
    OWN,
    STOPPED,
    TrialResult,
    apply_settings,
    as_overrides,
    best_of,
    criterion,
    draw_trials,
    searched_values,
)
from raysift.settings.training import TrainConfig
from raysift.storage import open_location

from ...tiny_policies import tiny_pool  # noqa: TID252

CONFIG, TRAIN = RaiseConfig(), TrainConfig()
NOTHING = dict.fromkeys(SearchSpace.model_fields, ())


def space(**values):
    return SearchSpace(**(NOTHING | values))


def drawn(seed=0, config=CONFIG, **settings):
    return draw_trials(SearchSettings(**settings), config, TRAIN, seed)


def test_the_first_trial_is_the_run_as_it_is_and_all_differ():
    trials = drawn(trials=40)
    assert apply_settings(trials[OWN], CONFIG, TRAIN) == (CONFIG, TRAIN)
    assert len(trials) == 40 == len({str(sorted(trial.items())) for trial in trials})
    values = searched_values(SearchSettings(), CONFIG)
    assert all(trial.keys() == values.keys() for trial in trials)
    assert all(trial[name] in values[name] for trial in trials[1:] for name in values)


def test_the_same_seed_draws_the_same_and_more_trials_go_on_from_fewer_values():
    assert drawn(trials=12) == drawn(trials=12)
    assert drawn(trials=12) != drawn(seed=1, trials=12)
    assert drawn(seed=3, trials=12)[OWN] == drawn(trials=2)[OWN]


def test_every_value_of_the_space_comes_up():
    trials = drawn(trials=200)
    for name, values in searched_values(SearchSettings(), CONFIG).items():
        assert {str(trial[name]) for trial in trials[1:]} == {str(value) for value in values}


def test_settings_without_effect_are_not_searched():
    assert "critic_rate" not in searched_values(SearchSettings(), CONFIG)
    with_critic, _ = CONFIG, TRAIN
    with_critic = CONFIG.model_copy(update={"learning": LearningSettings(advantage="gae")})
    assert "critic_rate" in searched_values(SearchSettings(), with_critic)
    greedy = CONFIG.model_copy(update={"policy": PolicySettings(exploration="none")})
    assert "temperature" not in searched_values(SearchSettings(), greedy)
    assert searched_values(SearchSettings(space=space()), CONFIG) == {}
    assert draw_trials(SearchSettings(space=space()), CONFIG, TRAIN, 0) == [{}]


def test_a_small_space_gives_what_it_has_and_a_grid_is_all_of_it_or_refused():
    small = space(classes=(1, 2, 4), clip=(0.1, 0.2))
    own = {"classes": CONFIG.policy.classes, "clip": CONFIG.learning.clip}
    others = [{"classes": c, "clip": e} for e in (0.1, 0.2) for c in (1, 2, 4) if {"classes": c, "clip": e} != own]
    for sampler in ("random", "grid"):
        found = drawn(trials=9, space=small, sampler=sampler)
        assert found[0] == own
        assert sorted(found[1:], key=str) == sorted(others, key=str)
    with pytest.raises(
        ConfigError, match=f"{len(others)} points.*search.trials is 3.*Set search.trials={len(others) + 1}"
    ):
        drawn(trials=3, space=small, sampler="grid")


def test_a_value_that_no_run_accepts_is_refused_before_anything_starts():
    with pytest.raises(ConfigError, match=r"search: 'learning\.clip' cannot be -1"):
        drawn(space=space(clip=(-1.0,)))


def test_batch_sizes_are_a_setting_of_the_training():
    trials = drawn(space=space(batch_size=(4, 8)), trials=3)
    assert [trial["batch_size"] for trial in trials[1:]] in ([4, 8], [8, 4])
    config, train = apply_settings(trials[1], CONFIG, TRAIN)
    assert config == CONFIG and train == TRAIN.model_copy(update={"batch_size": trials[1]["batch_size"]})
    assert as_overrides({"batch_size": 4, "clip": 0.1}) == {"train.batch_size": 4, "raise.learning.clip": 0.1}


def test_changed_rates_reach_the_optimizers_of_a_policy_that_is_taken_over(tmp_path):
    pool, policy, folder = tiny_pool(40), PolicySettings(hidden=(6,), critic_hidden=(6,)), open_location(tmp_path)
    first = Learner(pool, policy, LearningSettings(actor_rate=0.1, critic_rate=0.2, weight_decay=0.3), seed=0)
    for steps, network in ((first.actor_steps, first.actor), (first.critic_steps, first.critic)):
        sum(weights.square().sum() for weights in network.parameters()).backward()
        steps.step()
    save_learner(folder, first)
    changed = LearningSettings(actor_rate=0.5, critic_rate=0.6, weight_decay=0.0)
    second = Learner(pool, policy.model_copy(update={"temperature": 3.0}), changed, seed=1)
    load_learner(folder, second)
    assert [group["lr"] for group in second.actor_steps.param_groups] == [0.5]
    assert [group["lr"] for group in second.critic_steps.param_groups] == [0.6]
    assert [group["weight_decay"] for group in second.actor_steps.param_groups] == [0.0]
    assert second.policy.temperature == 3.0
    state = second.actor_steps.state_dict()["state"]
    assert state.keys() == first.actor_steps.state_dict()["state"].keys() and state
    for mine, theirs in zip(second.actor.parameters(), first.actor.parameters(), strict=True):
        assert mine.equal(theirs)


def test_a_trial_is_worth_the_mean_of_its_last_rounds():
    assert criterion([1.0, 2.0, 4.0], 2) == 3.0
    assert criterion([4.0], 3) == 4.0


def outcome(number, performances, reason=None):
    return TrialResult(number, {}, performances, reason=reason)


def test_the_best_of_the_whole_trials_is_taken_and_the_first_of_equal_ones():
    search = SearchSettings(rounds=3, last_rounds=2)
    own = outcome(0, [-3.0, -2.0, -2.0])
    lucky = outcome(1, [-1.0, -1.0])
    broken = outcome(2, [-1.0, -1.0, -1.0], reason="died")
    better = outcome(3, [-5.0, -2.0, -1.5])
    assert [one.state(3) for one in (own, lucky, broken)] == [ALL_ROUNDS, STOPPED, FAILED]
    assert best_of([own, lucky, broken], search) is own
    assert best_of([own, lucky, broken, better], search) is better
    assert best_of([outcome(4, own.performances), own], search) is own
    assert best_of([lucky, broken], search) is None
    assert not math.isnan(criterion(own.performances, 2))

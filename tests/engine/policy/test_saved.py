"""A learner from disk goes on as if it had never stopped, and only finished rounds count."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from raysift.errors import DataError
from raysift.policy.learning import Learner
from raysift.policy.rewards import rewards
from raysift.policy.saved import (
    EPISODES,
    POLICY,
    ROUND,
    finished_rounds,
    kept_round,
    load_episodes,
    load_learner,
    load_policy,
    round_name,
    save_learner,
    save_policy,
    save_round,
)
from raysift.policy.settings import LearningSettings, PolicySettings
from raysift.policy.state import Episode
from raysift.storage import open_location

from ...tiny_policies import log_of, random_log, tiny_pool  # noqa: TID252

SETTINGS = PolicySettings(classes=2, hidden=(6, 5), critic_hidden=(4,))


def learner_of(pool, advantage="gae", seed=1):
    return Learner(pool, SETTINGS, LearningSettings(advantage=advantage), seed)


def round_of(pool, number, count=2):
    return [Episode(random_log(pool, 5, 4, 10 * number + n).table, -2.0, -1.0 - n) for n in range(count)]


def numbered(episodes):
    """With each training's own number in its log, as a fleet gives them."""
    found = []
    for which, episode in enumerate(episodes):
        place = episode.table.schema.get_field_index("episode")
        column = pa.array([which] * len(episode.table), pa.int32())
        table = episode.table.set_column(place, episode.table.schema.field(place), column)
        found.append(Episode(table, episode.report_start, episode.report_end))
    return found


def bits(learner):
    parts = ((learner.actor, learner.actor_steps), (learner.critic, learner.critic_steps))
    moments = [steps.state[weight] for network, steps in parts for weight in network.parameters() if steps.state]
    weights = [*learner.actor.state_dict().values(), *learner.critic.state_dict().values()]
    return [*weights, *(state[key] for state in moments for key in sorted(state))]


@pytest.mark.parametrize("advantage", ["gae", "credit"])
@pytest.mark.parametrize("stop", [1, 2])
def test_a_learner_from_disk_goes_on_bit_for_bit(tmp_path, advantage, stop):
    pool, place = tiny_pool(60, 2), open_location(tmp_path)
    whole, first, second = (learner_of(pool, advantage) for _ in range(3))
    for number in range(1, stop + 1):
        for learner in (whole, first):
            learner.update(round_of(pool, number), number)
    save_learner(place, first)
    load_learner(place, second)
    assert all(map(torch.equal, bits(first), bits(second)))
    second.evidence = first.evidence  # those of the rounds on disk
    for number in range(stop + 1, 4):
        for learner in (whole, second):
            learner.update(round_of(pool, number), number)
    assert len(bits(whole)) == len(bits(second)) and all(map(torch.equal, bits(whole), bits(second)))
    assert not all(map(torch.equal, bits(whole), bits(first)))


def test_a_policy_comes_back_with_its_settings(tmp_path):
    pool, place = tiny_pool(60, 2), open_location(tmp_path) / "any.safetensors"
    learner = learner_of(pool)
    save_policy(place, learner.actor, SETTINGS)
    actor, settings = load_policy(place)
    assert settings == SETTINGS and not actor.training
    one, two = actor.state_dict(), learner.actor.state_dict()
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_files_that_hold_no_policy_are_named(tmp_path):
    pool, place = tiny_pool(60, 2), open_location(tmp_path)
    save_learner(place, learner_of(pool))
    with pytest.raises(DataError, match=r"learner\.safetensors holds no policy of this version"):
        load_policy(place / "learner.safetensors")
    other = Learner(tiny_pool(60, 2, width=9), SETTINGS, LearningSettings(), 0)
    save_policy(place / POLICY, other.actor, SETTINGS.model_copy(update={"hidden": (3,)}))
    with pytest.raises(DataError, match="holds no policy of this version"):
        load_policy(place / POLICY)


def test_a_round_comes_back_as_it_was(tmp_path):
    pool, folder = tiny_pool(60, 2), open_location(tmp_path) / round_name(1)
    episodes = numbered(round_of(pool, 1, count=3))
    picks = random_log(pool, 5, 4).picks
    episodes.append(numbered([*episodes, log_of(picks, [-2.0, None, -1.5, None, None, -1 / 3])])[-1])
    save_round(folder, learner_of(pool), episodes, {"round": 1})
    found = load_episodes(folder)
    assert len(found) == 4
    for one, two in zip(found, episodes, strict=True):
        assert one.table.equals(two.table)
        assert (one.report_start, one.report_end) == (two.report_start, two.report_end)
        assert np.array_equal(rewards(one), rewards(two))
    assert json.loads((folder / ROUND).read_text())["round"] == 1


def test_rounds_count_up_to_the_first_that_is_missing_or_half(tmp_path):
    pool, folder = tiny_pool(60, 2), open_location(tmp_path)
    assert finished_rounds(folder) == []
    learner = learner_of(pool)
    for number in (1, 2, 4):
        save_round(folder / round_name(number), learner, round_of(pool, number, 1), {})
    assert [place.name for place in finished_rounds(folder)] == ["round-0001", "round-0002"]
    save_round(folder / round_name(3), learner, round_of(pool, 3, 1), {})
    assert len(finished_rounds(folder)) == 4
    (tmp_path / round_name(2) / ROUND).unlink()
    assert len(finished_rounds(folder)) == 1


def test_what_a_killed_round_left_is_cleared_away(tmp_path):
    pool, folder = tiny_pool(60, 2), open_location(tmp_path) / round_name(1)
    folder.make_folder()
    (tmp_path / round_name(1) / EPISODES).write_bytes(b"half a file")
    (tmp_path / round_name(1) / "stray").write_bytes(b"x")
    save_round(folder, learner_of(pool), round_of(pool, 1, 1), {})
    names = {file.name for file in folder.files()}
    assert names == {EPISODES, ROUND, POLICY, "learner.safetensors"}


def test_the_policy_that_is_kept_is_the_one_that_the_best_round_measured(tmp_path):
    """Round 3 was trained under the policy that round 2 saved."""
    pool, folder = tiny_pool(40, 2), open_location(str(tmp_path))
    for number, performance in enumerate((-0.1, -0.9, -0.3, -0.5), start=1):
        account = {"round": number, "performance": performance}
        save_round(folder / round_name(number), learner_of(pool, seed=number), round_of(pool, number), account)
    rounds = finished_rounds(folder)
    assert kept_round(rounds, "best").name == round_name(2)
    assert kept_round(rounds, "last").name == round_name(4)
    assert kept_round(rounds[:1], "best").name == round_name(1)

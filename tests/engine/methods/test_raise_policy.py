"""What RAISE decides about each row, and how many steps it takes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from raysift.config import make_config
from raysift.errors import ConfigError
from raysift.methods import find_method
from raysift.methods.raise_policy import (
    NO_FEATURES,
    NOTHING_TO_LEARN,
    PASSED_OVER,
    PICKED,
    Raise,
    RaiseConfig,
    count_policy_steps,
    place_picks,
)
from raysift.policy.settings import EpisodeSettings, LearningSettings, PolicySettings
from raysift.settings.budget import parse_budget
from raysift.settings.training import TrainConfig, count_steps


def worked_example() -> pa.Table:
    """Rows 1 to 7: 5 has no features, 6 nothing to learn, 7 neither; 2 and 3 come back, 4 is never picked."""
    picks = [np.array([2, 3]), np.array([1, 3]), np.array([2, 3])]
    return place_picks(np.arange(1, 8), picks, with_features=np.array([1, 2, 3, 4, 6]), trainable=np.arange(1, 6))


def test_every_row_has_a_fate():
    fates = dict(zip(*(worked_example()[name].to_pylist() for name in ("id", "fate")), strict=True))
    lost = {5: NO_FEATURES, 6: NOTHING_TO_LEARN, 7: NOTHING_TO_LEARN}
    assert fates == {1: PICKED, 2: PICKED, 3: PICKED, 4: PASSED_OVER} | lost


def test_order_is_by_first_step_then_id_and_the_score_is_the_number_of_picks():
    table = worked_example()
    assert table["first_step"].to_pylist() == [2, 1, 1, None, None, None, None]
    assert table["picks"].to_pylist() == [1, 2, 3, 0, None, None, None]
    assert table["score"].to_pylist() == [1.0, 2.0, 3.0, 0.0, None, None, None]
    assert table["order"].to_pylist() == [3, 1, 2, None, None, None, None]
    assert table.schema == Raise.score_schema()


def test_the_selection_is_the_rows_that_were_picked_whatever_the_chunks():
    table = worked_example()
    for parts in ([table], [table.slice(4), table.slice(0, 4)], [table.slice(i, 1) for i in range(7)]):
        for asked in (1, 2, 3, 7):  # never more than were asked for, though the training picked three
            ids, scores = Raise(RaiseConfig(), 0).choose(iter(parts), parse_budget(str(asked)), 7)
            assert (ids.tolist(), scores.tolist()) == ([2, 3, 1][:asked], [2.0, 3.0, 1.0][:asked])


def test_ids_below_zero_and_rows_in_another_order_are_placed_alike():
    ids = np.array([-5, -3, 4, 9])
    table = place_picks(ids, [np.array([-3, 9]), np.array([-5, -3])], ids, ids)
    assert table["order"].to_pylist() == [3, 1, None, 2]
    assert table["picks"].to_pylist() == [1, 2, 0, 1]


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 100, 1000])
@pytest.mark.parametrize("epochs", [1, 3])
def test_steps_are_those_of_a_training_on_as_many_rows(rows, epochs):
    train = TrainConfig(batch_size=8, epochs=epochs)
    config = RaiseConfig(episode=EpisodeSettings(epochs=epochs))
    assert count_policy_steps(config, train, rows) == count_steps(train, rows)[1]


def test_steps_can_be_given_and_there_is_one_at_least():
    train = TrainConfig(batch_size=8)
    assert count_policy_steps(RaiseConfig(episode=EpisodeSettings(steps=5)), train, 1000) == 5
    assert count_policy_steps(RaiseConfig(episode=EpisodeSettings(epochs=0.1)), train, 8) == 1
    assert count_policy_steps(RaiseConfig(episode=EpisodeSettings(epochs=0.5)), train, 160) == 10
    # The paper's 1 % of Alpaca-cleaned, three epochs, batches of 16.
    assert count_policy_steps(RaiseConfig(), TrainConfig(batch_size=16), 518) == 99


def test_the_presets_are_the_papers_and_are_recorded():
    paper = make_config({"method": "raise", "raise": {"preset": "paper"}})
    letter = make_config({"method": "raise", "raise": {"preset": "letter"}})
    for found in (getattr(paper, "raise"), getattr(letter, "raise")):
        assert (found.learning.actor_rate, found.learning.critic_rate, found.learning.gamma) == (0.1, 0.2, 0.99)
        assert (found.learning.ratio, found.learning.advantage, found.learning.episodes) == ("product", "gae", 1)
        assert (found.policy.exploration, found.policy.deploy) == ("none", "highest")
    assert getattr(paper, "raise").features.model.startswith("meta-llama")
    assert getattr(letter, "raise").features.model == "nano"


def test_defaults_keep_what_the_paper_says_where_it_learns():
    learning, policy = LearningSettings(), PolicySettings()
    assert (learning.rounds, learning.clip, learning.weight_decay) == (20, 0.2, 1e-2)
    assert policy.blocks == ("stage", "difficulty", "semantic", "availability")
    assert EpisodeSettings().validate_every == 1


def test_settings_that_do_not_exist_are_named():
    with pytest.raises(ConfigError, match="exploration"):
        make_config({"method": "raise", "raise": {"policy": {"exploration": "epsilon"}}})
    assert find_method("raise") is Raise

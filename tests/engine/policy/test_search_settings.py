"""The space of a policy search: every value in it is one that a run accepts, and lies where the table says."""

import json

import pytest
from pydantic import ValidationError

from raysift.config import load_config, make_config
from raysift.errors import ConfigError
from raysift.policy.search_settings import PLACES, SearchSettings, SearchSpace
from raysift.policy.settings import RaiseConfig
from raysift.policy.trials import apply_settings
from raysift.settings.training import TrainConfig


def test_every_searched_setting_has_a_place_among_those_of_a_run():
    config = make_config({"method": "raise"}).model_dump(mode="json")
    assert set(PLACES) == set(SearchSpace.model_fields)
    for path in PLACES.values():
        place = config
        for part in path:
            place = place[part]
        assert place is not None


@pytest.mark.parametrize("name", SearchSpace.model_fields)
def test_every_value_is_accepted_and_the_lists_rise(name):
    values = SearchSpace().model_dump(mode="json")[name]
    assert values == sorted(values) and len(values) != 1
    for value in values:
        config, train = apply_settings({name: value}, RaiseConfig(), TrainConfig())
        *sections, last = PLACES[name]
        place = {"raise": config.model_dump(mode="json"), "train": train.model_dump(mode="json")}
        for section in sections:
            place = place[section]
        assert place[last] == value


def test_the_section_is_read_from_the_command_line_and_survives_a_replay():
    given = ["search.scheduler=none", "search.space.hidden=[[8], [16, 16]]", "search.space.clip=[]"]
    config = load_config(None, {"method": "raise"}, given)
    assert config.search.space.hidden == ((8,), (16, 16)) and config.search.space.clip == ()
    again = make_config(json.loads(config.model_dump_json()))
    assert again.search == config.search
    assert make_config({"method": "raise"}).search is None


def test_what_is_no_setting_is_refused_with_its_name():
    with pytest.raises(ConfigError, match=r"search\.sheduler.*Did you mean 'scheduler'"):
        load_config(None, {}, ["search.sheduler=pbt"])
    with pytest.raises(ConfigError, match=r"search\.space\.widths"):
        load_config(None, {}, ["search.space.widths=[1]"])
    with pytest.raises(ValidationError):
        SearchSettings(steps_share=0)

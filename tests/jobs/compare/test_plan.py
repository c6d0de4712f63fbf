"""What a comparison plans, and what it refuses before Ray starts."""

import pytest

from raysift.errors import ConfigError, DataError
from raysift.jobs.compare.plan import make_plan


@pytest.fixture
def values(world):
    return {name: value for name, value in world.items() if name != "pairs"}


def names(plan):
    return [contender.name for contender in plan.contenders]


def test_yardsticks_join_whatever_is_compared(values):
    assert names(make_plan(values)) == ["uniform", "longest"]
    assert names(make_plan(values | {"compare": {"methods": "less, longest"}})) == ["uniform", "less", "longest"]


def test_a_seed_reaches_every_draw_of_a_contender(values):
    plan = make_plan(values | {"seed": 7, "compare": {"methods": ["less"], "seeds": 2}})
    assert plan.seeds == [7, 8]
    less = plan.contenders[-1].config(8)
    assert (less.method, less.seed, less.train.seed, less.less.warmup.seed) == ("less", 8, 8, 8)
    assert less.train.epochs == 2


def test_entries_lay_their_settings_over_the_shared_ones(values, world):
    methods = {
        "less": {"less": {"checkpoints": 1}},
        "rose twice": {"method": "rose", "target": [world["pairs"]]},
        "mine": {"rows": world["pool"], "train": {"epochs": 1}},
    }
    plan = make_plan(values | {"compare": {"methods": methods}})
    less, rose, mine = plan.contenders[2:]
    assert less.config(0).less.checkpoints == 1
    assert (rose.config(0).method, rose.config(0).target) == ("rose", [world["pairs"]])
    assert mine.takes_all and mine.config(0).train.epochs == 1 and mine.config(0).train.learning_rate == 3e-3


def test_fewer_selections_than_seeds_keep_every_draw_of_uniform(values):
    plan = make_plan(values | {"compare": {"methods": ["less"], "seeds": 3, "selections": 1}})
    assert [plan.selections_of(contender) for contender in plan.contenders] == [3, 1, 1]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"test": []}, ConfigError, "'test' is missing"),
        ({"test": ["nowhere.jsonl"]}, DataError, "nowhere"),
        ({"pool": ["nowhere.jsonl"]}, (ConfigError, DataError), "nowhere"),
        ({"target": [], "compare": {"methods": ["less"]}}, ConfigError, "'less' needs a target"),
        ({"target": ["nowhere.jsonl"], "compare": {"methods": ["less"]}}, (ConfigError, DataError), "less: .*nowhere"),
        ({"compare": {"methods": ["rose"]}}, (ConfigError, DataError), "rose: .*pairs"),
        ({"compare": {"methods": ["lest"]}}, ConfigError, "'lest' is unknown.*less"),
        ({"compare": {"methods": {"less": {"budget": "3%"}}}}, ConfigError, "same for all methods"),
        ({"compare": {"methods": {"less": {"seed": 3}}}}, ConfigError, "same for all methods"),
        ({"compare": {"methods": {"../x": {"method": "less"}}}}, ConfigError, "cannot name something"),
        ({"compare": {"methods": {"base model": {"method": "less"}}}}, ConfigError, "cannot name something"),
        ({"compare": {"methods": {"mine": {"rows": ["nowhere.jsonl"]}}}}, (ConfigError, DataError), "nowhere"),
        ({"compare": {"runs": ["nowhere"]}}, ConfigError, "'nowhere' is no run folder"),
        ({"compare": {"seeds": 0}}, ConfigError, "compare.seeds"),
    ],
)
def test_what_cannot_be_compared_is_refused_at_once(values, change, error, message):
    with pytest.raises(error, match=message):
        make_plan(values | change)

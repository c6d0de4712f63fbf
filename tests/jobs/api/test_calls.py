"""Where a call writes, what its settings mean, and that a refused one leaves nothing; no Ray is started."""

import json
import os

import pandas
import pytest

import raysift
from raysift.config import make_config, replayed
from raysift.errors import ConfigError, DataError
from raysift.jobs.api.calls import as_overrides, begin, in_section, nested
from raysift.jobs.runs.run import open_run
from raysift.nano.world import generate_pool

ROWS = list(generate_pool(20, 0))


@pytest.fixture(autouse=True)
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def call(pool="pool.jsonl", run=None, method="uniform", fresh=False, **settings):
    """The folder in which a call would work, with its settings written there as the first stage does."""
    with (
        begin(method, {"method": method, **settings}, {"pool": pool}, run, fresh, "quiet") as (opened, config),
        opened.replayable(replayed(config)),
    ):
        opened.record("finished", "ingest")
    return os.path.relpath(opened.name)


def test_the_same_call_finds_its_run_again_and_another_gets_the_next_folder():
    assert [call(), call(budget="7%"), call(), call(budget="7%"), call(seed=3)] == [
        *("runs/uniform", "runs/uniform-2", "runs/uniform", "runs/uniform-2", "runs/uniform-3")
    ]
    assert call(method="longest") == "runs/longest"
    assert call(fresh=True) == "runs/uniform-4"
    assert call(run="runs/uniform", budget="9%") == "runs/uniform"  # a named one is checked by its stages
    os.mkdir("runs/quality")
    assert call(method="quality") == "runs/quality-2"  # a folder of somebody else's


def test_rows_in_memory_find_their_run_by_content():
    frame = pandas.DataFrame(ROWS)
    names = [call(ROWS), call([dict(row) for row in ROWS]), call(frame), call(ROWS[1:]), call(frame.copy()), call()]
    first, frames, fewer, paths = "runs/uniform", "runs/uniform-2", "runs/uniform-3", "runs/uniform-4"
    assert names == [first, first, frames, fewer, frames, paths]
    config = open_run(first).config()
    assert make_config({"pool": config.pool}) and os.path.exists(config.pool[0])  # run.yaml replays it
    assert config.pool[0].startswith(os.path.abspath(f"{first}/given/"))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"budget": "5 percent"}, ConfigError, "budget"),
        ({"longst": {}}, ConfigError, "longst"),
        ({"target": ROWS}, ConfigError, "selects for no target"),
        ({"test": ROWS}, ConfigError, r"Add train_on_selection=True"),
        ({"model": "no/such-folder"}, raysift.ModelError, "no/such-folder"),
        ({"pool_name": "mine"}, ConfigError, r"'pool_name' is for a ray\.data\.Dataset"),
        ({"log": "loud"}, ConfigError, "log: 'loud' is unknown"),
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_a_refused_call_leaves_nothing(settings, error, message, there, world):
    if there:
        (world / "runs").mkdir()
        (world / "runs" / "mine.txt").write_text("kept")
    before = sorted(path for path in world.rglob("*"))
    with pytest.raises(error, match=message):
        raysift.longest(pandas.DataFrame(ROWS), **settings)
    assert sorted(path for path in world.rglob("*")) == before


def test_a_refused_call_leaves_an_earlier_run_as_it_was(world):
    call(ROWS, run="mine")
    before = sorted(path for path in world.rglob("*"))
    with pytest.raises(ConfigError, match="selects for no target"):
        raysift.uniform(ROWS[1:], run="mine", target=ROWS[:1])
    assert sorted(path for path in world.rglob("*")) == before


def test_a_folder_that_is_no_run_is_refused_before_anything_is_written(world):
    (world / "other").mkdir()
    (world / "other" / "a.txt").write_text("")
    with pytest.raises(ConfigError, match=r"'other' is no run folder.*with run="):
        raysift.uniform(ROWS, run="other")
    assert os.listdir("other") == ["a.txt"]


def test_settings_are_named_as_everywhere_and_the_methods_own_directly():
    dotted = nested({"ingest.columns.instruction": "question", "ingest": {"format": "alpaca"}, "adapter": os.path})
    assert dotted["ingest"] == {"columns": {"instruction": "question"}, "format": "alpaca"}
    own = in_section("less", {"warmup_share": 0.2, "match": {"subtasks": "mean"}, "less": {"checkpoints": 2}})
    assert own == {"less": {"warmup_share": 0.2, "match": {"subtasks": "mean"}, "checkpoints": 2}}
    assert in_section("rose", {"preset": "paper", "train": {"epochs": 1}, "seed": 2}) == {
        **{"rose": {"preset": "paper"}, "train": {"epochs": 1}, "seed": 2}
    }
    assert as_overrides({"rose": {"match": {"subtasks": "mean"}}, "seed": 3}) == [
        'rose.match.subtasks="mean"',
        "seed=3",
    ]


def test_paths_may_stand_in_settings(world):
    assert nested({"less": {"warmup_from": world}, "reuse": [world / "a"]}) == {
        **{"less": {"warmup_from": str(world)}, "reuse": [str(world / "a")]}
    }


def test_what_is_not_there_is_said_in_words_of_python():
    with pytest.raises(ConfigError, match=r"no run folder.*given to run="):
        raysift.load_run("nowhere")
    call(run="mine")
    with pytest.raises(ConfigError, match="no finished selection"):
        _ = raysift.load_run("mine").selection
    with pytest.raises(ConfigError, match="no scores yet"):
        raysift.load_run("mine").scores()
    with pytest.raises(DataError, match="does not exist"):
        raysift.evaluate("nowhere.jsonl")
    with pytest.raises(ConfigError, match=r"'test' is missing.*test=\.\.\."):
        raysift.compare("pool.jsonl", methods=["quality"])
    with pytest.raises(ConfigError, match="'unknown' is unknown"):
        raysift.select("unknown", "pool.jsonl")

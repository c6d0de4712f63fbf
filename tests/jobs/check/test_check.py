"""A check from end to end on a small world: what it leaves, what a restart does again, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from sound_reports import blocks, sound

import raysift
from raysift.config import make_config
from raysift.errors import ConfigError, DataError
from raysift.jobs import stages
from raysift.jobs.check.cells import finish, plan_cells, write_taught
from raysift.jobs.check.check import check
from raysift.jobs.check.draws import draw, write_drawn
from raysift.jobs.check.plan import make_plan
from raysift.jobs.check.result import read_result
from raysift.jobs.commands import cli, guard
from raysift.jobs.commands.options import spread_multiple
from raysift.jobs.commands.show import show_run
from raysift.jobs.report.record import report_of
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.run import Run, open_run
from raysift.nano.world import examples, generate_pool, preference_pairs

pytestmark = pytest.mark.usefixtures("ray_local")
SMALL = ["check.quantiles=3", "check.rows=6", "check.taught=2", "check.taught_steps=1", "check.seeds=1"]
QUICK = [
    "train.epochs=2",
    "train.warmup_ratio=0",
    "evaluate.max_new_tokens=3",
    "resources.train=0",
    "resources.threads=1",
]


def lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A finished run over 60 rows in two files, and files to measure on."""
    folder = tmp_path_factory.mktemp("checked")
    rows = [*{str(row["messages"]): row for row in generate_pool(90, 3)}.values()][:60]
    lines(folder / "test.jsonl", examples(8, 5, ["add"], "test"))
    lines(folder / "pairs.jsonl", preference_pairs(6, 5, ["add"]))
    pool = [lines(folder / "a.jsonl", rows[:23]), lines(folder / "b.jsonl", rows[23:])]
    raysift.uniform(pool, budget="8", run=folder / "run")
    raysift.uniform([*pool[::-1]], budget="8", run=folder / "turned")
    return folder


def plan_of(home, *overrides, run="run", held="test.jsonl", **changes):
    own = [f"check.held_out={home / held}"] if held else []
    return make_plan(open_run(str(home / run)), changes, [*SMALL, *QUICK, *own, *overrides])


def cells(folder):
    return {file.parent.name: file.stat().st_mtime_ns for file in Path(folder).glob("cells/*/manifest.json")}


class Interrupted(Console):
    """Like a key press after so many finished models."""

    left = 2

    def event(self, event, stage="", step="", **fields):
        if (event, stage) == ("finished", "check"):
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt


@pytest.fixture(scope="module")
def done(home):
    """A check that was interrupted and done again; the cells that the first attempt finished."""
    folder = str(home / "run" / "check")
    plan = plan_of(home)
    with pytest.raises(KeyboardInterrupt):
        check(Run(folder, Interrupted("plain")), plan)
    first = cells(folder)
    return folder, first, check(Run(folder), plan)


def test_a_restart_repeats_no_finished_model(done):
    folder, first, found = done
    now = cells(folder)
    assert 2 <= len(first) <= 4 == len(now)
    assert {name: now[name] for name in first} == first
    assert read_result(Run(folder).folder) == json.loads(json.dumps(found))


def test_every_bin_is_measured_in_both_states_and_the_models_are_gone(done):
    folder, _, found = done
    assert (found["quantiles"], found["rows"], found["scored_rows"], found["seeds"]) == (3, 6, 60, 1)
    for state in ("as it answers", "format taught"):
        assert [len(found["states"][state][name]["bins"]) for name in ("loss", "metric")] == [3, 3]
        assert all(line["mean"] > 0 for line in found["states"][state]["loss"]["bins"])
    plain, taught = (found["states"][state]["loss"]["seeds"][0] for state in ("as it answers", "format taught"))
    assert len({*plain, *taught, found["states"]["as it answers"]["loss"]["base"]}) == 7  # no two models are the same
    bounds = [(one["high"], one["low"]) for one in found["scores"]]
    assert bounds == sorted(bounds, reverse=True) and [one["rows"] for one in found["scores"]] == [20] * 3
    assert found["measured"] == {"loss": 6, "metric": 6} and found["taught"]["examples"] == 2
    assert {place.name for place in Path(folder).glob("cells/*/*")} == {"manifest.json"}


def test_more_seeds_train_only_what_is_new(done, home):
    folder, _, found = done
    before = cells(folder)
    more = check(Run(folder), plan_of(home, "check.seeds=2"))
    now = cells(folder)
    assert {name: now[name] for name in before} == before and len(now) == len(before) + 3
    assert more["states"]["as it answers"]["loss"]["seeds"][0] == found["states"]["as it answers"]["loss"]["seeds"][0]
    check(Run(folder), plan_of(home))  # leaves the result as the other tests expect it
    assert cells(folder) == now


def named(home, *overrides, run="run", **more):
    plan = plan_of(home, *overrides, run=run, **more)
    run = Run(str(home / "elsewhere"))
    return [cell.place.name for cell in plan_cells(run, plan, [draw(run, plan, seed) for seed in plan.seeds])]


def test_a_model_is_named_by_what_decides_its_figures_and_by_nothing_else(home):
    usual = named(home)
    assert named(home, run="turned") == usual  # the pool's files in another order
    assert named(home, "resources.workers=1", "resources.tokens_per_pass=100") == usual
    assert len({*usual}) == 4
    other = [
        named(home, "check.rows=5"),
        named(home, "train.learning_rate=0.001"),
    ]
    assert all(not {*names[1:]} & {*usual[1:]} for names in other)
    for change in ("check.taught=1", "check.taught_steps=2", "evaluate.max_new_tokens=4"):
        assert not {*named(home, change)} & {*usual}, change
    assert not {*named(home, held="pairs.jsonl")} & {*usual}


def test_a_draw_holds_equally_many_rows_of_each_bin_and_none_twice(home):
    plan = plan_of(home, "check.seeds=2")
    drawn = [plan.drawn(seed) for seed in plan.seeds]
    for ids in drawn:
        assert [len(one) for one in ids] == [6] * 3
        assert len({*np.concatenate(ids).tolist()}) == 18
        for one, whole in zip(ids, plan.bins.bins, strict=True):
            assert {*one.tolist()} <= {*whole.ids.tolist()}
    assert [one.tolist() for one in drawn[0]] != [one.tolist() for one in drawn[1]]


def test_the_report_of_the_run_and_show_tell_what_the_check_found(done, home, capsys):
    folder, _, found = done
    plain = sound(report_of(open_run(str(home / "run"))))
    [section] = [one for one in plain["sections"] if one["key"] == "check"]
    assert section["lead"] == found["verdicts"][0]
    assert [len(one["points"]) for one in blocks(plain, "check", "lines")[0]["series"]] == [3, 2, 3, 2]
    assert [row[0] for row in blocks(plain, "check", "table")[0]["rows"]] == ["base model", "1", "2", "3"]
    show_run(folder, Console("plain"))
    shown = capsys.readouterr()
    assert "base model" in shown.out and found["verdicts"][0] in shown.err


def test_the_command_and_the_function_give_the_same_result(done, home, capsys):
    """Both find every model there already."""
    folder, _, found = done
    before = cells(folder)
    command = ["check", str(home / "run"), "--held-out", str(home / "test.jsonl"), "--format", "json", "--no-report"]
    assert guard.run_guarded(lambda: cli.app(args=spread_multiple([*command, *SMALL, *QUICK]))) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(found))
    python = raysift.check(
        home / "run",
        held_out=str(home / "test.jsonl"),
        quantiles=3,
        rows=6,
        seeds=1,
        taught=2,
        log="quiet",
        check={"taught_steps": 1},
        train={"epochs": 2, "warmup_ratio": 0.0},
        evaluate={"max_new_tokens": 3},
        resources={"train": 0, "threads": 1},
    )
    assert json.loads(json.dumps(python.result)) == json.loads(json.dumps(found))
    assert python.table().column("bin").to_pylist() == [0, 1, 2, 3]
    assert python.correlations.keys() == {"as it answers", "format taught"}
    assert found["verdicts"][0] in python.markdown().replace("&lt;", "<")
    assert cells(folder) == before


@pytest.mark.parametrize(
    ("overrides", "more", "error", "message"),
    [
        (["budget=5"], {}, ConfigError, "'budget' decided the scores"),
        (["less.checkpoints=1"], {}, ConfigError, "'less.checkpoints' decided the scores"),
        ([], {"held": None}, ConfigError, "nothing is held out"),
        (["check.rows=21"], {}, DataError, "21 rows of each bin were asked for.*a bin of 3 has 20"),
        (["check.quantiles=61"], {}, DataError, "60 rows have a score, 61 bins"),
        (["check.quantiles=2"], {}, ConfigError, "check.quantiles"),
        ([], {"held": "nowhere.jsonl"}, DataError, "nowhere.jsonl"),
    ],
)
def test_bad_input_is_refused_at_once(home, overrides, more, error, message):
    with pytest.raises(error, match=message):
        plan_of(home, *overrides, **more)


def test_a_run_without_scores_is_refused(home, tmp_path):
    ingested = make_config({"pool": [str(home / "a.jsonl")]})
    run = Run(str(tmp_path / "ingested"))
    with run.replayable(ingested.model_dump(mode="json")):
        stages.ingest(run, ingested)
    with pytest.raises(ConfigError, match="holds no selection, so there are no scores"):
        make_plan(open_run(run.name), {}, [])
    shutil.copytree(home / "run", tmp_path / "half", ignore=shutil.ignore_patterns("choose", "check"))
    with pytest.raises(ConfigError, match="no finished selection"):
        make_plan(open_run(str(tmp_path / "half")), {}, [])


def test_weights_that_are_trained_whole_are_taught_from_where_they_stand(home, tmp_path):
    plan = plan_of(home, "train.method=full", "train.learning_rate=0.001")
    run = Run(str(tmp_path / "whole"))
    drawn = draw(run, plan, 0)
    write_drawn(plan, drawn)
    base, cell, *_ = plan_cells(run, plan, [drawn])
    write_taught(plan.held.taught, cell.taught)
    for one in (base, cell):
        finish(one, plan.held.measured)
    losses = [
        sum(loss for loss, _ in state["losses"].values()) for one in (base, cell) for state in one.figures().values()
    ]
    assert len({*losses}) == 4  # taught from the base model's weights, the two would be one model
    assert {place.name for place in (tmp_path / "whole" / "cells").glob("*/*")} == {"manifest.json"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_trainings_with_workers_of_their_own_give_the_same_figures(done, home, tmp_path):
    folder, *_ = done
    found = check(Run(str(tmp_path / "workers")), plan_of(home, "resources.train=2", "check.quantiles=3"))
    usual = read_result(Run(folder).folder)
    for state in usual["states"]:
        mine, its = (np.array(one["states"][state]["loss"]["seeds"][0]) for one in (found, usual))
        assert mine == pytest.approx(its, rel=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_order_of_less_is_told_and_that_of_uniform_is_none(tmp_path):
    """On nano, where a row in a dozen practises the target's skill."""
    pool = lines(tmp_path / "pool.jsonl", generate_pool(1000, 1000))
    target = lines(tmp_path / "target.jsonl", examples(24, 1, ["last_letters"]))
    test = lines(tmp_path / "test.jsonl", examples(100, 1, ["last_letters"], "test"))
    quick = {"train": 0, "threads": 1}
    less = raysift.less(pool, target, budget="50", run=tmp_path / "less", checkpoints=2, resources=quick, log="quiet")
    uniform = raysift.uniform(pool, budget="50", run=tmp_path / "uniform", log="quiet")
    alike = {"held_out": test, "quantiles": 10, "rows": 50, "taught": 0, "resources": quick, "log": "quiet"}
    alike |= {"evaluate": {"max_new_tokens": 4}}
    ordered, none = raysift.check(less, seeds=2, **alike), raysift.check(uniform, seeds=1, **alike)
    assert ordered.result["states"]["as it answers"]["loss"]["order"]["kind"] == 1
    assert "rows that score higher teach more" in ordered.verdicts[0]
    assert none.result["states"]["as it answers"]["loss"]["order"]["kind"] == 0
    assert "cannot be told from no order" in none.verdicts[0]

"""Stages of other runs: taken over where settings and inputs are the same, done anew where not, and missed aloud."""

from __future__ import annotations

import json
import shutil

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest

import raysift
from raysift.config import make_config
from raysift.errors import ConfigError, DataError, StaleRunError
from raysift.jobs.commands.cli import app
from raysift.jobs.commands.show import show_run
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.run import Run, StageResult, open_run
from raysift.manifest import read_manifest
from raysift.nano.world import generate_pool
from raysift.storage import open_location

ROWS = 200


def stage(run, name="count", log=None, **settings):
    def body(folder):
        (log if log is not None else []).append(name)
        (folder / "out.txt").write(name)
        return StageResult(files={"out": ["out.txt"]}, counts={"rows_in": 3, "kept": 3}, rows=3)

    return run.stage(name, settings or {"alpha": 1}, {"pool": "aa"}, body)


def events(folder, event=None):
    lines = [json.loads(line) for line in (open_location(str(folder)) / "events.jsonl").read_text().splitlines()]
    return [line["stage"] for line in lines if line["event"] == event] if event else lines


def text_of(run, manifest):
    return run.files(manifest, "out")[0].read_text()


@pytest.fixture
def first(tmp_path):
    run = Run(tmp_path / "a")
    stage(run)
    return str(tmp_path / "a")


def test_a_stage_of_the_same_settings_is_taken_over_and_its_files_are_not_copied(first, tmp_path):
    log: list[str] = []
    run = Run(tmp_path / "b", reuse=[first])
    manifest = stage(run, log=log)
    assert log == []
    assert text_of(run, manifest) == "count"
    assert manifest.reused_from == first
    assert [file.name for file in open_location(tmp_path / "b/count").files(recursive=True)] == ["manifest.json"]
    (line,) = events(tmp_path / "b")
    assert (line["event"], line["stage"], line["run"]) == ("reused", "count", first)
    again = read_manifest(run.folder / "count")
    assert again == manifest
    assert text_of(open_run(str(tmp_path / "b")), again) == "count"


def test_a_stage_of_other_settings_is_done_and_it_is_said_in_what_it_differs(first, tmp_path):
    log: list[str] = []
    run = Run(tmp_path / "b", reuse=[first])
    stage(run, log=log, alpha=2)
    stage(run, "more", log=log)
    assert log == ["count", "more"]
    started = [line for line in events(tmp_path / "b") if line["event"] == "started"]
    assert [line.get("differs") for line in started] == ["settings.alpha: 1 -> 2", None]


def test_the_refusal_of_changed_settings_names_the_way_out(first):
    with pytest.raises(StaleRunError, match=rf"Give the run another name .*With --reuse {first} its stages"):
        stage(Run(first), alpha=2)


def test_a_chain_leads_to_the_run_that_did_the_stage(first, tmp_path):
    middle, log = Run(tmp_path / "b", reuse=[first]), []
    stage(middle)
    stage(middle, "more")
    last = Run(tmp_path / "c", reuse=[str(tmp_path / "b")])
    found = [stage(last, name, log) for name in ("count", "more")]
    assert log == []
    assert [manifest.reused_from for manifest in found] == [first, str(tmp_path / "b")]
    shutil.rmtree(tmp_path / "b/count")  # it only passed the stage on
    assert text_of(last, stage(Run(tmp_path / "c"))) == "count"


def test_two_runs_may_reuse_each_other(first, tmp_path):
    log: list[str] = []
    stage(Run(tmp_path / "b", reuse=[first]), "more")
    back = Run(first, reuse=[str(tmp_path / "b")])
    for name in ("count", "more"):
        stage(back, name, log)
    assert log == []
    assert events(first, "skipped") == ["count"]
    assert stage(Run(tmp_path / "b"), "more").reused_from is None


def test_several_runs_are_asked_in_turn(first, tmp_path):
    stage(Run(tmp_path / "other"), alpha=7)
    stage(Run(tmp_path / "other"), "more")
    run, log = Run(tmp_path / "b", reuse=[first, str(tmp_path / "other")]), []
    assert stage(run, log=log, alpha=7).reused_from == stage(run, "more", log).reused_from == str(tmp_path / "other")
    assert log == []


def test_a_killed_run_goes_on_from_the_recorded_runs_or_from_others_named_now(first, tmp_path):
    run = Run(tmp_path / "b", reuse=[first])

    def dies(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.stage("own", {}, {}, dies)
    log: list[str] = []
    stage(Run(tmp_path / "b"), log=log)
    assert log == []
    stage(Run(tmp_path / "other"), "more")
    named = Run(tmp_path / "b", reuse=[str(tmp_path / "other")])
    assert stage(named, "more", log).reused_from == str(tmp_path / "other")
    assert stage(named, log=log).reused_from == first
    assert log == []
    assert Run(tmp_path / "b").reuse == [str(tmp_path / "other")]


def test_a_refused_command_leaves_the_recorded_runs_as_they_were(first, tmp_path):
    stage(Run(tmp_path / "b", reuse=[first]))
    stage(Run(tmp_path / "other"), alpha=7)
    for _ in range(2):
        refused = Run(tmp_path / "b", reuse=[str(tmp_path / "other")])
        with pytest.raises(StaleRunError):
            stage(refused, alpha=7)
        assert Run(tmp_path / "b").reuse == [first]
    Run(tmp_path / "c", reuse=[first])
    assert not (tmp_path / "c/reuse.json").exists()


def test_a_source_that_is_gone_ends_the_run_unless_it_is_named_where_it_is_now(first, tmp_path):
    log: list[str] = []
    stage(Run(tmp_path / "b", reuse=[first]))
    stage(Run(tmp_path / "c", reuse=[first]), "more")
    shutil.move(first, tmp_path / "moved")
    manifest = read_manifest(open_location(tmp_path / "b/count"))
    with pytest.raises(DataError, match=rf"count: .*/b reuses this stage of {first}, where it is gone"):
        Run(tmp_path / "b").files(manifest, "out")
    for name in ("b", "c"):
        with pytest.raises(DataError, match=rf"count: {first}, which this run reuses, is not there any more.*--reuse"):
            stage(Run(tmp_path / name), log=log)
    assert log == []
    found = stage(Run(tmp_path / "b", reuse=[str(tmp_path / "moved")]), log=log)
    assert found.reused_from == str(tmp_path / "moved")
    assert log == []


def test_the_stage_is_done_again_once_the_ties_to_the_lost_run_are_deleted(first, tmp_path):
    log: list[str] = []
    stage(Run(tmp_path / "b", reuse=[first]))
    shutil.rmtree(first)
    with pytest.raises(DataError, match=rf"delete {tmp_path}/b/reuse.json and {tmp_path}/b/count and leave out"):
        stage(Run(tmp_path / "b"), log=log)
    (tmp_path / "b/reuse.json").unlink()
    shutil.rmtree(tmp_path / "b/count")
    assert stage(Run(tmp_path / "b"), log=log).reused_from is None
    assert log == ["count"]


def test_a_stage_whose_files_are_gone_is_not_taken_over_and_another_run_may_stand_in(first, tmp_path):
    log: list[str] = []
    stage(Run(tmp_path / "whole"))
    (file,) = (tmp_path / "a/count").rglob("out.txt")
    file.unlink()
    with pytest.raises(DataError, match=rf"count: {first} has done this stage, but {file} is gone"):
        stage(Run(tmp_path / "b", reuse=[first]), log=log)
    found = stage(Run(tmp_path / "b", reuse=[first, str(tmp_path / "whole")]), log=log)
    assert found.reused_from == str(tmp_path / "whole")
    assert log == []
    with pytest.raises(DataError, match=rf"To do the stage again instead, delete {first}/count\."):
        stage(Run(tmp_path / "c", reuse=[first]))
    shutil.rmtree(f"{first}/count")
    stage(Run(tmp_path / "c"), log=log)
    assert log == ["count"]


def test_a_manifest_that_cannot_be_read_ends_the_run_only_where_no_other_stands_in(first, tmp_path):
    log: list[str] = []
    stage(Run(tmp_path / "broken"))
    (tmp_path / "broken/count/manifest.json").write_text("{")
    for number, sources in enumerate(([tmp_path / "broken", first], [first, tmp_path / "broken"])):
        run = Run(tmp_path / f"b-{number}", reuse=list(map(str, sources)))
        assert stage(run, log=log).reused_from == first
    with pytest.raises(DataError, match=r"broken/count/manifest\.json cannot be read"):
        stage(Run(tmp_path / "c", reuse=[str(tmp_path / "broken")]), log=log)
    shutil.rmtree(first)
    with pytest.raises(DataError, match=rf"count: {first} has done this stage, but .* is gone"):
        stage(Run(tmp_path / "b-0", reuse=[str(tmp_path / "broken")]), log=log)
    assert log == []


def test_only_a_run_can_be_reused_and_only_another(first, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty' is no run folder"):
        Run(tmp_path / "b", reuse=[str(tmp_path / "empty")])
    assert not (tmp_path / "b").exists()
    with pytest.raises(ConfigError, match="is this run itself"):
        Run(first, reuse=[f"{first}/"])


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    path = tmp_path_factory.mktemp("reuse") / "pool.jsonl"
    path.write_bytes(b"\n".join(orjson.dumps(row) for row in generate_pool(ROWS, 3)))
    return str(path)


@pytest.fixture(scope="module")
def uniform(ray_local, pool):
    return raysift.uniform(pool, budget="10%", run=pool.replace("pool.jsonl", "uniform"))


def table_at(folder, name):
    return pq.read_table(f"{folder}/{name}.parquet")


@pytest.mark.ray
def test_another_budget_and_another_method_choose_what_fresh_runs_choose(uniform, pool, tmp_path, capsys):
    a, b, c = uniform.run.name, str(tmp_path / "b"), str(tmp_path / "c")
    more = raysift.uniform(pool, budget="20%", run=b, reuse=a)
    assert more.table().equals(raysift.uniform(pool, budget="20%", run=str(tmp_path / "fresh-b")).table())
    assert events(b, "reused") == ["ingest", "score"]
    assert events(b, "started") == ["choose"]
    assert table_at(b, "scores").equals(table_at(a, "scores"))

    app(
        ["longest", "--config", f"{b}/run.yaml", "--run", c, "--reuse", b, "--reuse", a, "--log", "plain"],
        standalone_mode=False,
    )
    said = capsys.readouterr().err
    assert f"reused: run {a}" in said and uniform.run.opened.manifest("ingest").fingerprint not in said
    assert "gives each row its score" in said
    assert "differs settings.longest: (absent) -> " in said
    longest = raysift.load_run(c).selection
    assert longest.table().equals(raysift.longest(pool, budget="20%", run=str(tmp_path / "fresh-c")).table())
    assert table_at(c, "selection").equals(longest.table())
    assert events(c, "reused") == ["ingest"]

    saved = [(tmp_path / name / "run.yaml").read_text() for name in ("c", "fresh-c")]
    assert saved[0] == saved[1]

    capsys.readouterr()
    show_run(c, Console("json"))
    tables = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    (reused,) = [line["rows"] for line in tables if line.get("title") == "Reused"]
    assert reused == [["ingest", a]]
    assert "selected as number 1 of" in raysift.explain(c, longest.ids[0]).verdict


@pytest.mark.ray
def test_a_whole_run_is_reused_with_its_tables_at_the_top(uniform, pool, tmp_path):
    same = raysift.uniform(pool, budget="10%", run=str(tmp_path / "b"), reuse=uniform.run.name)
    assert events(tmp_path / "b", "reused") == ["ingest", "score", "choose"]
    for name in ("selection", "scores"):
        assert table_at(tmp_path / "b", name).equals(table_at(uniform.run.name, name))
    assert same.dataset().count() == len(same) == len(uniform)


@pytest.mark.ray
def test_rows_of_a_changed_pool_are_read_anew(uniform, pool, tmp_path):
    changed = tmp_path / "pool.jsonl"
    changed.write_bytes(b"\n".join(orjson.dumps(row) for row in generate_pool(ROWS // 2, 3)))
    found = raysift.uniform(str(changed), budget="10%", run=str(tmp_path / "b"), reuse=uniform.run.name)
    assert found.table().equals(raysift.uniform(str(changed), budget="10%", run=str(tmp_path / "fresh")).table())
    assert events(tmp_path / "b", "reused") == []
    told = next(line["differs"] for line in events(tmp_path / "b") if line["event"] == "started")
    assert told.startswith("inputs.pool")


@pytest.mark.ray
def test_a_dataset_is_the_same_by_its_name_alone(ray_local, tmp_path):
    import ray

    data = ray.data.from_items(list(generate_pool(60, 0)))
    raysift.uniform(data, budget="5", run=str(tmp_path / "a"), pool_name="rows")
    raysift.uniform(data, budget="9", run=str(tmp_path / "b"), pool_name="rows", reuse=str(tmp_path / "a"))
    assert events(tmp_path / "b", "reused") == ["ingest", "score"]
    with pytest.raises(ConfigError, match=r"a dataset has no fingerprint.*pool_name"):
        raysift.uniform(data, budget="9", run=str(tmp_path / "c"), reuse=str(tmp_path / "a"))


@pytest.mark.ray
@pytest.mark.slow
def test_runs_on_an_object_store_are_reused_too(uniform, pool, s3_uri, tmp_path):
    base, _, query = s3_uri.partition("?")
    a, b, c = (f"{base}/reuse-{name}?{query}" for name in "abc")
    raysift.longest(pool, budget="10%", run=a)
    more = raysift.longest(pool, budget="20%", run=b, reuse=a)
    assert events(b, "reused") == ["ingest", "lengths", "score"]
    assert more.table().equals(raysift.longest(pool, budget="20%", run=str(tmp_path / "fresh")).table())
    assert (open_location(b) / "scores.parquet").exists()
    last = raysift.longest(pool, budget="30%", run=c, reuse=[b, uniform.run.name])
    assert last.run.opened.manifest("lengths").reused_from == a
    assert raysift.load_run(c).selection.ids == last.ids
    with pytest.raises(ConfigError, match="is this run itself"):
        Run(a, reuse=[a])


@pytest.mark.ray
def test_stored_gradients_serve_other_ways_to_match_without_a_new_pass(stored_run, repeat, tmp_path, monkeypatch):
    from raysift.jobs.gradients import store as jobs_store
    from raysift.jobs.recipes import run_method

    class Broken(jobs_store.GradientVectors):
        def answer(self, rows):
            raise AssertionError("a gradient was computed again")

    place = stored_run.config().resources.store
    changes = {"rose__matching": "store", "rose__projection__kind": "none", "rose__match__subtasks": "mean"}
    fresh = repeat(tmp_path / "fresh", resources__store=place, **changes)
    monkeypatch.setattr(jobs_store, "GradientVectors", Broken)

    def again(name, source, *overrides):
        values = stored_run.config(overrides=["resources.store=null", *overrides]).model_dump(mode="json")
        run = Run(str(tmp_path / name), reuse=[source])
        run_method(run, make_config(values))
        return run

    run = again("b", stored_run.name, "rose.match.subtasks=mean")
    reused = ["ingest", "warmup", "targets", "gradients", "match"]
    assert [name for name in reused if name not in events(run.name, "reused")] == []
    assert events(run.name, "started") == ["influence", "choose"]
    assert table_at(run.name, "selection").equals(table_at(fresh.name, "selection"))

    fewer = again("c", run.name, "rose.checkpoints=1")  # two runs away from the store
    assert fewer.manifest("gradients").values["vectors_computed"] == 0
    assert not (fewer.folder / "store").exists()
    other = raysift.rescore(run.name, run.config().target, run=str(tmp_path / "d"), budget="5")
    assert other.ids == raysift.load_run(run.name).selection.ids[:5]
    assert events(tmp_path / "d", "started") == ["choose"]
    verdict = raysift.explain(str(tmp_path / "d"), other.ids[0], pairs=False)
    assert verdict.matches
    assert again("e", str(tmp_path / "d")).manifest("match").reused_from == stored_run.name
    assert again("f", run.name, f"rose.warmup_from={run.name}").manifest("gradients").reused_from == stored_run.name


@pytest.mark.ray
@pytest.mark.slow
def test_mods_with_another_beta_does_only_what_follows_from_it(ray_local, pool, tmp_path):
    common = {"budget": "12", "resources": {"train": 0, "workers": 1}}
    mods = {"seed_train": {"recipe": "nano", "epochs": 2}}
    mods |= {"generation": {"max_new_tokens": 12, "backend": "transformers"}}
    raysift.mods(pool, run=str(tmp_path / "a"), mods=mods, **common)
    mods |= {"beta": {"quantile": 0.3}}
    found = raysift.mods(pool, run=str(tmp_path / "b"), mods=mods, reuse=str(tmp_path / "a"), **common)
    fresh = raysift.mods(pool, run=str(tmp_path / "fresh"), mods=mods, **common)
    assert found.ids == fresh.ids
    assert events(tmp_path / "b", "started") == ["needed", "augmented", "order", "choose"]
    reused = ["ingest", "quality", "good", "embed", "seeds", "tune", "generate", "necessity"]
    assert events(tmp_path / "b", "reused") == reused
    mine, theirs = (table_at(tmp_path / name, "scores").sort_by("id") for name in ("b", "fresh"))
    assert mine["fate"].equals(theirs["fate"])
    for column in ("quality", "necessity"):  # another training, other batches: the last digits may differ
        np.testing.assert_allclose(*(t[column].to_numpy().astype(float) for t in (mine, theirs)), atol=1e-4)
    whole = raysift.mods(pool, run=str(tmp_path / "c"), mods=mods, reuse=str(tmp_path / "b"), **common)
    tuned = raysift.finetune(whole, run=str(tmp_path / "tuned"), train={"epochs": 1}, resources=common["resources"])
    assert tuned.manifest.counts["rows_in"] == len(found)

"""The command line: one grammar, clear refusals, exit codes that mean something, real runs on a local Ray."""

import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import yaml

from raysift.config import make_config
from raysift.errors import DataError, find_cause
from raysift.jobs.commands import cli
from raysift.jobs.commands.options import spread_multiple
from raysift.jobs.commands.show import show_run
from raysift.jobs.runs.console import Console
from raysift.nano.world import WorldConfig, write_pool
from raysift.settings.training import RECIPES


def raysift(*arguments, cwd=None, env=None, timeout=240):
    command = [sys.executable, "-m", "raysift.jobs", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=timeout, env=env)


@pytest.fixture
def here(ray_local, tmp_path, monkeypatch, capsys):
    """The command in this process, which has the tests' Ray: its exit code, and what it said on both outputs."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["raysift", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, *capsys.readouterr()

    return run


def test_several_values_after_one_option():
    given = ["uniform", "--pool", "a", "b", "c", "--budget", "5%", "--test", "t", "longest.unit=chars"]
    assert spread_multiple(given) == (
        ["uniform", "--pool", "a", "--pool", "b", "--pool", "c", "--budget", "5%", "--test", "t", "longest.unit=chars"]
    )
    assert spread_multiple(["--pool", "s3://b/x?a=b", "y"]) == ["--pool", "s3://b/x?a=b", "--pool", "y"]
    assert spread_multiple(["--reuse", "a", "b", "seed=1"]) == ["--reuse", "a", "--reuse", "b", "seed=1"]
    assert spread_multiple(["submit", "--", "uniform", "--pool", "a", "b"]) == [
        "submit",
        "--",
        "uniform",
        "--pool",
        "a",
        "b",
    ]


def test_a_preset_named_beside_a_complete_run_yaml_has_its_effect(tmp_path, monkeypatch):
    from raysift.jobs.commands import actions as commands

    file, seen = tmp_path / "run.yaml", []
    monkeypatch.setattr(commands, "run_selection", lambda settings, console, *follow: seen.append(settings))
    made = make_config({"method": "rose", "pool": ["p.jsonl"], "model": "./llama", "rose": {"preset": "official"}})
    file.write_text(yaml.safe_dump(made.model_dump(mode="json")))
    for more in ([], ["rose.preset=paper"], ["rose.preset=paper", "rose.adam.form=official", "train.recipe=mods"]):
        cli.app(args=["rose", "--config", str(file), "--run", "new", *more], standalone_mode=False)
    forms = [(s.rose.adam.form, s.rose.end_prompt, s.train) for s in seen]
    here = {"dtype": made.train.dtype}  # `auto` in the recipes, decided for this machine
    assert forms == [
        (made.rose.adam.form, True, RECIPES["rose-official"].model_copy(update=here)),
        ("textbook", False, RECIPES["less"].model_copy(update=here)),
        ("official", False, RECIPES["mods"].model_copy(update=here)),
    ]


def test_our_error_is_found_inside_what_ray_wraps_around_it():
    inner = DataError("ingest: no rows")
    outer = RuntimeError("worker failed")
    outer.__cause__ = inner
    assert find_cause(outer) is inner
    assert find_cause(RuntimeError("other")) is None


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["uniform"], 2, "'pool' is missing"),
        (["uniform", "--pool", "x.jsonl", "--budget", "lots"], 2, "budget: 'lots'"),
        (["uniform", "--pool", "x.jsonl", "longest.unit=words"], 2, "'tokens' or 'chars'"),
        (["evaluate"], 2, "'test' is missing"),
        (["show", "nowhere"], 2, "is no run folder"),
        (["uniform", "--pool", "x.jsonl", "--log", "loud"], 2, "Allowed: rich, plain, quiet, json"),
    ],
)
def test_wrong_use_is_refused_before_anything_heavy_starts(tmp_path, arguments, code, message):
    done = raysift(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ray
def test_a_missing_pool_is_a_data_error(here):
    code, _, said = here("uniform", "--pool", "missing.jsonl", "--run", "r")
    assert code == 3, said
    assert "missing.jsonl" in said
    assert "Traceback" not in said


@pytest.mark.ray
def test_a_selection_from_files_to_files(here, joined, tmp_path, monkeypatch):
    """By a process of its own; then it is there, refused with other settings, replayed and shown."""
    write_pool(tmp_path / "pool.jsonl", 600, 0, WorldConfig())
    first = raysift(
        "longest", "--pool", "pool.jsonl", "--budget", "10%", "--run", "r", "--log", "json", cwd=tmp_path, env=joined
    )
    assert first.returncode == 0, first.stderr
    run = tmp_path / "r"
    selection = pq.read_table(run / "selection.parquet")
    scores = pq.read_table(run / "scores.parquet")
    kept = json.loads((run / "ingest/manifest.json").read_text())["counts"]["kept"]
    assert len(scores) == kept
    assert len(selection) == kept // 10
    assert selection.column_names[:4] == ["id", "rank", "score", "source"]
    assert selection["rank"].to_pylist() == list(range(1, len(selection) + 1))
    events = [json.loads(line) for line in first.stderr.splitlines() if line.startswith("{")]
    assert {"ingest", "lengths", "score", "choose"} <= {event["stage"] for event in events}

    code, _, said = here("longest", "--pool", "pool.jsonl", "--budget", "10%", "--run", "r")
    assert code == 0, said
    assert said.count("skipped") == 4

    code, _, said = here("longest", "--pool", "pool.jsonl", "--budget", "20%", "--run", "r")
    assert code == 4
    assert "budget: '10%' -> '20%'" in said

    pool = pq.read_table(next((run / "lengths").glob("*/answers")))["n_tokens"].to_pylist()
    command = ["longest", "--pool", "pool.jsonl", "--run", "t", "--reuse", "r", "--budget"]
    code, _, more = here(*command, f"{sum(pool) + 1}tok")
    assert (code, f"the pool has {sum(pool)}" in more) == (2, True), more
    code, _, half = here(*command, f"{sum(pool) // 2}tok")
    assert code == 0, half
    counts = json.loads((tmp_path / "t/choose/manifest.json").read_text())["counts"]
    taken = pq.read_table(next((tmp_path / "t/choose").glob("*/selection.parquet")))["id"].to_pylist()
    assert counts["tokens"] <= counts["tokens_asked"] == sum(pool) // 2 and len(taken) == counts["kept"]
    assert f"tokens: {counts['tokens']:,} selected" in half

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, _, said = here("longest", "--config", "../r/run.yaml", "--run", "../replayed")
    assert code == 0, said
    monkeypatch.chdir(tmp_path)
    replayed = pq.read_table(tmp_path / "replayed/selection.parquet")
    assert replayed.drop_columns("file").equals(selection.drop_columns("file"))
    assert set(replayed["file"].to_pylist()) == {str(tmp_path / "pool.jsonl")}  # run.yaml holds the whole path
    assert yaml.safe_load((run / "run.yaml").read_text())["method"] == "longest"

    code, shown, said = here("show", "r")
    assert code == 0, said
    assert "choose" in shown


@pytest.mark.ray
def test_show_counts_failures_and_unused_target_records_by_reason(rose_run, capsys):
    show_run(rose_run, Console("json"))
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    rows = {event["title"]: event["rows"] for event in events if event["event"] == "table"}
    ((reason, count),) = rows["Failed in gradients"]
    assert reason.startswith("no_label_tokens: ")
    assert count == 1
    assert rows["Targets"] == [
        ["with a gradient", 8],
        ["unreadable: no_prompt", 1],
        ["unreadable: one_sided", 1],
        ["set aside: chosen_equals_rejected", 1],
        ["records in", 11],
    ]


def test_steps_take_runs_to_reuse(monkeypatch):
    from raysift.jobs.commands import actions as commands
    from raysift.jobs.commands import cli

    seen = []
    for name in ("run_ingest", "run_evaluate"):
        monkeypatch.setattr(commands, name, lambda settings, console, *follow: seen.append(settings.reuse))
    monkeypatch.setattr(commands, "run_rescore", lambda *given: seen.append(given[-1]))
    for command in (["ingest", "p.jsonl"], ["evaluate", "--test", "t.jsonl"], ["rescore", "r", "--target", "t.jsonl"]):
        cli.app(args=[*command, *spread_multiple(["--reuse", "a", "b"])], standalone_mode=False)
    assert seen == [["a", "b"]] * 3

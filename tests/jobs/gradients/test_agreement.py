"""How far a target's pairs agree: kept by its stage, said wherever a person looks, and required before the pass over the pool."""

import contextlib
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from raysift.config import make_selector
from raysift.errors import DataError
from raysift.gradients.agreement import agreement, as_values
from raysift.gradients.preference import Member, Targets
from raysift.jobs.commands import cli, guard
from raysift.jobs.commands.describe_run import describe_run
from raysift.jobs.commands.options import spread_multiple
from raysift.jobs.commands.show import show_run
from raysift.jobs.gradients.matching import match_and_choose
from raysift.jobs.gradients.stages import checkpoints_of
from raysift.jobs.gradients.targeting import read_targets, targets
from raysift.jobs.report.record import report_of
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.run import Run, open_run
from raysift.reasons.agreement import BEFORE_WARMUP, tell_agreement
from raysift.report.blocks import as_json

from ..conftest import PAIRS, nano_pairs, write_lines  # noqa: TID252


@pytest.fixture(scope="module")
def found(rose_run):
    """What the stage of the shared run has kept."""
    return open_run(rose_run).manifest("targets").values["agreement"]


def test_the_stage_keeps_what_its_examples_say(rose_run, found):
    run = open_run(rose_run)
    manifest = run.manifest("targets")
    points = checkpoints_of(run, run.manifest("warmup"), None)
    table = pq.read_table(run.files(manifest, "examples")[0].path)
    keys = sorted(set(table["key"].to_pylist()))
    by_checkpoint = []
    for point in points:
        lines = [line for line in table.to_pylist() if line["checkpoint"] == point.name]
        members = [
            Member(keys.index(line["key"]), line["subtask"], 0.0, line["norm"], line["margin"], between=line["between"])
            for line in lines
        ]
        sketches = np.array([line["sketch"] for line in lines], np.float32)
        by_checkpoint.append(Targets((), np.empty(0), members, [], sketches=sketches))
    rates = [point.learning_rate for point in points]
    names = [point.name for point in points]
    told = as_values(agreement(by_checkpoint, names, rates, keys, "mean_of_units"), dict.fromkeys(keys, ("", 0)))
    apart = ("against", "toward")  # the second needs the gradients of both answers
    assert {name: told[name] for name in told if name not in apart} == {n: found[n] for n in found if n not in apart}
    assert told["toward"] is None and -1 < found["toward"] < 1
    assert (found["kind"], found["count"], found["members"]) == ("pairs", PAIRS, PAIRS)
    assert found["against"]["count"] == told["against"]["count"]
    for place in found["against"]["first"]:
        assert place["file"].endswith("pairs.jsonl") and 1 <= place["record"] <= PAIRS + 3


def test_show_and_report_say_the_same_sentence(rose_run, found, capsys):
    told = tell_agreement(found)
    show_run(rose_run, Console("plain"))
    assert f"targets: {told}" in capsys.readouterr().err
    run = open_run(rose_run)
    (stage,) = [stage for stage in describe_run(run)["stages"] if stage["stage"] == "targets"]
    assert stage["values"]["agreement"]["halves"] == found["halves"]
    sections = {section["key"]: section for section in as_json(report_of(run, with_text=False))["sections"]}
    (table,) = [block for block in sections["why"]["blocks"] if block["title"] == "Agreement of the target's halves"]
    parts = [row[0] for row in table["rows"]]
    assert table["note"] == told and parts[0] == "all" and parts[3:] == ["epoch-1", "epoch-2"]
    assert sorted(parts[1:3]) == sorted(found["subtasks"]) == ["add", "subtract"]
    assert table["rows"][0][1:3] == [PAIRS, found["halves"]]
    alerts = [alert for block in sections["alerts"]["blocks"] for alert in block["items"]]
    assert any(told in alert["text"] for alert in alerts) == (found["level"] != "clear")


@contextlib.contextmanager
def with_least(rose_run, folder, least):
    """A run that reuses the shared one, and what it needs to go on from its warm-up."""
    run = Run(folder, Console("plain"), [rose_run])
    config = open_run(rose_run).config({"run": str(folder)}, [f"rose.targets.least_agreement={json.dumps(least)}"])
    selector = make_selector(config)
    with run.replayable(config.model_dump(mode="json")):
        rows, warm = (run.adopt(stage, rose_run) for stage in ("ingest", "warmup"))
        yield run, config, selector, read_targets(config, selector), rows, warm


def test_too_little_agreement_ends_a_run_before_its_pass_also_where_the_stage_is_reused(
    rose_run, found, tmp_path, capsys
):
    least = 0.5 + found["halves"] / 2
    with with_least(rose_run, tmp_path / "run", least) as (run, config, selector, members, rows, warm):
        with pytest.raises(DataError, match=r"rose\.targets\.least_agreement asks for .*before its pass over the pool"):
            match_and_choose(run, config, selector, members, rows, warm, None)
        assert run.manifest("targets").reused_from and not (run.folder / "gradients").exists()
        assert run._events and json.loads(run._events[-1])["event"] == "failed"
    capsys.readouterr()
    enough = max(0.0, found["halves"])
    with with_least(rose_run, tmp_path / "run", enough) as (run, config, selector, members, rows, warm):
        assert targets(run, config, selector, members, rows, warm).reused_from
        assert f"targets: {tell_agreement(found)}" in capsys.readouterr().err


def test_look_says_it_without_a_run_and_only_if_a_model_is_named(ray_local, tmp_path, capsys):
    from raysift.nano.world import generate_pool

    pool = write_lines(tmp_path / "pool.jsonl", list(generate_pool(20, 0)))
    pairs = write_lines(tmp_path / "pairs.jsonl", nano_pairs(14, 0))

    def look(*more):
        arguments = ["look", pool, "--target", pairs, "--log", "plain", *more]
        assert guard.run_guarded(lambda: cli.app(args=spread_multiple(arguments))) == 0
        return capsys.readouterr().err

    assert "halves" not in look()
    shown = look("--model", "nano", "rose.targets.limit=10")
    assert "10 of 14 pairs" in shown and BEFORE_WARMUP in shown
    assert f"target {pairs}: halves of these 10 pairs, subtask by subtask, agree at " in shown
    assert not list(tmp_path.glob("runs*"))


def test_a_target_of_equal_answers_alone_ends_with_a_sentence(ray_local, rose_run, tmp_path):
    pairs = [pair | {"rejected": pair["chosen"]} for pair in nano_pairs(3, 0)]
    source, target = open_run(rose_run), write_lines(tmp_path / "same.jsonl", pairs)
    config = source.config({"run": str(tmp_path / "run"), "target": [target]})
    run, selector = Run(tmp_path / "run", reuse=[rose_run]), make_selector(config)
    with run.replayable(config.model_dump(mode="json")):
        rows, warm = (run.adopt(stage, rose_run) for stage in ("ingest", "warmup"))
        with pytest.raises(DataError, match="no pair or example of subtask 'add' has a gradient; 3 were set aside"):
            targets(run, config, selector, read_targets(config, selector), rows, warm)

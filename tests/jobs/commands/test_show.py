"""`show`: what a run was asked for, what it took with the rows' text, and why it may be trusted or not."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console as RichConsole

from raysift.config import make_config, make_selector, replayed
from raysift.errors import DataError
from raysift.jobs.commands.show import show_run
from raysift.jobs.commands.show_selection import shorten
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.replay import command_of
from raysift.jobs.runs.run import Run, StageResult
from raysift.jobs.runs.selection import write_selection
from raysift.jobs.runs.stage_names import WHAT_IT_DOES
from raysift.records import KEPT_ROWS

COUNT, TAKEN = 40, 8
EVIL = "\x1b[31mred [bold]markup[/]\n" + "word " * 60


def finished_run(folder, method="quality", scores=None):
    """A run with ingest, score and choose, as the stages leave them; row 3 holds escape sequences."""
    config = make_config({"method": method, "pool": ["p.jsonl"], "budget": str(TAKEN), "run": str(folder)})
    run, selector = Run(folder, Console("quiet")), make_selector(config)
    ids = np.arange(COUNT)
    scores = scores or [float(COUNT - i) for i in ids]
    talks = [
        [
            {"role": "user", "content": EVIL if i == 3 else f"question {i}"},
            {"role": "assistant", "content": f"answer {i}"},
        ]
        for i in ids
    ]
    columns = {"id": ids, "source": ["a", "b"] * (COUNT // 2), "messages": talks, "raw": [None] * COUNT}
    columns |= {"meta": [json.dumps({"skill": "add" if i < 10 else "sort"}) for i in ids]}
    columns |= {"file": ["p.jsonl"] * COUNT, "position": ids + 1}
    table = pa.table(columns, schema=KEPT_ROWS)

    def ingest(place):
        pq.write_table(table, (place / "rows.parquet").path)
        counts = {"rows_in": COUNT, "kept": COUNT, "rejected": {}, "failed": 0, "bad_files": []}
        return StageResult(files={"rows": ["rows.parquet"]}, counts=counts, values={"by_source": {"a": 20, "b": 20}})

    def score(place):
        schema = selector.score_schema()
        told = pa.table({"id": ids, "score": pa.array(scores, pa.float64())})
        empty = {name: pa.nulls(COUNT, schema.field(name).type) for name in schema.names[2:]}
        pq.write_table(pa.table({**{n: told[n] for n in told.column_names}, **empty}), (place / "s.parquet").path)
        return StageResult(files={"scores": ["s.parquet"]})

    with run.replayable(replayed(config)):
        rows = run.stage("ingest", {}, {"pool": [["p.jsonl", "c0ffee" * 8]]}, ingest)
        scored = run.stage("score", {}, {}, score)
        files = run.files(scored, "scores")
        best = np.array(scores[:TAKEN])
        run.stage("choose", {}, {}, lambda f: write_selection(run, config, selector, rows, files, ids[:TAKEN], best, f))
    return run


def shown(run, by=None, width=160):
    console = Console("plain")
    console.out = RichConsole(file=io.StringIO(), width=width, highlight=False)
    console.err = RichConsole(file=io.StringIO(), width=width, highlight=False)
    show_run(str(run.folder.path), console, by)
    return console.out.file.getvalue(), console.err.file.getvalue()


def test_show_tells_what_was_asked_and_what_each_stage_did(tmp_path):
    told, _ = shown(finished_run(tmp_path / "run"))
    for words in ("quality", "nano", "budget", "seed", "raysift quality --pool", f"--budget {TAKEN}"):
        assert words in told
    assert all(WHAT_IT_DOES[stage].split()[0] in told for stage in ("ingest", "score", "choose"))


def test_first_border_and_last_rows_are_shown_with_their_text_escaped(tmp_path):
    told, _ = shown(finished_run(tmp_path / "run"))
    lines = {words: [line for line in told.splitlines() if words in line] for words in ("question 0 ", "question 7 ")}
    assert "first" in lines["question 0 "][0] and "answer 0" in lines["question 0 "][0]
    assert "last taken" in lines["question 7 "][0]
    assert any("next, not taken" in line and "question 8 " in line for line in told.splitlines())
    assert any("last of all" in line and f"question {COUNT - 1} " in line for line in told.splitlines())
    assert "\x1b" not in told


def test_row_text_moves_no_terminal_and_is_shortened(tmp_path):
    scores = [float(i == 3) + 1 - i / 100 for i in range(COUNT)]
    run = finished_run(tmp_path / "run", scores=scores)
    place = run.files(run.manifest("choose"), "selection")[0]
    table = pq.read_table(place.path)
    pq.write_table(table.take([3, 0, 1, 2, 4, 5, 6, 7]), place.path)  # row 3 comes first
    told, _ = shown(run, width=300)
    assert "\\x1b[31mred [bold]markup[/] word" in told and "\x1b" not in told and told.count("word ") < 20


def test_a_selection_that_does_not_follow_the_scores_has_no_border_by_score(tmp_path):
    told, _ = shown(finished_run(tmp_path / "run", scores=[float(i) for i in range(COUNT)]))
    assert "not taken" in told and "next, not taken" not in told and "last of all" not in told


@pytest.mark.parametrize("method", ["quality", "uniform", "less"])
def test_every_method_has_a_histogram_of_scores_and_groups_of_any_column(tmp_path, method):
    told, _ = shown(finished_run(tmp_path / "run", method), by="skill")
    assert "Scores of all rows (# selected)" in told
    groups = told.partition("Selected by skill")[2].splitlines()
    (line,) = (line for line in groups if "add" in line.split())
    assert line.replace("│", "").split()[:4] == ["add", "10", "8", "4"] and "more than by chance" in line


def test_a_column_that_no_row_has_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(DataError, match="show: no row has 'colour' in its meta; there are: skill"):
        shown(finished_run(tmp_path / "run"), by="colour")


def test_the_table_of_a_method_is_explained(tmp_path):
    for method, words in (("quality", "what the scorer thinks"), ("uniform", "says nothing about it")):
        assert words in shown(finished_run(tmp_path / method, method))[1]
    from raysift.methods import METHODS

    assert all(METHODS[name].reading for name in METHODS) and "LOW means" in METHODS["mods"].reading


def test_a_training_is_shown_with_losses_curve_and_adapter(tmp_path):
    run = finished_run(tmp_path / "run")

    def train(place):
        (place / "epoch-1" / "adapter").make_folder()
        values = {"mean_losses": [1.5], "mean_learning_rates": [1e-4], "steps": 2, "losses": [[1, 2.0], [2, 1.0]]}
        return StageResult(files={"epochs": ["epoch-1"]}, values=values)

    run.stage("final", {}, {}, train)
    told, said = shown(run)
    assert "Training final: 2 steps" in told and "2.000 █▁ 1.000" in said and "epoch-1/adapter" in said


def test_a_command_is_one_that_a_shell_reads_back():
    made_with = {"method": "less", "pool": ["my pool.jsonl"], "target": ["t"], "model": "nano", "seed": 1, "test": []}
    told = command_of(made_with | {"train_on_selection": True})
    assert told == "raysift less --pool 'my pool.jsonl' --target t --model nano --seed 1 --train"


def test_text_is_put_on_one_line_and_cut_with_a_mark():
    assert shorten(" a\n b\t", 10) == "a b" and shorten("x" * 30, 10) == "x" * 7 + "..."

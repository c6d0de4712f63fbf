"""`raysift report`, and the report that every run leaves at its end."""

import json

import numpy as np
import pytest
from sound_reports import alerts, blocks, sound
from typer.testing import CliRunner

from raysift.evaluation.entries import BASE, LONGEST, UNIFORM
from raysift.evaluation.standings import Measured, Ranked, standings
from raysift.jobs.commands.cli import app
from raysift.jobs.compare.result import SETTINGS, write_result
from raysift.jobs.report import writing
from raysift.jobs.report.record import report_of
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.run import Run, open_run
from raysift.storage import open_location

from .conftest import made_run, pool_of


def ran(*arguments):
    return CliRunner().invoke(app, ["report", *map(str, arguments)], catch_exceptions=True)


@pytest.fixture
def run(tmp_path):
    return made_run(tmp_path / "run", pool_of(40))


def test_the_record_is_written_beside_its_page(run):
    done = ran(run.folder.path)
    assert done.exit_code == 0, done.output
    record = json.loads((run.folder / "report.json").read_bytes())
    assert record["kind"] == "run" and record["title"] == run.name
    page = (run.folder / "report.html").read_text()
    assert (
        f"report: {run.folder}/report.html" in done.output.replace("\n", "") and record["sections"][0]["lead"] in page
    )


def test_the_same_run_gives_the_same_bytes(run, tmp_path):
    for name in ("one", "two"):
        assert ran(run.folder.path, "--out", tmp_path / name).exit_code == 0
    one, two = (open_location(str(tmp_path / name)) for name in ("one", "two"))
    for name in (writing.PAGE, writing.DATA):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_json_is_printed_and_no_text_leaves_texts_out(run):
    done = ran(run.folder.path, "--json", "--no-text")
    record = json.loads(done.stdout)
    assert record["with_text"] is False and "silver" not in done.stdout
    assert not (run.folder / writing.DATA).exists()


def test_several_runs_go_into_the_folder_of_the_last(run, tmp_path):
    other = made_run(tmp_path / "other", pool_of(40), method="uniform")
    assert ran(run.folder.path, other.folder.path).exit_code == 0
    assert json.loads((other.folder / writing.DATA).read_bytes())["kind"] == "runs"
    assert not (run.folder / writing.DATA).exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    done = ran(tmp_path)
    assert done.exit_code != 0 and "is no run folder" in str(done.exception)


def test_a_comparison_is_refused_beside_runs(run, tmp_path):
    compared = compared_in(tmp_path / "compared")
    done = ran(run.folder.path, compared.folder.path)
    assert done.exit_code != 0 and "which has a report of its own" in str(done.exception)


def test_a_run_on_an_object_store_has_a_report_there():
    run = made_run("memory://reported/run", pool_of(40))
    writing.report_at_end(run)
    assert json.loads((run.folder / writing.DATA).read_bytes())["sections"][0]["key"] == "verdict"
    assert (run.folder / writing.PAGE).exists()


class Heard(Console):
    def __init__(self):
        super().__init__("quiet")
        self.notes, self.warnings = [], []

    def note(self, text):
        self.notes.append(text)

    def warn(self, text):
        self.warnings.append(text)


def test_a_report_that_fails_never_fails_the_run(run, monkeypatch):
    def fails(*_):
        raise ValueError("What do you know of the silver?")

    monkeypatch.setattr(writing, "write_report", fails)
    again = Run(run.folder, Heard())
    writing.report_at_end(again)
    (told,) = again.console.warnings
    assert "silver" not in told and "ValueError" in told and f"raysift report {run.name}" in told
    writing.report_at_end(again, wanted=False)
    assert len(again.console.warnings) == 1


def compared_in(folder):
    """A finished comparison of a method that is better than uniform, and one that takes the longest rows."""
    run, drawn = Run(str(folder), Console("quiet")), np.random.default_rng(0)
    run.claim()
    ids = np.arange(1000)
    measured = {}
    for name, score in ((BASE, 0.3), (UNIFORM, 0.4), (LONGEST, 0.05), ("mine", 0.8), ("long too", 0.28)):
        own = measured[name] = Measured()
        taken = {LONGEST: ids[:50], "long too": ids[:48]}
        for seed in range(3 if name != BASE else 1):
            own.scores[seed] = [(drawn.random(200) < score).astype(float).tolist()]
            if name != BASE:
                own.rows[seed] = taken.get(name, drawn.permutation(ids)[:50])
                own.ranked[seed] = Ranked(ids, -ids.astype(float) if name in taken else drawn.random(1000))
        own.selection_seconds, own.training_seconds = [1.0], [2.0]
    (run.folder / SETTINGS).write("pool: [p.jsonl]\nbudget: '50'\ncompare: {seeds: 3}\n")
    write_result(run.folder, standings(measured, 1000, 0.01) | {"claims": [], "seconds": {"selections": 3.0}})
    return run


def test_a_comparison_is_told_with_verdicts_matrices_and_costs(tmp_path):
    run = compared_in(tmp_path / "compared")
    plain = sound(report_of(open_run(str(run.folder))))
    keys = ["verdict", "alerts", "standings", "matrices", "cost_curve", "cost", "reproduction"]
    assert plain["kind"] == "comparison" and [section["key"] for section in plain["sections"]] == keys
    assert plain["sections"][0]["lead"].startswith("Better than uniform: mine. mine scores best")
    found = json.loads((run.folder / "compare.json").read_bytes())
    assert blocks(plain, "standings", "bars")[0]["series"][0]["values"] == [line["score"] for line in found["methods"]]
    assert blocks(plain, "matrices", "heatmap")[0]["values"] == found["overlap"]["values"]
    dots = [series for series in blocks(plain, "cost_curve", "lines")[0]["series"] if series["dots"]]
    assert {series["name"] for series in dots} == {line["name"] for line in found["methods"]}
    told = [item["text"] for block in blocks(plain, "alerts", "alerts") for item in block["items"]]
    assert any("long too shares" in text for text in told)
    worse = [text for text in told if "training made the model worse" in text]
    assert len(worse) == 1 and worse[0].startswith(LONGEST), "a difference that the intervals do not show is no alert"
    assert "like_longest" in alerts(plain) and "few_seeds" not in alerts(plain)


def test_an_unfinished_comparison_says_how_to_go_on(tmp_path):
    run = Run(str(tmp_path / "run"), Console("quiet"))
    run.claim()
    (run.folder / SETTINGS).write("pool: [p.jsonl]\n")
    plain = sound(report_of(run))
    assert plain["sections"][0]["lead"] == "The comparison is not finished."
    assert blocks(plain, "verdict", "text")[0]["text"] == f"raysift compare {run.folder}/compare.yaml"


def test_a_run_of_a_comparison_shows_the_base_model_beside_it(tmp_path):
    compared_in(tmp_path / "compared")
    run = made_run(tmp_path / "compared" / "mine" / "seed-0", pool_of(40))
    table = blocks(sound(report_of(open_run(str(run.folder)))), "evaluation", "table")[0]
    assert [row[0] for row in table["rows"]][:2] == [BASE, UNIFORM] and "mine (this run)" in [
        row[0] for row in table["rows"]
    ]

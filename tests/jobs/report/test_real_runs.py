"""The report of a real run by gradient, with targets that cannot all be used and rows that are cut."""

import pyarrow.parquet as pq
import pytest
from sound_reports import alerts, blocks, rows, sound, stages
from typer.testing import CliRunner

from raysift.jobs.commands.cli import app
from raysift.jobs.report.record import report_of
from raysift.jobs.runs.run import open_run
from raysift.pool.id_text import id_text

pytestmark = pytest.mark.ray


def test_a_run_of_rose_is_told_from_its_rows_to_its_trainings(rose_run):
    run = open_run(rose_run)
    plain = sound(report_of(run))
    chosen = pq.read_table(f"{rose_run}/selection.parquet")
    assert [item["id"] for item in rows(plain, "chosen")] == [id_text(one) for one in chosen["id"].to_pylist()]
    assert stages(plain)["choose"]["kept"] == 12
    counts = run.manifest("gradients").counts
    assert stages(plain)["gradients"]["failed"] == counts["failed"] == 1
    assert rows(plain, "failed: gradients")[0]["verdict"].startswith("Not selected, for want of a score: gradients: ")
    assert alerts(plain)["failed_gradients"]["chip"] == "failed: gradients"
    assert "truncated_gradients" in alerts(plain) and rows(plain, "cut: gradients")
    assert blocks(plain, "training", "lines")[0]["series"][0]["name"] == "warmup"
    assert {row[0] for row in blocks(plain, "cost", "table")[0]["rows"]} == {one.stage for one in run.manifests()}
    assert "By skill" in {block["title"] for block in blocks(plain, "groups")}


def test_a_command_leaves_a_report_unless_told_not_to(rose_run):
    """Every stage is done, so the command only looks, and writes the report."""
    folder = open_run(rose_run).folder
    again = ["rose", "--config", f"{rose_run}/run.yaml", "--run", rose_run]
    for name in ("report.html", "report.json"):
        (folder / name).delete()  # that of the call that made the run
    for more, there in (["--no-report"], False), ([], True):
        done = CliRunner().invoke(app, [*again, *more])
        assert done.exit_code == 0, done.output
        assert (folder / "report.html").exists() == (folder / "report.json").exists() == there

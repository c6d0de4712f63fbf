"""Progress that a person can read: done of total, speed, time left; once a minute in a log, and never where nobody looks."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console as RichConsole

from raysift.actors.train_checkpoints import EpochRecord, loss_curve
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.progress import LOG_EVERY_S, Bar, clock_time
from raysift.jobs.runs.run import Run, StageResult
from raysift.jobs.runs.stage_names import WHAT_IT_DOES

JOBS = Path(__file__).resolve().parents[3] / "jobs"


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def bar(place="log", total=None, said=None):
    clock = Clock()
    made = Bar(place, "3/8 gradients", total, "rows", lambda told, words: (said or []).append(words), clock=clock)
    return made, clock


def test_speed_counts_from_the_first_finished_row_and_gives_the_time_left():
    shown, clock = bar(total=1000)
    clock.now += 500  # a model loads
    shown.update(100)
    clock.now += 10
    shown.update(300)
    assert shown.figures() == {"done": 300, "total": 1000, "unit": "rows", "per_second": 20.0, "seconds_left": 35.0}
    assert shown.text() == "300 of 1,000 rows, 20/s, 0:35 left"


def test_a_log_gets_one_line_a_minute_however_often_progress_is_reported():
    said = ["start"]
    shown, clock = bar(total=600, said=said)
    for second in range(1, 601):
        clock.now += 1
        shown.update(second, words="loss 1.234")
    assert len(said) - 1 == 600 // LOG_EVERY_S
    assert said[-1] == "600 of 600 rows, 1/s, 0:00 left, loss 1.234"


def test_done_never_passes_the_total_when_rows_are_answered_twice():
    shown, _ = bar(total=10)
    shown.update(13)
    assert shown.done == 10


@pytest.mark.parametrize(("voice", "lines"), [("plain", 1), ("json", 1), ("quiet", 0)])
def test_each_voice_tells_progress_in_its_own_way(voice, lines, capsys):
    with Console(voice).progress("gradients", 10, "rows", "3/8") as shown:
        shown._logged -= LOG_EVERY_S
        shown.update(4)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == lines and all("gradients" in line and "4" in line and "3/8" in line for line in said)


def test_a_terminal_draws_a_bar_with_step_rows_and_loss(monkeypatch):
    console = Console("rich")
    console.err = RichConsole(file=io.StringIO(), force_terminal=True, width=100)
    with console.progress("warmup", 40, "steps", "5/8") as shown:
        shown.update(10, words="loss 1.420")
        shown._drawn.refresh()
    assert "5/8 warmup" in (text := console.err.file.getvalue()) and "10 of 40 steps" in text and "loss 1.420" in text


def test_times_are_written_as_people_do():
    assert [clock_time(seconds) for seconds in (5.6, 760, 11_100)] == ["0:06", "12:40", "3:05:00"]


def test_lines_of_a_run_count_its_stages_in_words_and_without_fingerprints(tmp_path, capsys):
    run = Run(tmp_path / "run", Console("plain"))
    run.plan("ingest", "lengths", "score", "choose")
    run.stage("lengths", {}, {}, lambda folder: StageResult(counts={"rows_in": 3, "bad_files": []}))
    started, finished = capsys.readouterr().err.splitlines()
    assert started.split() == ["2/4", "lengths", *WHAT_IT_DOES["lengths"].split()]
    assert finished.startswith("2/4 lengths") and "rows in 3" in finished
    assert run.manifest("lengths").fingerprint not in started + finished


def test_a_loss_curve_has_the_mean_between_marks():
    rest = {"mean_learning_rate": 1, "first_learning_rate": 1, "last_learning_rate": 1, "seconds": 1, "mean_loss": 1}
    rest |= {"loss_sum": 0.0, "label_tokens": 0}
    one = EpochRecord(epoch=1, step=2, marks=((1, 30.0, 10), (2, 40.0, 20)), **rest)
    two = EpochRecord(epoch=2, step=3, marks=((3, 5.0, 10),), **rest)
    assert loss_curve([one, two]) == [(1, 3.0), (2, 1.0), (3, 0.5)]


def test_every_stage_that_a_recipe_announces_is_told_in_words():
    named = set(re.findall(r'run\.stage\(\s*"(\w+)"', "".join(file.read_text() for file in JOBS.rglob("*.py"))))
    assert {"ingest", "targets", "order"} <= named <= WHAT_IT_DOES.keys()


def test_libraries_draw_no_bars_between_our_lines():
    code = "from raysift.jobs.runs.console import set_up_logging; set_up_logging('plain'); "
    code += "from raysift.actors.loaded import load; load('nano', device='cpu')"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_HUB_DISABLE")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")

"""What a call prints: a line a stage in a script, one output in a notebook, nothing foreign in either."""

import os
import subprocess
import sys
from types import SimpleNamespace

import IPython
import IPython.display
import pytest

from raysift.jobs.api import progress
from raysift.jobs.api.progress import NotebookConsole, ScriptConsole, console_for
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.run import Run, StageResult


def work(folder, console):
    run = Run(str(folder), console)
    run.plan("ingest", "choose")

    def body(place):
        with run.progress(10) as bar:
            for done in range(1, 11):
                bar.update(done, words="loss 2.5")
        run.record("round", "choose", performance=0.5)
        run.console.note("choose: give --target FILE <now>")
        return StageResult(counts={"kept": 1})

    for _ in range(2):
        run.stage("ingest", {}, {}, body)
        run.stage("choose", {}, {}, body)
    run.console.line("done", "Selection(...)")


def test_a_script_says_each_stage_once_and_notes_in_words_of_python(tmp_path, capsys):
    work(tmp_path / "run", ScriptConsole())
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert [line.split()[:2] for line in lines[::2]] == [
        ["1/2", "ingest"],
        ["2/2", "choose"],
        ["done", "Selection(...)"],
    ]
    assert [line.split(maxsplit=1)[1] for line in lines[1::2]] == ["choose: give target=... <now>"] * 2


class Output:
    """The output of a notebook's cell."""

    def __init__(self):
        self.displays, self.pages = 0, []

    def display(self, shown, display_id):
        self.displays += 1
        self.update(shown)
        return SimpleNamespace(update=self.update)

    def update(self, shown):
        self.pages.append((shown._repr_html_(), repr(shown)))


def test_a_notebook_has_one_output_that_changes(tmp_path, capsys, monkeypatch):
    output = Output()
    monkeypatch.setattr(IPython.display, "display", output.display)
    monkeypatch.setattr(progress, "DRAWN_EVERY_S", 0)
    work(tmp_path / "run", NotebookConsole())
    assert capsys.readouterr() == ("", "")
    assert output.displays == 1
    pages = [html for html, _ in output.pages]
    assert any("<progress" in page and "6 of 10 rows" in page and "loss 2.5" in page for page in pages)
    assert pages[-1].count("choose: give target=... &lt;now&gt;") == 2 and "<now>" not in pages[-1]
    assert "done Selection(...)" in pages[-1] and "<progress" not in pages[-1]
    assert output.pages[-1][1].splitlines()[0] == "done Selection(...)"


def test_the_voice_is_that_of_the_place_or_the_named_one(monkeypatch):
    assert type(console_for(None)) is ScriptConsole
    assert type(console_for("json")) is Console and console_for("json").voice == "json"
    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(kernel=object()))
    assert type(console_for(None)) is NotebookConsole
    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace())  # IPython in a terminal
    assert type(console_for(None)) is ScriptConsole


ALONE = """
import os, signal, sys
import raysift
environment, handlers = dict(os.environ), [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
rows = [{"instruction": f"{n}?", "output": str(n)} for n in range(20)]
selection = raysift.uniform(rows, budget="5", run=sys.argv[1])
assert handlers == [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
changed = {name for name in environment.keys() | os.environ.keys() if environment.get(name) != os.environ.get(name)}
print(selection.ids, sorted(changed))
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_script_without_ray_starts_one_that_is_not_heard(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env=environment | {"RAY_ADDRESS": "local"},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    heads = [line.split()[0] for line in done.stderr.splitlines()]
    assert heads == ["1/3", "starting", "2/3", "3/3", "note", "done"], done.stderr
    assert "RAY_BACKEND_LOG_LEVEL" not in done.stdout

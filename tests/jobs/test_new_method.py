"""A method is one place: docs/adding-a-selector.md, followed word by word, adds two, and everything else follows from that."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "adding-a-selector.md").read_text()
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.S | re.M)
FILE = re.compile(r"# ([\w/]+\.py)(?:: (.*))?\n")
USE = """
import json, sys
import raysift

chosen = raysift.shortest("pool.jsonl", run="runs/python", budget="5", preset="reversed")
print(json.dumps({"ids": chosen.ids, "known": sorted({"shortest", "surprising"} & set(raysift.__all__))}))
"""


class Edit(NamedTuple):
    """A file that the page writes, or adds to."""

    file: str
    where: str
    text: str


EDITS = [
    Edit(found[1], found[2] or "", text[found.end() :])
    for kind, text in BLOCK.findall(PAGE)
    if kind == "python" and (found := FILE.match(text))
]
COMMANDS = [
    shlex.split(line)
    for kind, text in BLOCK.findall(PAGE)
    if kind == "bash"
    for line in text.splitlines()
    if line.strip()
]


def applied(edit: Edit, before: str) -> str:
    """The file's text as the block's first line asks for it."""
    if not edit.where:
        assert not before, f"{edit.file} exists"
        return edit.text
    if edit.where == "at the end":
        return f"{before}\n\n{edit.text}"
    [name] = re.fullmatch(r"lines below (\w+)", edit.where).groups()
    [line] = re.findall(rf"^ *{name}(?: = |: ).*\n", before, re.M)
    return before.replace(line, line + edit.text)


@pytest.fixture(scope="module")
def grown(tmp_path_factory) -> Path:
    """A folder on the import path with the whole package, its files linked, and the page's edits."""
    place = tmp_path_factory.mktemp("grown")
    for layer, package in (("engine", "raysift"), ("actors", "raysift/actors"), ("jobs", "raysift/jobs")):
        for file in (ROOT / layer).rglob("*"):
            if file.is_file() and file.suffix != ".pyc":
                link = place / package / file.relative_to(ROOT / layer)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file)
    for edit in EDITS:
        top, _, rest = edit.file.partition("/")
        file = place / {"engine": "raysift", "tests": "tests"}.get(top, f"raysift/{top}") / rest
        before = file.read_text() if file.exists() else ""
        file.unlink(missing_ok=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(applied(edit, before))
    return place


def run_python(grown: Path, *arguments: object, at: Path | None = None) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(grown), "COLUMNS": "200"}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=at or grown, env=environment, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def touched_by(task: str) -> set[str]:
    """The files and folders that CONTRIBUTING's table names for a task."""
    row = re.search(rf"^\| {re.escape(task)} \|(.*)\|$", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    assert row, task
    return {name for name in re.findall(r"`([\w/.]+)`", row[1]) if "/" in name}


def test_the_page_touches_what_the_contributing_table_names():
    simple = touched_by("add a method that judges rows by numbers that exist")
    whole = touched_by("add a method that needs a model")
    assert "engine/methods/" in simple < whole
    assert all(any(edit.file.startswith(place) for place in whole) for edit in EDITS)
    assert all(any(edit.file.startswith(place) for edit in EDITS) for place in whole)


def test_the_command_line_shows_a_new_method_and_takes_its_settings(grown):
    shown = run_python(grown, "-m", "raysift.jobs", "--help").stdout
    assert re.search(r"shortest +Select the rows with the shortest responses\.", shown)
    assert re.search(r"surprising +Select the rows whose answers the model expects least\.", shown)
    code = "from raysift.config import load_config; import sys; print(load_config(None, None, sys.argv[1:]))"
    assert "shortest=ShortestConfig(sign=1.0)" in run_python(grown, "-c", code, "shortest.preset=reversed").stdout


def test_type_checkers_are_told_of_the_new_methods(grown):
    told = set(re.findall(r"^    (\w+): \w+Method$", (grown / "raysift" / "__init__.py").read_text(), re.M))
    code = "from raysift.methods import METHODS, function_name; print(*map(function_name, METHODS))"
    assert told == set(run_python(grown, "-c", code).stdout.split())


def test_what_the_page_adds_is_written_as_the_project_writes(grown):
    written = [grown / "raysift" / edit.file.removeprefix("engine/") for edit in EDITS if not edit.where]
    named = [str(file) for file in written if file.exists()]
    options = ["--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    for checks in (["check", *options], ["format", "--check", *options]):
        run_python(grown, "-m", "ruff", *checks, *named)


def test_the_pages_own_test_passes(grown):
    [file] = [edit.file for edit in EDITS if edit.file.startswith("tests/")]
    run_python(grown, "-m", "pytest", "-q", "-p", "no:cacheprovider", grown / file)


@pytest.mark.ray
@pytest.mark.slow
def test_the_pages_commands_select_as_the_scores_and_the_recipe_say(grown, tmp_path):
    said = {}
    for program, *arguments in COMMANDS:
        assert program == "raysift", program
        said[arguments[0]] = run_python(grown, "-m", "raysift.jobs", *arguments, at=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "pool.jsonl").read_text().splitlines()]
    lengths = (sum(len(m["content"]) for m in row["messages"] if m["role"] == "assistant") for row in rows)
    found = {name.name: pq.read_table(name / "selection.parquet") for name in (tmp_path / "runs").iterdir()}
    assert [-score for score in found["shortest"]["score"].to_pylist()] == sorted(lengths)[:5]
    assert found["reversed"]["id"].to_pylist() == found["longest"]["id"].to_pylist()
    losses = found["surprising"]["score"].to_pylist()
    assert losses == sorted(losses, reverse=True) and losses[-1] > 0
    assert "expects each row's answer" in said["surprising"].stderr

    answer = json.loads(run_python(grown, "-c", USE, at=tmp_path).stdout.splitlines()[-1])
    assert answer == {"ids": found["longest"]["id"].to_pylist(), "known": ["shortest", "surprising"]}

"""A method is one place: two that exist nowhere else are added by CONTRIBUTING's table, and everything follows from that."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from raysift.nano.world import generate_pool

ROOT = Path(__file__).resolve().parents[2]
SHORTEST = '''
"""Shortest: the rows with the shortest responses."""

import pyarrow.compute as pc

from raysift.methods.base import MethodConfig, Selector
from raysift.records import RESPONSE_CHARS


class ShortestConfig(MethodConfig):
    sign: float = -1.0
    """What the length is multiplied with."""


class Shortest(Selector):
    """The score is minus the length of the response."""

    name = "shortest"
    summary = "Select the rows with the shortest responses."
    Config = ShortestConfig
    presets = {"reversed": {"sign": 1.0}}
    reads = (RESPONSE_CHARS,)

    def score(self, rows):
        return pc.multiply(pc.cast(rows[RESPONSE_CHARS], "float64"), self.config.sign)
'''
OWN_RECIPE = '''
"""Lambda: a method whose name is a keyword, and whose recipe is its own."""

import pyarrow as pa

from raysift.methods.base import Selector


class Lambda(Selector):
    """The score is the id."""

    name = "lambda"
    summary = "Select the rows with the largest ids."

    def score(self, rows):
        return pa.array(rows["id"].to_numpy().astype("float64"))
'''
RECIPE = '''

from raysift.methods.own_recipe import Lambda


@select_rows.register
def largest_ids(selector: Lambda, run: Run, config: CommonConfig, pool: Pool) -> Manifest:
    """A recipe that says so."""
    run.console.note(f"recipe of {selector.name}")
    rows = stages.ingest(run, config, pool.dataset, pool.name)
    scores = stages.score(run, config, selector, rows, None)
    return stages.choose(run, config, selector, rows, scores, None)
'''
USE = """
import json, sys
import raysift
from raysift.jobs.on_ray.session import own_session

pool, run, other = sys.argv[1:]
with own_session():
    chars = raysift.shortest(pool, run=run, budget="5", shortest={"preset": "reversed"}).table()
    ids = raysift.lambda_(pool, run=other, budget="5", reuse=[run], log="plain").table()
known = {"shortest", "lambda_"} <= set(raysift.__all__)
print(json.dumps({"chars": chars["score"].to_pylist(), "ids": ids["id"].to_pylist(), "known": known}))
"""


def touched_by(task: str) -> set[str]:
    """The files and folders that CONTRIBUTING's table names for a task."""
    row = re.search(rf"^\| {re.escape(task)} \|(.*)\|$", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    assert row, task
    return {name for name in re.findall(r"`([\w/.]+)`", row[1]) if "/" in name}


@pytest.fixture(scope="module")
def grown(tmp_path_factory) -> Path:
    """A folder on the import path with the whole package, its files linked, and the two methods beside them."""
    place = tmp_path_factory.mktemp("grown")
    added = {
        "engine/methods/": {"shortest.py": SHORTEST, "own_recipe.py": OWN_RECIPE},
        "jobs/recipes.py": {"": (ROOT / "jobs/recipes.py").read_text() + RECIPE},
    }
    assert touched_by("add a method that judges rows by numbers that exist") == {"engine/methods/"}
    assert touched_by("add a method that needs a model") == {*added, "actors/"}
    for layer, package in (("engine", "raysift"), ("actors", "raysift/actors"), ("jobs", "raysift/jobs")):
        for file in (ROOT / layer).rglob("*"):
            if file.is_file() and file.suffix != ".pyc":
                link = place / package / file.relative_to(ROOT / layer)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file)
    for where, files in added.items():
        for name, text in files.items():
            file = place / where.replace("engine/", "raysift/").replace("jobs/", "raysift/jobs/") / name
            file.unlink(missing_ok=True)
            file.write_text(text)
    return place


def run_python(grown: Path, *arguments: object) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(grown), "COLUMNS": "200"}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=grown, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    return done


def test_the_command_line_shows_a_new_method_and_takes_its_settings(grown):
    shown = run_python(grown, "-m", "raysift.jobs", "--help").stdout
    assert re.search(r"shortest +Select the rows with the shortest responses\.", shown)
    assert re.search(r"lambda +Select the rows with the largest ids\.", shown)
    code = "from raysift.config import load_config; import sys; print(load_config(None, None, sys.argv[1:]))"
    assert "shortest=ShortestConfig(sign=1.0)" in run_python(grown, "-c", code, "shortest.preset=reversed").stdout


@pytest.mark.ray
@pytest.mark.slow
def test_a_new_method_selects_as_its_score_and_its_recipe_say(grown, tmp_path):
    rows = list(generate_pool(60, 0))
    pool = tmp_path / "pool.jsonl"
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run_python(grown, "-c", USE, pool, tmp_path / "run", tmp_path / "other")
    found = json.loads(done.stdout.splitlines()[-1])
    lengths = (sum(len(m["content"]) for m in row["messages"] if m["role"] == "assistant") for row in rows)
    assert found["chars"] == sorted(lengths, reverse=True)[:5]
    assert found["ids"] == sorted(found["ids"], reverse=True)
    assert "recipe of lambda" in done.stderr
    assert found["known"]

"""Every command in README and docs is one that exists, with options and settings that exist, and runs as it stands there.

A page runs as a whole, in a folder that holds a small nano world under the names that the pages use. Pages with trainings are slow.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import orjson
import pyarrow.parquet as pq
import pytest
import yaml

from raysift.config import load_config, make_config
from raysift.evaluation.examples import read_examples
from raysift.jobs.commands import cli
from raysift.jobs.commands.options import is_override, spread_multiple
from raysift.jobs.commands.settings import settings_of
from raysift.methods import METHODS
from raysift.nano.world import examples, preference_pairs, write_pool
from raysift.pool.checks import IngestConfig
from raysift.pool.files import find_files
from raysift.pool.pairs import read_pairs
from raysift.pool.survey import survey_pool
from raysift.settings.budget import parse_budget

ROOT = Path(__file__).resolve().parents[1]
WALKED = "docs/adding-a-selector.md"
"""Followed by tests/jobs/test_new_method.py, in a copy of the package."""
WRITTEN = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
PAGES = [name for name in WRITTEN if name != WALKED]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.S | re.M)
KINDS = {"bash", "console", "python", "yaml", "json", ""}
LINES_OF_README, LINES_OF_A_PAGE = 120, 90

POOL_ROWS, SKILL = 160, ["last_letters"]
TRAINING = {"less", "rose", "mods", "raise", "search", "compare", "check", "finetune"}
SLOW = TRAINING | {"quality", "coverage", "rds", "evaluate", "win-rate"}
"""They train, or load models into actors."""
DEMO = "demo"
"""Not run here: it takes minutes by itself."""
SMALL = {
    "raise": ["raise.learning.rounds=2"],
    "search": ["search.trials=2", "search.rounds=2"],
    "compare": ["--seeds", "1"],
    "check": ["check.quantiles=3", "check.seeds=1"],
}
TAKES_ROWS = re.compile(r"--rows \d+")


class Page(NamedTuple):
    name: str
    text: str
    blocks: list[tuple[str, str]]
    """Kind and text."""

    def commands(self) -> list[list[str]]:
        return [words for kind, text in self.blocks if kind in ("bash", "console") for words in lines_of(kind, text)]

    def files(self) -> dict[str, str]:
        """Settings files: a YAML block that begins with a comment is the file of that name."""
        found = {}
        for kind, text in self.blocks:
            if kind == "yaml" and (name := re.match(r"# (\S+\.yaml)\n", text)):
                found[name[1]] = text
        return found

    def runs(self) -> bool:
        return bool({"bash", "console", "python"} & {kind for kind, _ in self.blocks})

    def is_slow(self) -> bool:
        typed = any(words[:1] == ["raysift"] and words[1] in SLOW for words in self.commands())
        return typed or any(kind == "python" and "finetune" in text for kind, text in self.blocks)


def page(name: str) -> Page:
    text = (ROOT / name).read_text()
    return Page(name, text, BLOCK.findall(text))


def lines_of(kind: str, text: str) -> list[list[str]]:
    """The words of each command up to a pipe; of a transcript only what follows a `$`."""
    joined = text.replace("\\\n", " ").splitlines()
    typed = [line[2:] for line in joined if line.startswith("$ ")] if kind == "console" else joined
    return [words for line in typed if (words := shlex.split(line.partition(" | ")[0], comments=True))]


ALL = [page(name) for name in PAGES]
LINES = [(one.name, words) for one in ALL for words in one.commands()]


# What can be told without running anything


@pytest.mark.parametrize("one", ALL, ids=PAGES)
def test_blocks_are_of_a_kind_that_is_tested(one):
    assert {kind for kind, _ in one.blocks} <= KINDS


@pytest.mark.parametrize(("name", "words"), LINES, ids=[f"{name}: {' '.join(words)}"[:80] for name, words in LINES])
def test_a_command_names_what_exists(name, words):
    if words[0] == "raysift":
        check_command(words[1:])
    else:
        assert words[:2] == ["pip", "install"], f"{name}: no test knows how to run '{words[0]}'"
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert all(extra in known for extra in re.findall(r"\[(\w+)\]", " ".join(words)))


def check_command(arguments: list[str]) -> None:
    """Parses as the command line would, and reads the settings; nothing runs."""
    import typer

    command: Any = typer.main.get_command(cli.app)
    name, rest = "raysift", spread_multiple(arguments)
    while hasattr(command, "commands"):
        name, *rest = rest
        assert name in command.commands, f"there is no command '{name}'"
        command = command.commands[name]
    given = command.make_context(name, list(rest)).params
    parse_budget(given.get("budget") or "5%")
    settings = [argument for argument in rest if is_override(argument)]
    load_config(None, {"method": name} if name in METHODS else {}, settings)
    if name == "submit":
        check_command(rest[rest.index("--") + 1 :])


@pytest.mark.parametrize("one", ALL, ids=PAGES)
def test_settings_and_records_can_be_read(one, tmp_path):
    for kind, text in one.blocks:
        if kind == "yaml":
            make_config(yaml.safe_load(text))
        if kind == "json":
            for number, line in enumerate(text.splitlines()):
                record = tmp_path / f"{number}.jsonl"
                record.write_text(line + "\n")
                if "chosen" in json.loads(line):
                    assert len(list(read_pairs(str(record)))) == 1
                else:
                    assert len(read_examples(str(record))) == 1


KNOWN = {setting.key for method in METHODS for setting in settings_of(method)}
KNOWN |= {f"{method}.preset" for method in METHODS if METHODS[method].presets} | {"train.recipe"}
SECTIONS = {key.partition(".")[0] for key in KNOWN if "." in key}
KEY = re.compile(rf"`((?:{'|'.join(sorted(SECTIONS))})(?:\.[a-z_0-9]+)+)(?:=[^`]*)?`")
OTHERS = ["CONTRIBUTING.md", "SECURITY.md", "cluster/README.md", WALKED]
NAMED = sorted({(one, key) for one in [*PAGES, *OTHERS] for key in KEY.findall((ROOT / one).read_text())})


@pytest.mark.parametrize(("name", "key"), NAMED, ids=[": ".join(pair) for pair in NAMED])
def test_a_setting_that_a_page_names_exists(name, key):
    """Or is a section; below `columns` any name may stand."""
    assert any(one == key or one.startswith(f"{key}.") or key.startswith(f"{one}.") for one in KNOWN)


RECORDS = re.findall(r"^\| ([\w -]+) \| `(\{.*?\})`", (ROOT / "docs" / "guides" / "pools.md").read_text(), re.M)


@pytest.mark.parametrize(("layout", "record"), RECORDS, ids=[layout for layout, _ in RECORDS])
def test_a_record_of_each_layout_is_read_as_a_row(layout, record, tmp_path):
    file = tmp_path / "pool.jsonl"
    file.write_text(record.replace("...", layout) + "\n")
    assert survey_pool(find_files([str(file)]), IngestConfig()).kept == 1


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= LINES_OF_README


@pytest.mark.parametrize("name", [name for name in WRITTEN if "/reference/" not in name])
def test_a_page_is_short(name):
    """Besides its code."""
    prose = BLOCK.sub("", (ROOT / name).read_text())
    assert len([line for line in prose.splitlines() if line]) <= LINES_OF_A_PAGE


PARTS = ["Six settings", "What comes out", "Weaknesses", "Departures from the paper"]


@pytest.mark.parametrize("name", [*sorted(METHODS), "yardsticks"])
def test_every_method_has_its_page(name):
    """With the smallest command, one for a cluster, six settings and its faults; the yardsticks share one."""
    own = ROOT / "docs" / "methods" / f"{name}.md"
    if not own.exists():
        return check_yardstick(name)
    text = own.read_text()
    assert f"\nraysift {'uniform' if name == 'yardsticks' else name} --pool" in text
    assert "\nraysift submit " in text
    parts = re.findall(r"^## (.*)", text, re.M)
    assert [part for part in PARTS[: 1 if name == "yardsticks" else None] if part not in parts] == []
    settings = text.partition("## Six settings")[2].partition("\n\nAll others")[0]
    assert len(re.findall(r"^\| `", settings, re.M)) == 6
    return None


def check_yardstick(name: str) -> None:
    assert f"\nraysift {name} --pool" in (ROOT / "docs" / "methods" / "yardsticks.md").read_text()


@pytest.fixture(scope="module")
def reference() -> Any:
    return load_script("reference")


def test_what_is_made_from_the_code_is_current(reference):
    """If not: `make docs`."""
    assert [name for name, text in reference.generated().items() if (ROOT / name).read_text() != text] == []


def test_the_reference_has_every_command_and_setting(reference):
    """And a list of pages that leaves none out."""
    import typer

    root: Any = typer.main.get_command(cli.app)
    assert set(re.findall(r"^### raysift ([\w-]+)", reference.cli(), re.M)) == set(root.commands)
    listed = set(re.findall(r"^\| `([\w.]+)` \|", reference.settings(), re.M)) | reference.SECTIONS.keys()
    assert [one.key for method in METHODS for one in settings_of(method) if not is_listed(one.key, listed)] == []
    others = set(WRITTEN[1:]) - {reference.INDEX}
    assert {f"docs/{name}" for name in re.findall(r"\]\(([\w/-]+\.md)\)", reference.index({}))} == others


def is_listed(key: str, listed: set[str]) -> bool:
    """Itself, or the section of trainings that it belongs to: `less.warmup.epochs` is listed as `train.epochs`."""
    return key in listed or (key.rpartition(".")[0] in listed and f"train.{key.rpartition('.')[2]}" in listed)


def test_the_demo_runs_elsewhere():
    assert f"part {DEMO}\n" in (ROOT / ".ci" / "run").read_text()


def load_script(name: str) -> Any:
    """A script of docs, as a module."""
    spec = importlib.util.spec_from_file_location(name.replace("/", "_"), ROOT / "docs" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The pages, as they stand


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the pages name."""
    monkeypatch.chdir(tmp_path)
    write_pool("pool.jsonl", POOL_ROWS, 0)
    records = {
        "target.jsonl": examples(12, 1, SKILL),
        "pairs.jsonl": preference_pairs(12, 1, SKILL),
        "test.jsonl": examples(16, 1, SKILL, "test"),
    }
    for name, lines in records.items():
        Path(name).write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    Path("table.csv").write_text("question,reply\nSay 1.,1\nSay 2.,2\n")
    return tmp_path


@pytest.fixture
def raysift(ray_local: None, world: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], None]:
    """Run a command in this process, which has the tests' Ray."""

    def run(arguments: list[str]) -> None:
        arguments = [first_row(arguments[1]) if word == "ID" else word for word in arguments]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["raysift", *adapted(arguments)])
            with pytest.raises(SystemExit) as stop:
                cli.main()
        assert stop.value.code == 0, " ".join(arguments)

    return run


def adapted(arguments: list[str]) -> list[str]:
    """The command for a small world and a busy machine; nothing that decides a result changes but numbers of rows and rounds."""
    name = arguments[0]
    if name == "submit":
        return ["submit", "--dry-run", *arguments[1:]]
    line = shlex.join(arguments)
    arguments = line if arguments[0] == "check" else TAKES_ROWS.sub(f"--rows {POOL_ROWS}", line)
    quick = ["resources.train=0"] if name in METHODS or name in TRAINING else []
    return [*shlex.split(arguments), *quick, *SMALL.get(name, [])]


def first_row(run: str) -> str:
    return str(pq.read_table(f"{run}/selection.parquet")["id"][0].as_py())


def slow_if(slow: bool) -> list[Any]:
    return [pytest.mark.slow, pytest.mark.timeout(1800)] if slow else []


RUNNABLE = [pytest.param(one, id=one.name, marks=slow_if(one.is_slow())) for one in ALL if one.runs()]


@pytest.mark.ray
@pytest.mark.parametrize("one", RUNNABLE)
def test_a_page_runs_from_top_to_bottom(one, raysift):
    for name, text in one.files().items():
        Path(name).write_text(text)
    names: dict[str, Any] = {}
    for kind, text in one.blocks:
        for words in lines_of(kind, text) if kind in ("bash", "console") else []:
            if words[0] == "raysift" and words[1] != DEMO:
                raysift(words[1:])
        if kind == "python":
            exec(compile(text, one.name, "exec"), names)


# The figure and the table


@pytest.fixture(scope="module")
def demo() -> Any:
    return load_script("figures/demo")


@pytest.fixture
def found(demo) -> dict[str, Any]:
    return json.loads((ROOT / "docs" / "figures" / "demo.json").read_text())


def test_figure_and_table_show_the_result_beside_them(demo, found):
    readme = (ROOT / "README.md").read_text()
    assert (ROOT / "docs" / "figures" / "demo.svg").read_text() == demo.figure(found)
    assert demo.filled(readme, found) == readme


def test_the_figure_has_a_dot_for_each_method_within_its_axis(demo, found):
    """Also for a method of one seed, which has no interval."""
    found["methods"].append(found["methods"][0] | {"name": "a <method>", "low": None, "high": None, "score": 1.0})
    root = ElementTree.fromstring(demo.figure(found))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    dots = [one for one in root.iter() if one.tag.endswith("circle")]
    assert len(dots) == len(found["methods"])
    scores = [line["score"] for line in found["methods"]]
    places = [float(dot.attrib["cx"]) for dot in dots]
    assert sorted(range(len(scores)), key=scores.__getitem__) == sorted(range(len(places)), key=places.__getitem__)
    assert all(0 < place < width for place in places)
    assert all(0 < float(dot.attrib["cy"]) < height for dot in dots)
    assert "a <method>" in [one.text for one in root.iter() if one.tag.endswith("text")]


def test_a_finished_demo_fills_figure_table_and_json(demo, found, tmp_path, monkeypatch):
    """With keys beside those that are shown, as a comparison has them."""
    whole = found | {"pool_rows": 1, "methods": [line | {"verdict": "?", "tokens": 1} for line in found["methods"]]}
    whole["methods"][1] |= {"score": 0.5, "selection_seconds": 12.3}
    (tmp_path / "compare.json").write_text(json.dumps(whole))
    (tmp_path / "README.md").write_text("before\n<!-- demo -->\nold\n<!-- /demo -->\nafter\n")
    monkeypatch.setattr(demo, "HERE", tmp_path)
    monkeypatch.setattr(demo, "README", tmp_path / "README.md")
    demo.main(str(tmp_path))
    assert json.loads((tmp_path / "demo.json").read_text()) == demo.kept(whole)
    assert (tmp_path / "demo.svg").read_text() == demo.figure(whole)
    lines = (tmp_path / "README.md").read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after") and "old" not in lines
    assert any(
        line.startswith(f"| uniform | {whole['methods'][1]['rows']:,.0f} | 0.500 ") and "12 s" in line for line in lines
    )

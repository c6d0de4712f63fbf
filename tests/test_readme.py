"""README and docs tell the truth: the tree names what is there and nothing else, and links, files, tests and commands exist."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
OTHERS = ["CONTRIBUTING.md", "SECURITY.md", "llms.txt", "cluster/README.md", "tests/benchmarks/RESULTS.md"]
PAGES = [ROOT / "README.md", *DOCS, *(ROOT / name for name in OTHERS)]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
LINK = re.compile(r"\]\((?!https?:)([\w/.-]*)(?:#([\w-]+))?\)")
CODE = re.compile(r"^```.*?^```", re.S | re.M)
FOLDERS = ("engine", "actors", "jobs")
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def named_in_the_tree() -> dict[str, set[str]]:
    """Files and folders that the tree names, by top folder: the words before the gap of several spaces."""
    block = re.search(r"## Files.*?```\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text(), re.S)
    assert block, "docs/architecture.md has no tree"
    named: dict[str, set[str]] = {}
    top = ""
    for line in block[1].splitlines():
        if not line.startswith(" "):
            top = line.split()[0].rstrip("/")
            named[top] = set()
        else:
            named[top].update(word.rstrip("/") for word in re.split(r"\s{2,}", line.strip())[0].split())
    return named


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_tree_names_all_files_and_nothing_else(folder):
    there = {path.name for path in (ROOT / folder).glob("*.py")} - {"__init__.py"}
    there |= {path.name for path in (ROOT / folder).iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert named_in_the_tree()[folder] == there


def test_top_folders_of_the_tree_exist():
    for folder in named_in_the_tree():
        assert (ROOT / folder).is_dir(), folder


def links(page: Path) -> list[tuple[Path, str]]:
    """Files of the project that a page links to, each with the anchor or an empty text."""
    return [
        ((page.parent / path if path else page).resolve(), anchor) for path, anchor in LINK.findall(page.read_text())
    ]


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings have on GitHub."""
    headings = re.findall(r"^#+ (.*)", CODE.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_to_files_and_headings(page):
    for place, anchor in links(page):
        assert place.exists() and place.is_relative_to(ROOT), place
        assert not anchor or anchor in anchors(place), f"{place}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_tests_that_a_page_names_exist(page):
    for path in re.findall(r"(?<!\.\./)tests/[\w/]+\.(?:py|md)", CODE.sub("", page.read_text())):
        assert (ROOT / path).exists(), path


def test_every_page_is_found_from_readme():
    found, left = set(), [ROOT / "README.md"]
    while left:
        page = left.pop()
        found.add(page)
        left += [place for place, _ in links(page) if place in PAGES and place not in found]
    assert [name for page, name in zip(PAGES, NAMES, strict=True) if page.suffix == ".md" and page not in found] == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_and_make_targets_exist(page):
    from raysift.jobs.commands.cli import app

    commands = {command.name or command.callback.__name__ for command in app.registered_commands} | {"nano"}
    text = page.read_text()
    for word in re.findall(r"`raysift ([\w-]+)", text):
        assert word in commands or word in ("METHOD", "COMMAND") or word.startswith("-"), word
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    for word in re.findall(r"`make ([a-z-]+)`", text):
        assert word in targets, word


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.stem)
def test_an_issue_form_is_one(file):
    """What GitHub asks of a form: name, description, and elements of known kinds, each input with a label and an id of its own."""
    form = yaml.safe_load(file.read_text())
    assert {"name", "description", "body"} <= form.keys()
    inputs = [one for one in form["body"] if one["type"] != "markdown"]
    assert inputs and {one["type"] for one in inputs} <= {"textarea", "input", "dropdown", "checkboxes"}
    assert all(one["attributes"]["label"] for one in inputs)
    assert len({one["id"] for one in inputs}) == len(inputs)


def test_there_is_a_form_for_each_kind_of_issue():
    assert [file.stem for file in TEMPLATES] == ["bug", "method", "question"]
    assert "raysift doctor" in (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text()

"""README and docs tell the truth: the tree names what is there and nothing else, and files, tests and commands in them exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LAYOUT = (ROOT / "docs" / "layout.md").read_text()
FOLDERS = ("engine", "actors", "jobs")


def named_in_the_tree() -> dict[str, set[str]]:
    """Files and folders that the tree names, by top folder: the words before the gap of several spaces."""
    block = re.search(r"# Layout.*?```\n(.*?)```", LAYOUT, re.S)
    assert block, "docs/layout.md has no tree"
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_tests_that_a_page_points_to_exist(page):
    text = page.read_text()
    for path in re.findall(r"\]\((?!http)([\w/.-]+)\)", text):
        assert (page.parent / path).exists(), path
    for path in re.findall(r"(?<!\.\./)tests/[\w/]+\.(?:py|md)", text):
        assert (ROOT / path).exists(), path


def test_every_page_of_docs_is_named_in_readme():
    assert [page.name for page in PAGES[1:] if f"](docs/{page.name})" not in PAGES[0].read_text()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_make_targets_exist(page):
    from raysift.jobs.commands.cli import app

    commands = {command.name or command.callback.__name__ for command in app.registered_commands} | {"nano"}
    text = page.read_text()
    for word in re.findall(r"`raysift ([\w-]+)", text):
        assert word in commands or word == "METHOD", word
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    for word in re.findall(r"`make ([a-z-]+)`", text):
        assert word in targets, word

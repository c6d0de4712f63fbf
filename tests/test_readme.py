"""README tells the truth: its tree names what is there and nothing else, its commands and settings exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
FOLDERS = ("engine", "actors", "jobs")


def named_in_the_tree() -> dict[str, set[str]]:
    """Files and folders that the tree names, by top folder: the words before the gap of several spaces."""
    block = re.search(r"## Layout.*?```\n(.*?)```", README, re.S)
    assert block, "README has no layout tree"
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


def test_files_and_tests_that_readme_points_to_exist():
    for path in re.findall(r"tests/[\w/]+\.(?:py|md)|\]\((?!http)([\w/.]+)\)", README):
        if path:
            assert (ROOT / path).exists(), path
    for path in re.findall(r"tests/[\w/]+\.(?:py|md)", README):
        assert (ROOT / path).exists(), path


def test_commands_and_make_targets_exist():
    from raysift.jobs.commands.cli import app

    commands = {command.name or command.callback.__name__ for command in app.registered_commands} | {"nano"}
    for word in re.findall(r"^raysift ([\w-]+)", README, re.M) + re.findall(r"`raysift ([\w-]+)", README):
        assert word in commands or word == "METHOD", word
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    for word in re.findall(r"make ([a-z-]+)", README):
        assert word in targets, word

"""Messages to Python users name arguments, whatever the message and whoever wrote it for the command line."""

import ast
from pathlib import Path

import pytest

from raysift.errors import ConfigError
from raysift.jobs.api.words import in_python, python_words

ROOT = Path(__file__).resolve().parents[3]
OF_THE_COMMAND_LINE = ("commands", "nano_build", "api")


def texts_of(node):
    """The texts in an expression, with `x` in place of what is filled in."""
    found = ""
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            found += part.value
    return found


def messages():
    """What is raised or noted anywhere but by commands themselves."""
    for layer in ("engine", "actors", "jobs"):
        for file in sorted((ROOT / layer).rglob("*.py")):
            if layer == "jobs" and file.relative_to(ROOT / layer).parts[0] in OF_THE_COMMAND_LINE:
                continue
            for node in ast.walk(ast.parse(file.read_text())):
                is_note = isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("note", "warn")
                if isinstance(node, ast.Raise) or is_note:
                    yield texts_of(node)


OPTIONS = sorted({text for text in messages() if "--" in text})


def test_there_are_messages_with_options():
    assert len(OPTIONS) > 10


@pytest.mark.parametrize("text", OPTIONS)
def test_no_message_says_an_option_to_python(text):
    assert "--" not in in_python(text)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Name the examples: --test FILE...", "Name the examples: test=..."),
        ("(--run, or --fresh for the next free one)", "(run=, or fresh=True for the next free one)"),
        ("With --reuse runs/less its stages", "With reuse=runs/less its stages"),
        ("Add --train.", "Add train_on_selection=True."),
        ("--against-model or --against-answers.", "against_model= or against_answers=."),
        ("a pool, and --target: examples", "a pool, and target: examples"),
        ("`raysift look --pool x` shows", "`raysift look --pool x` shows"),
    ],
)
def test_an_option_becomes_an_argument_and_a_command_stays_one(said, told):
    assert in_python(said) == told


def test_errors_keep_their_kind_and_place():
    with pytest.raises(ConfigError, match=r"^Name it: target=\.\.\.$") as caught, python_words():
        raise ConfigError("Name it: --target FILE")
    assert caught.traceback[-1].name == "test_errors_keep_their_kind_and_place"
    with pytest.raises(ValueError, match=r"^--x$"), python_words():
        raise ValueError("--x")

"""Messages for Python users: what the command line calls `--target FILE...` is the argument `target=`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from raysift.errors import RaysiftError

ARGUMENTS = {
    "--train": "train_on_selection=True",
    "--fresh": "fresh=True",
    "--on-bad-file": "ingest={'on_bad_file': 'quarantine'}",
    "--assert": "claim",
    "--to": "to",
}
"""Options whose argument in Python is not simply their name."""
_COMMAND = re.compile(r"`raysift [^`]*`")  # a command to type stays one
_OPTION = re.compile(r"--[a-z][a-z-]*(?: FILE\.\.\.| FILE\b)?(?: (?=[./~\w]*/))?(?=(:?))")


def in_python(text: str) -> str:
    """The message with arguments in place of options; commands in backticks stay as they are."""
    parts, start = [], 0
    for command in [*_COMMAND.finditer(text), None]:
        end = command.start() if command else len(text)
        parts += [_OPTION.sub(_argument, text[start:end]), command.group() if command else ""]
        start = command.end() if command else end
    return "".join(parts)


def _argument(found: re.Match[str]) -> str:
    option = found.group()
    name = option.split()[0]
    if name in ARGUMENTS:
        return ARGUMENTS[name]
    ends = "=..." if "FILE" in option else "" if found[1] else "="  # `--target: examples` defines it
    return name.removeprefix("--").replace("-", "_") + ends


@contextlib.contextmanager
def python_words() -> Iterator[None]:
    """Errors of raysift that leave the block name arguments, not options."""
    try:
        yield
    except RaysiftError as error:
        if len(error.args) == 1 and isinstance(error.args[0], str):
            error.args = (in_python(error.args[0]),)
        raise

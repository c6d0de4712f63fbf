"""Run the commands of README's transcripts and write what they print below them: `python docs/transcripts.py`.

Each block runs in an empty folder. What goes to standard error, such as progress, is not shown, and long output is cut.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCK = re.compile(r"(```console\n)(.*?)(```)", re.S)
LINES, COLUMNS = 18, 100


def commands(block: str) -> list[str]:
    """The commands of a transcript."""
    return [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")]


def transcript(block: str) -> str:
    """The same commands, each with what it prints now."""
    environment = os.environ | {"COLUMNS": str(COLUMNS), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    parts = []
    with tempfile.TemporaryDirectory() as folder:
        for command in commands(block):
            done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{command}: exit code {done.returncode}\n{done.stderr}")
            lines = [line.rstrip() for line in done.stdout.splitlines()]
            parts += [f"$ {command}", *lines[:LINES], *(["..."] if len(lines) > LINES else [])]
    return "".join(part + "\n" for part in parts)


if __name__ == "__main__":
    README.write_text(BLOCK.sub(lambda found: found[1] + transcript(found[2]) + found[3], README.read_text()))

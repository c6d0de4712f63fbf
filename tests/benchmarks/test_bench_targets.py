"""The bench of targets, on the nano world: the whole path from pools to the table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).with_name("bench_targets.py")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_targets_of_the_nano_world_are_told_apart(tmp_path):
    command = [sys.executable, str(BENCH), "--nano", "--variants", "--out", str(tmp_path)]
    ran = subprocess.run(command, env={**os.environ, "RAY_ADDRESS": "local"}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert "halves" in ran.stderr + ran.stdout
    lines = {(line["target"], line["variant"]): line for line in json.loads((tmp_path / "lines.json").read_text())}
    served = [line for line in lines.values() if line["lift"] is not None and line["nature"] != "shuffled"]
    assert len(served) == 8 and len(lines) == 14
    assert all(lines[f"less_{skill}", ""]["lift"] > 2 for skill in ("sort_words", "last_letters"))
    assert lines["rose_shuffled", ""]["agreement"]["level"] == "noise"
    assert all(line["null"] for line in lines.values())

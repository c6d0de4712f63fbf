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
    targets = ["less_last_letters", "rose_last_letters", "rose_shuffled"]
    options = ["--nano", "--variants", "--draws", "10", "--targets", *targets, "--out", str(tmp_path)]
    command = [sys.executable, str(BENCH), *options]
    ran = subprocess.run(command, env={**os.environ, "RAY_ADDRESS": "local"}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert "halves" in ran.stderr + ran.stdout and "called noise" in ran.stderr + ran.stdout
    lines = {(line["target"], line["variant"]): line for line in json.loads((tmp_path / "lines.json").read_text())}
    assert len(lines) == 7
    assert lines["less_last_letters", ""]["lift"] > 2
    assert lines["rose_shuffled", ""]["agreement"]["level"] == "noise"
    assert all(line["null"] for line in lines.values())
    draws = lines["rose_last_letters", ""]["draws"]
    assert draws["shuffled"]["draws"] == draws["parts"]["draws"] == 10
    assert draws["shuffled"]["before"] >= 9
    assert (
        "shuffled" not in lines["less_last_letters", ""]["draws"] and "draws" not in lines["rose_shuffled", "anchored"]
    )

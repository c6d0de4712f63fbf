"""The script for GPU machines, run small on the CPU in a process where neither Ray nor this project is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("run.py")
ABSENT = ("ray", "faiss", "rich", "typer", "pytest")


@pytest.mark.slow
def test_every_check_runs_from_a_plain_checkout(tmp_path):
    for name in ABSENT:
        (tmp_path / f"{name}.py").write_text("raise ImportError('it is not on a GPU machine')\n")
    out = tmp_path / "RESULTS-gpu.json"
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    found = json.loads(out.read_text())
    assert found["machine"]["device"] == "cpu"
    skipped = {name for name, check in found["checks"].items() if check["status"] == "skipped"}
    assert skipped == {"out_of_memory", "answers_out_of_memory", "widest_gradients"}, "these alone need a card"
    deviations = [check["deviations"] for check in found["checks"].values()]
    assert sum(map(len, deviations)) >= 20


@pytest.mark.slow
def test_a_failed_check_and_one_that_takes_too_long_do_not_stop_the_others(tmp_path):
    """`centers` finds a product that gives other numbers, `steps` never comes back, `reward` passes."""
    broken = tmp_path / "broken.py"
    broken.write_text(
        "import sys, time\n"
        f"sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        "import run\n"
        "def wrong(lab):\n    lab.same('numbers', [1.0, 2.0], [1.0, 1.0], 1e-3)\n"
        "def stuck(lab):\n    time.sleep(600)\n"
        "def crash(lab):\n    import os; os._exit(3)\n"
        "run.CHECKS = {'prepare': ('broken', 'crash', 30), 'centers': ('broken', 'wrong', 30),\n"
        "              'steps': ('broken', 'stuck', 2), 'reward': ('answering', 'reward', 60)}\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "if __name__ == '__main__':\n    sys.exit(run.main(['--device', 'cpu', '--out', sys.argv[1]]))\n"
    )
    out = tmp_path / "out.json"
    done = subprocess.run([sys.executable, str(broken), str(out)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 1, done.stdout + done.stderr
    checks = json.loads(out.read_text())["checks"]
    found = {name: (check["status"], check["messages"][:1]) for name, check in checks.items()}
    assert found.pop("reward")[0] == "passed"
    assert [status for status, _ in found.values()] == ["failed"] * 3
    assert "died without a word" in found["prepare"][1][0]
    assert "deviates by 0.707, at most 0.001" in found["centers"][1][0]
    assert "not done after 2 s" in found["steps"][1][0]

"""`raysift doctor`: what would stand in a run's way is a problem, and all else is told beside it."""

import re
import subprocess
import sys

import pytest

from raysift.jobs.commands.console import Console
from raysift.jobs.commands.doctor import checks, doctor, machine, memory_gib, packages
from raysift.settings.config import make_config


def config(**settings):
    return make_config({"method": "uniform", **settings})


@pytest.mark.ray
def test_a_sound_machine_has_no_problem(ray_local, tmp_path, capsys):
    assert doctor(config(run=str(tmp_path / "run")), Console("plain"))
    shown = capsys.readouterr().out
    assert "PROBLEM" not in shown and "number type" in shown and "transformers" in shown


@pytest.mark.slow
def test_it_starts_a_ray_of_its_own_where_there_is_none(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "raysift.jobs", "doctor"], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"starts; \d+ CPUs", done.stdout), done.stdout


@pytest.mark.ray
def test_what_would_stop_a_run_is_named(ray_local, tmp_path):
    (tmp_path / "file").write_text("")
    found = {f.what: f for f in checks(config(model=str(tmp_path / "none"), run=str(tmp_path / "file" / "run")))}
    assert not found["model"].well and str(tmp_path / "none") in found["model"].found
    assert not found["run folder"].well
    assert found["Ray"].well


def test_it_tells_of_the_machine_and_of_packages():
    told = {f.what for f in [*machine(config()), *packages()]}
    assert {"processor", "memory", "ray", "torch", "vllm"} <= told
    assert 0.1 < memory_gib() < 100_000

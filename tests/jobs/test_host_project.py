"""Inside a larger pipeline: a project with `jobs` and `engine` packages of its own, and a Ray that it has joined."""

import json
import subprocess
import sys

import pytest

from raysift.nano.world import WorldConfig, generate_pool

PIPELINE = """
import json, logging, os, signal, sys

import engine
import jobs.clean
import ray
import raysift

host = ray.init(log_to_driver=False, logging_level="ERROR")
context = ray.data.DataContext.get_current()
context.enable_progress_bars = False
context.max_errored_blocks = 7
before = context.copy()


def mine(number, frame):
    pass


signal.signal(signal.SIGTERM, mine)
environment = dict(os.environ)
loggers = [logging.getLogger(name) for name in ("ray.data", "ray.data._internal.progress", "ray.widgets.util")]
levels = [logger.level for logger in loggers]

rows = [json.loads(line) for line in open("pool.jsonl")]
dataset = ray.data.from_items(rows).filter(jobs.clean.keep)
print("BEFORE OURS", file=sys.stderr, flush=True)
raysift.longest("pool.jsonl", budget="10%", unit="chars")
print("AFTER OURS", file=sys.stderr, flush=True)
selection = raysift.uniform(dataset, budget="50%", seed=1)
chosen = selection.dataset()
after = ray.data.DataContext.get_current()
answer = {
    "ours": [engine.NAME, jobs.clean.NAME],
    "raysift": raysift.load_run.__module__,
    "pool": dataset.count(),
    "selected": len(selection),
    "dataset": chosen.count(),
    "ids_agree": sorted(selection.ids) == sorted(row["id"] for row in chosen.iter_rows()),
    "still_running": ray.is_initialized(),
    "same_session": ray.get_runtime_context().gcs_address == host.address_info["gcs_address"],
    "same_context": after is context,
    "same_environment": dict(os.environ) == environment,
    "same_levels": [logger.level for logger in loggers] == levels,
    "same_handlers": signal.getsignal(signal.SIGTERM) is mine,
    "changed": [name for name, value in vars(before).items() if vars(after).get(name) != value],
}
print("ANSWER", json.dumps(answer))
ray.shutdown()
"""


@pytest.fixture
def host_project(tmp_path):
    """Folders named as ours are, on the path before everything else, as in any project run from its top."""
    for folder, files in {
        "engine": {"__init__.py": "NAME = 'the host engine'\n"},
        "jobs": {"__init__.py": "", "clean.py": "NAME = 'the host job'\n\n\ndef keep(row):\n    return bool(row)\n"},
    }.items():
        (tmp_path / folder).mkdir()
        for name, text in files.items():
            (tmp_path / folder / name).write_text(text)
    (tmp_path / "pipeline.py").write_text(PIPELINE)
    with (tmp_path / "pool.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in generate_pool(60, 0, WorldConfig()))
    return tmp_path


@pytest.mark.ray
def test_a_host_with_its_own_jobs_and_engine_and_ray_keeps_all_three(host_project, joined):
    done = subprocess.run(
        [sys.executable, "pipeline.py"], cwd=host_project, env=joined, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-4000:]
    [line] = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    answer = json.loads(line.removeprefix("ANSWER "))
    assert answer["ours"] == ["the host engine", "the host job"]
    assert answer["raysift"] == "raysift.jobs.api.records"
    assert answer["pool"] == 60
    assert 20 <= answer["selected"] <= 30  # half of what is left when duplicates and empty rows are out
    assert answer["dataset"] == answer["selected"]
    assert answer["ids_agree"]
    assert answer["still_running"] and answer["same_session"]
    assert answer["same_context"] and answer["changed"] == []
    assert answer["same_environment"] and answer["same_handlers"] and answer["same_levels"]
    assert "Starting execution" not in done.stderr.split("BEFORE OURS")[1].split("AFTER OURS")[0]


def test_relative_names_of_the_host_are_found_first(host_project):
    """Both packages can be imported side by side, in either order."""
    for order in ("import raysift.jobs.commands.cli, jobs.clean", "import jobs.clean, raysift.jobs.commands.cli"):
        code = f"{order}; assert jobs.clean.__file__.startswith({str(host_project)!r})"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=host_project, timeout=60)

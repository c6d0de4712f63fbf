"""Trainings of RAISE on two logical GPUs: who gets which, and that more than there are do not wait for ever."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Run by itself, because a process can be part of one cluster only. No process loads its model before it trains.
DRIVER = """
import json, sys
from pathlib import Path
from types import SimpleNamespace

import ray

sys.path.insert(0, sys.argv[2])
from forked_workers import forked_workers

from raysift.errors import StageError
from raysift.jobs.cluster.starting import start_ray
from raysift.jobs.policy.episodes import RayFleet
from raysift.settings.resources import Resources

setup, told = SimpleNamespace(rows=None), {}
common = {"gpus_per_worker": 1.0, "cpus_per_worker": 0.5, "wait_s": 60}


def gpus(_):
    return ray.get_gpu_ids()


with forked_workers(Path(sys.argv[1])):
    start_ray(num_cpus=4, num_gpus=2, object_store_memory=150 * 2**20)
    for name, episodes in (("a training on both", 1), ("two trainings", 2)):
        fleet = RayFleet(setup, Resources(**common), episodes)
        told[name] = [ray.get([actor.__ray_call__.remote(gpus) for actor in group]) for group in fleet.groups]
        fleet.close()
    try:
        RayFleet(setup, Resources(train=4, **common | {"wait_s": 1}), 1)
    except StageError as error:
        told["refused"] = str(error)
    ray.shutdown()
print(json.dumps(told))
"""


@pytest.mark.ray
@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_trainings_share_the_gpus_and_more_processes_than_gpus_end_with_a_message(tmp_path):
    command = [sys.executable, "-c", DRIVER, str(tmp_path), str(Path(__file__).parents[1])]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads(done.stdout.splitlines()[-1])
    (pair,) = told["a training on both"]
    assert sorted(pair) == [["0"], ["1"]] or sorted(pair) == [[0], [1]]
    one, other = told["two trainings"]
    assert len(one) == len(other) == 1 and one != other
    assert "no room after 1 s (resources.wait_s)" in told["refused"]
    assert "ask for 0.5 CPUs and 1 GPUs each, the cluster has 4 CPUs and 2 GPUs" in told["refused"]
    assert "Lower resources.train" in told["refused"]

"""RAISE on a Ray cluster of two local nodes: trainings and validation on both, and the selection of one node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import orjson
import pyarrow.parquet as pq
import pytest

from raysift.nano.world import examples, generate_pool

# Run by itself, because a process can be part of one cluster only.
DRIVER = """
import contextlib, json, sys

import ray
from ray.cluster_utils import Cluster

import raysift
from raysift.jobs.policy import episodes
from raysift.jobs.policy import stages as raise_policy

folder, nodes = sys.argv[1], int(sys.argv[2])
where = []


def node_of(_):
    return ray.get_runtime_context().get_node_id()


class Watched(episodes.RayFleet):
    def run_round(self, policy, number, draws):
        found = super().run_round(policy, number, draws)
        validators = [actor for actor in self.actors if actor not in self.runners]
        where.append([ray.get([actor.__ray_call__.remote(node_of) for actor in kind]) for kind in (self.runners, validators)])
        return found


episodes.RayFleet = Watched

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4 // nodes, "object_store_memory": 150 * 2**20})
for _ in range(nodes - 1):
    cluster.add_node(num_cpus=4 // nodes, object_store_memory=150 * 2**20)
cluster.wait_for_nodes()
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
assert len([node for node in ray.nodes() if node["Alive"]]) == nodes
try:
    raysift.select(
        "raise",
        f"{folder}/pool.jsonl",
        run=f"{folder}/run-{nodes}",
        target=[f"{folder}/target.jsonl"],
        train={"recipe": "nano", "batch_size": 4},
        resources={"workers": 2, "validation_workers": 2, "cpus_per_worker": 0.5, "threads": 1},
        **{
            "raise": {
                "features": {"semantic_dimensions": 8},
                "policy": {"hidden": [8]},
                "learning": {"rounds": 2, "episodes": 2},
                "episode": {"steps": 3},
            }
        },
    )
finally:
    ray.shutdown()
    cluster.shutdown()
print(json.dumps(where))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A pool, and a target of several batches, so that there is something to deal."""
    folder = tmp_path_factory.mktemp("raise")
    target = examples(400, 0, ["add", "reverse", "subtract", "replace"])
    for name, rows in (("pool", generate_pool(100, 4)), ("target", target)):
        (folder / f"{name}.jsonl").write_bytes(b"\n".join(orjson.dumps(row) for row in rows))
    return folder


def run_on(world, nodes):
    """Node ids of the trainings and of the validators in each round."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-c", DRIVER, str(world), str(nodes)]
    done = subprocess.run(command, env=environment, cwd=world, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1100)
def test_two_nodes_share_trainings_and_validation_and_select_what_one_selects(world):
    rounds = run_on(world, 2)
    assert len(rounds) == 2
    for trainings, validators in rounds:
        assert len(trainings) == len(validators) == 2
        assert len(set(trainings)) == 2, "the two trainings of a round run on different nodes"
        assert len(set(validators)) == 2, "and so do the two validators"
    alone = run_on(world, 1)
    assert len({node for kinds in alone for nodes in kinds for node in nodes}) == 1
    one, two = (pq.read_table(world / f"run-{nodes}" / "selection.parquet") for nodes in (1, 2))
    assert one.equals(two)
    logs = [sorted((world / f"run-{nodes}").glob("learn/*/rounds/*/policy.safetensors")) for nodes in (1, 2)]
    assert [path.read_bytes() for path in logs[0]] == [path.read_bytes() for path in logs[1]]
    assert len(logs[0]) == 2

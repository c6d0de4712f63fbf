"""RAISE on a Ray cluster of two local nodes: trainings of two processes on both, and the selection of one node."""

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

# Run by itself, because a process can be part of one cluster only: on the head alone, then on the head and a second node.
DRIVER = """
import json, sys
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

sys.path.insert(0, sys.argv[2])
from forked_workers import forked_workers

import raysift
from raysift.jobs.policy import episodes

folder = sys.argv[1]
where = {"one": [], "two": []}


def node_of(_):
    return ray.get_runtime_context().get_node_id()


def select(name):
    class Watched(fleet):
        def run_round(self, policy, number, draws, folder):
            found = super().run_round(policy, number, draws, folder)
            where[name].append([ray.get([actor.__ray_call__.remote(node_of) for actor in group]) for group in self.groups])
            return found

    episodes.RayFleet = Watched
    assert len([node for node in ray.nodes() if node["Alive"]]) == ["one", "two"].index(name) + 1
    raysift.select(
        "raise",
        f"{folder}/pool.jsonl",
        run=f"{folder}/{name}",
        target=[f"{folder}/target.jsonl"],
        train={"recipe": "nano", "batch_size": 4},
        resources={"workers": 4, "train": 2, "cpus_per_worker": 0.9, "threads": 1},
        **{
            "raise": {
                "features": {"semantic_dimensions": 8},
                "policy": {"hidden": [8]},
                "learning": {"rounds": 2, "episodes": 2},
                "episode": {"steps": 3},
            }
        },
    )


fleet = episodes.RayFleet
node = {"num_cpus": 2, "object_store_memory": 150 * 2**20}
with forked_workers(Path(folder)):
    cluster = Cluster(initialize_head=True, head_node_args=node)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        select("one")
        cluster.add_node(**node)
        cluster.wait_for_nodes()
        select("two")
    finally:
        ray.shutdown()
        cluster.shutdown()
print(json.dumps(where))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A pool, and a target of several batches, so that there is something to share."""
    folder = tmp_path_factory.mktemp("raise")
    target = examples(400, 0, ["add", "reverse", "subtract", "replace"])
    for name, rows in (("pool", generate_pool(100, 4)), ("target", target)):
        (folder / f"{name}.jsonl").write_bytes(b"\n".join(orjson.dumps(row) for row in rows))
    return folder


@pytest.mark.ray
@pytest.mark.cluster
@pytest.mark.timeout(1100)
def test_two_nodes_share_trainings_and_select_what_one_selects(world):
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-c", DRIVER, str(world), str(Path(__file__).parents[1])]
    done = subprocess.run(command, env=environment, cwd=world, capture_output=True, text=True, timeout=1000)
    assert done.returncode == 0, done.stderr[-4000:]
    rounds = json.loads(done.stdout.splitlines()[-1])
    assert len(rounds["one"]) == len(rounds["two"]) == 2
    assert len({node for groups in rounds["one"] for nodes in groups for node in nodes}) == 1
    assert [len(groups) for groups in rounds["one"]] == [1, 1], "two processes of 0.9 CPUs fit on a node"
    for groups in rounds["two"]:
        assert len(groups) == 2 and all(len(nodes) == 2 for nodes in groups)
        assert len({node for nodes in groups for node in nodes}) == 2, "the trainings of a round use both nodes"
    one, two = (pq.read_table(world / name / "selection.parquet") for name in ("one", "two"))
    assert one.equals(two)
    logs = [sorted((world / name).glob("learn/*/rounds/*/policy.safetensors")) for name in ("one", "two")]
    assert [path.read_bytes() for path in logs[0]] == [path.read_bytes() for path in logs[1]]
    assert len(logs[0]) == 2

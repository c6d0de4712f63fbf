"""Stages on clusters that grow: they wait for what was promised, say so, and end with a sentence if it never comes."""

import json
import subprocess
import sys
import textwrap

import pytest

from raysift.errors import StageError
from raysift.jobs.cluster import machines as cluster
from raysift.jobs.cluster.machines import (
    first_workers,
    of_role,
    pool_size,
    present_workers,
    room_for_one,
    wait_for_room,
)
from raysift.settings.cluster import Cluster, Machine
from raysift.settings.resources import Resources

HEAD = Machine(0, 0, 2**34)
WORKER = Machine(16, 4, 2**36)
REAL = "some/model"


@pytest.fixture
def grows(monkeypatch):
    """A cluster that is another one at each look, and whose clock runs fast; returns the list of looks to come."""
    looks, time = [], [0.0]

    def look(resources=None):
        found = looks.pop(0) if len(looks) > 1 else looks[0]
        gpus = found.most_gpus if resources is None or resources.gpus is None else resources.gpus
        return Cluster(found.machines, found.most_cpus, gpus)

    def sleep(seconds):
        time[0] += 30 * seconds

    monkeypatch.setattr(cluster, "read_cluster", look)
    monkeypatch.setattr(cluster.time, "sleep", sleep)
    monkeypatch.setattr(cluster.time, "time", lambda: time[0])
    return looks


@pytest.fixture
def console():
    """Where a wait is told, and what was."""
    said = []
    return said.append, said


def test_a_stage_waits_for_the_machine_that_was_promised_and_says_so_once_a_minute(grows, console):
    promised = Cluster((HEAD, Machine(8, 0)), 8, 8)
    grows[:] = [promised] * 12 + [Cluster((HEAD, Machine(8, 0), WORKER), 24, 8)]
    own = Resources().of("gradients", promised)
    wait_for_room("gradients", own, console[0])
    assert 2 <= len(console[1]) <= 4
    assert console[1][0].startswith("gradients: waiting for a machine with 1 CPUs and 1 GPUs since ")
    assert "the cluster has 8 CPUs and 0 GPUs, and may get 8 GPUs" in console[1][0]


def test_a_machine_that_never_joins_ends_the_stage_in_one_sentence(grows, console):
    promised = Cluster((Machine(8, 0),), 8, 8)
    grows[:] = [promised]
    with pytest.raises(
        StageError, match=r"train: waited \d+ s for a machine .* Raise resources\.wait_s .* resources\.gpus=0"
    ):
        wait_for_room("train", Resources(wait_s=100).of("train", promised), console[0])


def test_what_nothing_promises_is_refused_at_once(grows, console):
    grows[:] = [Cluster((Machine(8, 0),), 8, 0)]
    own = of_role(Resources(gpus_per_worker=1), "gradients", REAL)
    with pytest.raises(StageError, match=r"asks for 1 GPU, the cluster has 0\..* resources\.gpus to the number"):
        wait_for_room("gradients", own, console[0])
    with pytest.raises(StageError, match=r"device is 'cuda', and a worker \(gradients\) is granted no GPU"):
        of_role(Resources(device="cuda"), "gradients", REAL)
    assert console[1] == []


def test_pools_begin_with_all_that_find_a_gpu_and_grow_to_all_that_may(grows):
    grows[:] = [Cluster((Machine(16, 4), Machine(16, 4), HEAD), 128, 16)]
    own = of_role(Resources(), "gradients", REAL)
    assert (first_workers(own), present_workers(own), pool_size(own)) == (8, 8, 16)
    shared = of_role(Resources(score={"gpus": 0.25}), "score", REAL)
    assert (first_workers(shared), pool_size(shared)) == (32, 64)
    large = of_role(Resources(gpus_per_worker=3), "gradients", REAL)
    assert (first_workers(large), pool_size(large)) == (2, 5), "a worker's GPUs are those of one machine"
    on_cpus = of_role(Resources(), "tokenise", REAL)
    assert (first_workers(on_cpus), pool_size(on_cpus)) == (1, 128)


def test_a_training_begins_with_the_gpus_there_are(grows):
    grows[:] = [Cluster((Machine(16, 4), HEAD), 16, 8)]
    own = of_role(Resources(), "train", REAL)
    assert (own.workers, present_workers(own)) == (8, 4)


@pytest.mark.ray
def test_room_that_others_hold_is_waited_for_with_a_bound(ray_local, console):
    """Ray alone would never start the task, and never say so."""
    tell, said = console
    asked = Resources(worker_gib=10**6, wait_s=2).of("gradients", Cluster((Machine(2, 0),), 2))
    with (
        pytest.raises(
            StageError, match=r"targets: no room for a worker of .* after 2 s; other work holds the machines"
        ),
        room_for_one("targets", asked, tell),
    ):
        pytest.fail("there is no machine of a million GiB")
    assert said[0].startswith("targets: waiting for ")
    import ray

    sound = Resources(cpus_per_worker=0.5).of("gradients", Cluster((Machine(2, 0),), 2))
    for _ in range(3):  # the room is given back each time
        with room_for_one("targets", sound, tell) as placed:
            assert ray.get(ray.remote(**placed)(lambda: 7).remote()) == 7
    assert len(said) == 1


@pytest.mark.slow
def test_a_node_that_joins_late_is_used():
    """Real Ray: the first node has no GPU; the stage says what it waits for, and its answers come from the GPU's node."""
    script = """
        import json
        import pyarrow as pa, pyarrow.parquet as pq, ray, tempfile
        from ray.cluster_utils import Cluster
        from raysift.actors.contract import RowActor
        from raysift.config import make_config
        from raysift.jobs.cluster.machines import for_role, wait_for_room
        from raysift.jobs.on_ray.raydata import map_rows
        from raysift.storage import open_location

        class Where(RowActor):
            inputs, outputs = ("text",), pa.schema([("gpus", pa.list_(pa.string()))])

            def answer(self, rows):
                return [{"gpus": [str(gpu) for gpu in ray.get_gpu_ids()]} for _ in rows]

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 0, "include_dashboard": False})
        ray.init(address=cluster.address, log_to_driver=False)
        folder = open_location(tempfile.mkdtemp())
        pq.write_table(pa.table({"id": [1, 2, 3], "text": ["a", "b", "c"]}), (folder / "rows.parquet").path)
        config = make_config({"model": "some/model", "resources": {"gpus": 2, "wait_s": 120}})
        own, said = for_role(config, "gradients").resources, []

        def brings_a_node(text):
            said.append(text)
            cluster.add_node(num_cpus=2, num_gpus=2)

        wait_for_room("gradients", own, brings_a_node)
        answers = map_rows([folder / "rows.parquet"], Where, {}, folder / "out", own)
        rows = pa.concat_tables([pq.read_table(file.path) for file in answers]).to_pylist()
        print(json.dumps([len(rows), {len(row["gpus"]) for row in rows} == {1}, len(said), said[0][:45]]))
        ray.shutdown()
        cluster.shutdown()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == [3, True, 1, "gradients: waiting for a machine with 1 CPUs "], done.stderr

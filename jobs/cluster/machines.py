"""What the cluster has and may still get, and what a stage's workers get of it; waits for machines that are still to join."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from raysift.config import CommonConfig
from raysift.errors import StageError
from raysift.nano import is_nano
from raysift.settings.cluster import Cluster, Machine
from raysift.settings.hardware import local_gpus
from raysift.settings.resources import Resources

log = logging.getLogger(__name__)

Config = TypeVar("Config", bound=CommonConfig)

BLOCKS_PER_WORKER = 4
FILTER_CPUS = 1.0  # reserved by Ray's checkpoint filter
IO_CPUS = 0.25  # reserved by each of our readers and writers
LOOK_EVERY_S, TELL_EVERY_S = 1.0, 60.0
HELD_S = 10.0  # until a wait for what others hold is told
CARD_S = 120.0  # until the memory of a GPU is given up on


def read_cluster(resources: Resources | None = None) -> Cluster:
    """The cluster as Ray sees it now, or this machine without Ray; `resources` may promise GPUs that are not there yet."""
    if not _connected():
        alone = Machine(float(os.cpu_count() or 1), local_gpus())
        return Cluster((alone,), alone.cpus, alone.gpus)
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    machines = tuple(
        Machine(node.get("CPU", 0.0), node.get("GPU", 0.0), int(node.get("memory", 0)))
        for node in nodes
        if node.get("CPU") or node.get("GPU")
    )
    here, limits = Cluster(machines), _autoscaler_limits()
    cpus, gpus = (max(now, limits.get(kind, 0.0)) for now, kind in ((here.cpus, "CPU"), (here.gpus, "GPU")))
    if resources and resources.gpus is not None:
        gpus = float(resources.gpus)
    return Cluster(machines, cpus, gpus)


def _autoscaler_limits() -> dict[str, float]:
    """What the autoscaler may bring the cluster to; nothing without one. Ray has no public call for it."""
    with contextlib.suppress(Exception):
        from ray._private.state import state

        return dict(state.get_max_resources_from_cluster_config() or {})
    return {}


def gpus_in_reach() -> float:
    """GPUs that workers of this process will find: those of the cluster that it belongs to or will join, or of this machine."""
    address = os.environ.get("RAY_ADDRESS", "local")
    if address == "local" and not _connected():
        return local_gpus()
    from raysift.jobs.cluster.session import start_session

    start_session()
    return read_cluster().most_gpus


def _connected() -> bool:
    import sys

    ray: Any = sys.modules.get("ray")
    return bool(ray and ray.is_initialized())


def for_role(config: Config, role: str, model: str | None = None) -> Config:
    """The settings with the resources of a role, for the run's model or another one, on the cluster as it is now."""
    return config.model_copy(update={"resources": of_role(config.resources, role, model or config.model)})


def of_role(resources: Resources, role: str, model: str) -> Resources:
    """The resources of a role for workers that load this model."""
    found = resources.of(role, read_cluster(resources.asked), is_nano(model))
    if found.on_gpu and not found.gpus_per_worker:
        raise StageError(
            f"resources: device is '{found.device}', and a worker ({role}) is granted no GPU: the cluster has none. Set "
            "resources.device=auto, or resources.gpus to the number of GPUs that will join."
        )
    return found


def on_gpu(config: CommonConfig, model: str, role: str = "score") -> bool:
    """Whether workers of a role compute on GPUs with this model; may be asked before Ray has started."""
    cluster = read_cluster(config.resources) if _connected() else Cluster(most_gpus=gpus_in_reach())
    return config.resources.of(role, cluster, is_nano(model)).on_gpu


def cluster_cpus() -> float:
    """CPUs of the whole cluster, with those that may still join."""
    return read_cluster().most_cpus or 1.0


def pool_size(resources: Resources) -> int:
    """Maximum actors of a stage: `workers` if set, but no more than fit on the GPUs or CPUs there are or may be."""
    cluster = read_cluster(resources.asked)
    if resources.gpus_per_worker:
        room = int(cluster.most_gpus / resources.gpus_per_worker + 1e-6)
        if room < 1:
            raise StageError(
                f"resources: a worker asks for {resources.gpus_per_worker:g} GPU, the cluster has {cluster.most_gpus:g}. Set "
                "resources.gpus_per_worker=0 to run on CPUs, or resources.gpus to the number of GPUs that will join."
            )
    else:
        room = max(1, int(cluster.most_cpus / resources.cpus))
    return min(resources.workers or room, room)


def present_workers(resources: Resources) -> int:
    """Workers that find their GPUs now; machines that join later make room for more."""
    if not resources.gpus_per_worker:
        return pool_size(resources)
    here = sum(int(machine.gpus / resources.gpus_per_worker + 1e-6) for machine in read_cluster().machines)
    return max(1, min(pool_size(resources), here))


def first_workers(resources: Resources) -> int:
    """Actors to start at once: all that find a GPU now, since each takes long to load and leaves the CPUs to readers."""
    return present_workers(resources) if resources.gpus_per_worker else 1


def actor_cpus(resources: Resources) -> float:
    """CPUs an actor reserves: `cpus_per_worker`, or its share of what filter, reader and writer leave, if less."""
    left = cluster_cpus() - FILTER_CPUS - 2 * IO_CPUS
    return min(resources.cpus, max(0.01, round(left / pool_size(resources), 2)))


def spread(resources: Resources, count: int) -> Resources:
    """Return resources with smaller blocks for small test sets, so that every worker gets some."""
    share = -(-count // (BLOCKS_PER_WORKER * pool_size(resources)))
    return resources.model_copy(update={"block_rows": min(resources.block_rows, max(resources.batch_rows, share))})


def wait_for_room(stage: str, resources: Resources, tell: Callable[[str], None]) -> None:
    """Wait until one worker of the stage fits on a machine, and say what for; raise after `wait_s`, or if none may join."""
    cpus, gpus = min(1.0, resources.cpus), resources.gpus_per_worker or 0.0
    want = f"a machine with {cpus:g} CPUs and {gpus:g} GPUs"
    began, told = time.time(), float("-inf")
    while not (cluster := read_cluster(resources.asked)).holds(cpus, gpus):
        pool_size(resources)  # refuses what cannot come
        have = (
            f"the cluster has {cluster.cpus:g} CPUs and {cluster.gpus:g} GPUs, and may get {cluster.most_gpus:g} GPUs"
        )
        waited = time.time() - began
        if waited > resources.wait_s:
            raise StageError(
                f"{stage}: waited {waited:.0f} s for {want}; {have} by resources.gpus or its autoscaler. See `ray status`. Raise "
                "resources.wait_s if machines take longer to start, or set resources.gpus=0 to run on CPUs. The same command "
                "continues."
            )
        if waited - told > TELL_EVERY_S:
            told, since = waited, time.strftime("%H:%M:%S", time.localtime(began))
            tell(f"{stage}: waiting for {want} since {since}, at most {resources.wait_s} s (resources.wait_s); {have}")
            _ask_autoscaler({"CPU": cpus, "GPU": gpus})
        time.sleep(LOOK_EVERY_S)


@contextlib.contextmanager
def room_for_one(stage: str, resources: Resources, tell: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Options of a task that runs alone, in room that is kept for it: others may hold what the cluster has, and Ray itself would
    wait without an end."""
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    gpus, memory = resources.gpus_per_worker or 0.0, resources.memory or 0
    asked = {"CPU": min(cluster_cpus(), resources.cpus), "GPU": gpus, "memory": memory}
    bundle = {kind: amount for kind, amount in asked.items() if amount}
    room = placement_group([bundle])
    try:
        if not room.wait(max(1.0, min(HELD_S, resources.wait_s))):
            want = f"{asked['CPU']:g} CPUs, {gpus:g} GPUs and {memory / 2**30:.1f} GiB"
            tell(f"{stage}: waiting for {want}, which others hold, at most {resources.wait_s} s (resources.wait_s)")
            if not room.wait(max(1.0, resources.wait_s - HELD_S)):
                raise StageError(
                    f"{stage}: no room for a worker of {want} after {resources.wait_s} s; other work holds the machines. Start "
                    "again when it is done, or raise resources.wait_s. The same command continues."
                )
        strategy = PlacementGroupSchedulingStrategy(room, placement_group_bundle_index=0)
        yield {
            "num_cpus": asked["CPU"],
            "num_gpus": gpus or None,
            "memory": memory or None,
            "scheduling_strategy": strategy,
        }
    finally:
        remove_placement_group(room)


def _ask_autoscaler(asked: dict[str, float]) -> None:
    """Ask for one machine that holds a worker; without an autoscaler nothing happens."""
    with contextlib.suppress(Exception):
        from ray.autoscaler.sdk import request_resources

        request_resources(bundles=[{kind: amount for kind, amount in asked.items() if amount}])


@functools.cache
def card_bytes(gpus: float) -> int | None:
    """Memory of the GPU that a worker with so many of them is granted; None if torch sees none there, or none is free."""
    import ray

    asked = ray.remote(num_cpus=0.01, num_gpus=gpus, max_retries=2)(_granted_bytes).remote()
    if not ray.wait([asked], timeout=CARD_S)[0]:  # others hold all GPUs
        ray.cancel(asked)
        return None
    found: int | None = ray.get(asked)
    return found


def _granted_bytes() -> int | None:
    import torch

    if not torch.cuda.is_available():
        return None
    return int(
        sum(torch.cuda.get_device_properties(number).total_memory for number in range(torch.cuda.device_count()))
    )

"""Runs methods on a Ray cluster of a given shape, and writes which device each worker was granted; a process of its own.

    python shaped_run.py FOLDER SHAPE METHOD ...

The GPUs are logical: Ray grants them and sets CUDA_VISIBLE_DEVICES as for real ones, and models compute on the CPU. What
a worker was granted, it says itself: a hook that Ray runs in each new worker wraps the two places that every worker of
ours passes, answering rows and choosing a device.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

SHAPES: dict[str, list[dict[str, float]]] = {
    # the head first
    "none": [{"num_cpus": 4}],
    "eight": [{"num_cpus": 12, "num_gpus": 8}],
    "two_nodes": [{"num_cpus": 0}, {"num_cpus": 6, "num_gpus": 4}, {"num_cpus": 6, "num_gpus": 4}],
    "late": [{"num_cpus": 6}],
    "one_of_many": [{"num_cpus": 64, "num_gpus": 1}],
}
LATE = {"num_cpus": 4, "num_gpus": 2}
TUNE = {"recipe": "nano", "epochs": 1, "batch_size": 8, "max_length": 128}
SECTIONS: dict[str, dict[str, Any]] = {
    "mods": {
        "budget": "8",
        "mods": {
            "seed_train": TUNE | {"template": "chatml"},
            "generation": {"max_new_tokens": 6, "backend": "transformers"},
        },
    },
    "rose": {"budget": "8", "target": ["pairs"], "rose": {"warmup_share": 0.3, "warmup": TUNE}},
    "less": {"budget": "8", "target": ["examples"], "less": {"warmup_share": 0.3, "warmup": TUNE}},
    "raise": {
        "target": ["examples"],
        "train": TUNE | {"batch_size": 4},
        "raise": {
            "features": {"semantic_dimensions": 8},
            "policy": {"hidden": [8], "critic_hidden": [8]},
            "learning": {"rounds": 1, "episodes": 2},
            "episode": {"steps": 2},
        },
    },
    "rds": {"budget": "8", "target": ["examples"]},
}
"""Short runs on the nano world in which every stage of a method is there."""


def main(folder: Path, shape: str, methods: list[str]) -> None:
    import ray
    from ray.cluster_utils import Cluster

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from forked_workers import forked_workers

    who = folder / shape / "who"
    who.mkdir(parents=True)
    seconds: dict[str, float] = {}
    with forked_workers(folder / shape):
        head, *others = [{"object_store_memory": 120 * 2**20} | node for node in SHAPES[shape]]
        cluster = Cluster(initialize_head=True, head_node_args=head | {"include_dashboard": False})
        for node in others:
            cluster.add_node(**node)
        cluster.wait_for_nodes()
        os.environ["RAYSIFT_TEST_WHO"] = str(who)
        variables = {"RAYSIFT_TEST_WHO": str(who)}
        ray.init(
            address=cluster.address,
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={"worker_process_setup_hook": watch, "env_vars": variables},
        )
        without_nccl()
        if shape == "late":
            joins_when_asked(cluster)
        try:
            for method in methods:
                began = time.monotonic()
                select(folder, shape, method, list(seconds))
                seconds[method] = round(time.monotonic() - began, 1)
        finally:
            ray.shutdown()
            cluster.shutdown()
    print(json.dumps(seconds))


def select(folder: Path, shape: str, method: str, before: list[str]) -> None:
    """One method; what an earlier one did with the same settings, such as the warm-up of LESS and ROSE, is taken over."""
    import raysift

    section = dict(SECTIONS[method])
    if "target" in section:
        section["target"] = [str(folder / f"{name}.jsonl") for name in section["target"]]
    resources: dict[str, Any] = {"block_rows": 8, "batch_rows": 8, "threads": 1, "no_progress_timeout_s": 120}
    if shape != "none":
        # Models that ship with raysift gain nothing from a GPU and get none by themselves.
        resources |= {"gpus_per_worker": 1, "wait_s": 60}
    if shape == "late":
        resources["gpus"] = 2
    pool = str(folder / "pool.jsonl")
    raysift.select(
        method,
        pool,
        run=str(folder / shape / method),
        log="json",
        reuse=[str(folder / shape / one) for one in before],
        resources=resources,
        **section,
    )


def without_nccl() -> None:
    """Let trainings that hold GPUs talk through gloo: NCCL needs cards, and these are logical."""
    import functools

    import ray.train.torch as trains

    given = trains.TorchConfig
    trains.TorchConfig = functools.wraps(given)(lambda backend=None, **more: given(backend="gloo", **more))


def joins_when_asked(cluster: Any) -> None:
    """Stand in for an autoscaler: a machine with GPUs joins when a stage asks for one, and not before."""
    from raysift.jobs.cluster import machines as ours

    asked: list[dict[str, float]] = []

    def ask(bundle: dict[str, float]) -> None:
        asked.append(bundle)
        if len(asked) == 1:
            cluster.add_node(object_store_memory=120 * 2**20, **LATE)

    ours._ask_autoscaler = ask  # type: ignore[assignment]


def watch() -> None:
    """In each new worker: write down the GPUs that Ray granted it, whenever it answers rows or chooses a device."""
    import os

    import ray
    from ray.air._internal.device_manager.nvidia_gpu import CUDATorchDeviceManager

    from raysift.actors import contract, language_model

    place, said = f"{os.environ['RAYSIFT_TEST_WHO']}/{os.getpid()}.jsonl", set()

    def note(kind: str, what: str, device: str | None = None) -> None:
        import json

        context = ray.get_runtime_context()
        found = {
            "kind": kind,
            "what": what,
            "device": device,
            "task": context.get_task_name(),
            "pid": os.getpid(),
            "node": context.get_node_id(),
            "gpus": [str(gpu) for gpu in ray.get_gpu_ids()],
            "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "asked": context.get_assigned_resources(),
        }
        line = json.dumps(found)
        if line not in said:
            said.add(line)
            with open(place, "a", encoding="utf-8") as file:
                file.write(line + "\n")

    def on_cpu(self: Any) -> list[Any]:
        import torch

        return [torch.device("cpu")]

    # Ray Train would set the CUDA device of a worker that was granted one.
    CUDATorchDeviceManager.get_devices = on_cpu  # type: ignore[method-assign]
    CUDATorchDeviceManager.set_device = lambda self, device: None  # type: ignore[method-assign]
    answer, pick = contract.RowActor.__call__, language_model.pick_device

    def noted_answer(self: Any, batch: Any) -> Any:
        note("answers", self.name)
        return answer(self, batch)

    def noted_pick(device: str = "auto") -> str:
        note("device", "", device)
        return str(pick(device))

    contract.RowActor.__call__ = noted_answer  # type: ignore[method-assign]
    language_model.pick_device = noted_pick


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])

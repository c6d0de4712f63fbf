"""Trainings in one task each, as many at a time as the cluster has room for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray

from raysift.settings.resources import Resources

One = TypeVar("One")


def side_by_side(work: Callable[..., Any], each: Sequence[One], own: Resources, *shared: Any) -> Iterator[One]:
    """Call `work` with each thing, and with what all share, in tasks of their own; yield the things as they are done."""
    task = ray.remote(work).options(
        num_cpus=own.cpus, num_gpus=own.gpus_per_worker or None, memory=own.memory, max_retries=own.restarts
    )
    common = [ray.put(one) for one in shared]
    waiting = {task.remote(one, *common): one for one in each}
    while waiting:
        done, _ = ray.wait(list(waiting))
        ray.get(done)
        yield waiting.pop(done[0])

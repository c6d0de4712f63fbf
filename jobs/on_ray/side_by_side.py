"""Trainings in one task each, as many at a time as the cluster has room for."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import ray

from raysift.settings.resources import Resources

One = TypeVar("One")
ENDED_S = 30.0
"""A cancelled task is gone long before that."""


def side_by_side(
    work: Callable[..., Any], each: Sequence[One], own: Resources, *shared: Any
) -> Generator[One, None, None]:
    """Call `work` with each thing, and with what all share, in tasks of their own; yield the things as they are done.

    Whoever stops before the end closes this (`contextlib.closing`): then no task is left that would go on writing beside those of
    the next attempt, as in a session that outlives the call.
    """
    task = ray.remote(work).options(
        num_cpus=own.cpus, num_gpus=own.gpus_per_worker or None, memory=own.memory, max_retries=own.restarts
    )
    common = [ray.put(one) for one in shared]
    waiting = {task.remote(one, *common): one for one in each}
    try:
        while waiting:
            done, _ = ray.wait(list(waiting))
            ray.get(done)
            yield waiting.pop(done[0])
    finally:
        for left in waiting:
            ray.cancel(left, force=True)
        if waiting:
            ray.wait(list(waiting), num_returns=len(waiting), timeout=ENDED_S)

"""Plain Ray tasks, a bounded number at a time: for work on whole files, where blocks of rows would be in the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

from raysift.errors import StageError, find_cause
from raysift.jobs.cluster.machines import cluster_cpus
from raysift.jobs.on_ray.peaks import telling
from raysift.settings.resources import Resources
from raysift.storage import Location


def run_tasks(
    work: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], resources: Resources, what: str, advice: str = ""
) -> Iterator[tuple[int, Any]]:
    """Call `work` with the arguments of each task; yield (task number, result) as tasks finish.

    A task whose process dies is retried (`restarts`). In messages, `what` names the things worked on and `advice`
    explains what to do about a failed task.
    """
    remote = ray.remote(telling(work)).options(num_cpus=resources.cpus, max_retries=resources.restarts)
    window = resources.workers or 2 * max(1, int(cluster_cpus() / resources.cpus))
    waiting = iter(enumerate(tasks))
    running: dict[Any, int] = {}
    while True:
        while len(running) < window and (task := next(waiting, None)):
            running[remote.remote(*task[1])] = task[0]
        if not running:
            return
        ready, _ = ray.wait(list(running), num_returns=1, timeout=resources.no_progress_timeout_s)
        if not ready:
            raise StageError(
                f"{what}: nothing moved for {resources.no_progress_timeout_s} s with {len(running)} of {len(tasks)} "
                f"tasks in work. Is there room for a task of {resources.cpus:g} CPUs in the cluster?"
            )
        number = running.pop(ready[0])
        try:
            answer = ray.get(ready[0])
        except ray.exceptions.RayError as error:
            if cause := find_cause(error):
                raise cause from error
            last = str(error).strip().splitlines()[-1]
            files = [a for a in tasks[number] if isinstance(a, Location) and a.name.endswith(".parquet")]
            named = f" ({files[0]})" if files else ""
            raise StageError(
                f"{what}: task {number} of {len(tasks)}{named} did not finish: {last.rstrip('.')}. {advice}".rstrip()
            ) from error
        yield number, answer

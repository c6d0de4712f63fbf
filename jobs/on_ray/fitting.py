"""Fits a stage to the cluster before it starts: workers, threads, tokens per pass, memory that Ray reserves.

What the user has set stays. If Ray kills a worker for memory, the stage retries with smaller passes or fewer workers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import ray

from raysift.actors.prompts import read_config
from raysift.config import CommonConfig
from raysift.errors import StageError
from raysift.faults import GPU_FULL
from raysift.jobs.cluster.machines import card_bytes, for_role, pool_size, read_cluster, wait_for_room
from raysift.jobs.runs.models import number_type
from raysift.jobs.runs.run import Run
from raysift.manifest import Manifest
from raysift.pool.longest import LONGEST
from raysift.settings.cluster import Cluster
from raysift.settings.memory import GIB, Fit, Need, Shape, answering, fewer, fit, fit_card, shape_of, training
from raysift.settings.resources import Resources
from raysift.settings.roles import TRAIN
from raysift.settings.training import TrainConfig

Result = TypeVar("Result")

KILLED = ("MemoryError", "OUT_OF_MEMORY", "memory monitor", "running low on memory", "can't allocate memory")
"""Words in Ray's and torch's errors that a process had no memory left; several classes have them, only in their text."""


def with_room(
    run: Run,
    stage: str,
    config: CommonConfig,
    need: Need | None,
    work: Callable[[CommonConfig], Result],
    role: str,
    model: str | None = None,
    most: int | None = None,
) -> Result:
    """Call `work` with the resources of a role that fit the cluster, and again with smaller ones if memory runs out.

    `model` is what the workers load, if not the run's own. More than `most` workers would find nothing to do.
    """
    if not ray.is_initialized():
        return _as_set(stage, config, work)
    config = for_role(config, role, model)
    wait_for_room(stage, config.resources, run.console.note)
    found = fit_cluster(config.resources, need, most) if need else None
    if need is None or found is None:
        return _as_set(stage, config, work)
    kills = 0
    if found.too_large:
        parts = ", ".join(f"{size / GIB:.1f} {name}" for name, size in need.parts(found.tokens).items())
        where = "a GPU" if config.resources.on_gpu else "a machine"
        run.console.note(
            f"{stage}: a worker is expected to take {found.bytes / GIB:.1f} GiB ({parts}), and Ray has {found.room / GIB:.1f} GiB "
            f"on {where}. If it is killed: a smaller train.max_length, or {where} with more memory."
        )
    while True:
        try:
            return work(config.model_copy(update={"resources": fitted(config.resources, found)}))
        except Exception as error:
            if not killed_for_memory(error, GPU_FULL if config.resources.on_gpu else ()):
                raise
            kills, smaller = kills + 1, fewer(found, need)
            if smaller == found:
                raise StageError(
                    f"{stage}: {kills} times workers were killed because memory ran out, the last time with one "
                    f"worker and {found.tokens} tokens in a pass. Close other programs, lower train.max_length, or "
                    "take a machine with more memory; the same command continues."
                ) from error
            run.record("killed", stage, for_memory=kills, workers=smaller.workers, tokens_per_pass=smaller.tokens)
            shorter = smaller.tokens < found.tokens
            setting, now = ("tokens_per_pass", smaller.tokens) if shorter else ("workers", smaller.workers)
            run.console.note(
                f"{stage}: a worker was killed because memory ran out (kill {kills}); going on with resources.{setting}={now}."
            )
            found = smaller


def _as_set(stage: str, config: CommonConfig, work: Callable[[CommonConfig], Result]) -> Result:
    """Call `work` once, where nothing is known about memory; if that runs out, the error says which settings to lower."""
    try:
        return work(config)
    except Exception as error:
        if not killed_for_memory(error, GPU_FULL if config.resources.on_gpu else ()):
            raise
        own = config.resources
        raise StageError(
            f"{stage}: a worker ran out of memory{' on its GPU' if own.on_gpu else ''} with {own.tokens} tokens in a pass. Set "
            f"resources.tokens_per_pass={max(1, own.tokens // 2)}, fewer resources.workers, or a smaller train.max_length; the "
            "same command continues."
        ) from error


def fit_cluster(resources: Resources, need: Need, most: int | None = None) -> Fit | None:
    """What fits on the running cluster, if each machine is taken as the mean of all; None for GPUs of unknown memory."""
    cluster = read_cluster(resources.asked)
    machines = [machine for machine in cluster.machines if machine.cpus]
    count = max(1, len(machines))
    cores = int(sum(machine.cpus for machine in machines) / count)
    memory = int(sum(machine.memory for machine in machines) / count)
    if resources.on_gpu:
        return _fit_card(resources, need, cluster, most)
    if resources.role == TRAIN:
        # A training has the workers that were asked for; only its passes can become smaller.
        asked = max(1, resources.workers or 1)
        found = fit(need, max(1, cores), memory, count, asked, resources.tokens_per_pass)
        return replace(found, workers=1)
    workers = resources.workers
    if resources.cpus_per_worker is not None and workers is None:
        workers = max(1, min(int(count * cores / resources.cpus_per_worker), most or count * cores))
    return fit(need, max(1, cores), memory, count, workers, resources.tokens_per_pass, most)


def _fit_card(resources: Resources, need: Need, cluster: Cluster, most: int | None) -> Fit | None:
    """What fits on the GPUs. Training workers share out one model's batches; other workers are as many as there are GPUs."""
    gpus = resources.gpus_per_worker or 1.0
    card = card_bytes(gpus) if cluster.gpus else None
    if card is None:
        return None
    workers = 1 if resources.role == TRAIN else min(pool_size(resources), most or sys.maxsize)
    each = [machine.memory / (machine.gpus / gpus) for machine in cluster.machines if machine.gpus]
    return fit_card(need, int(card * min(1.0, gpus)), workers, int(min(each)), resources.tokens_per_pass)


def fitted(resources: Resources, found: Fit) -> Resources:
    """The resources, with unset values filled in from the fit."""
    threads = resources.threads or max(1, int(resources.cpus_per_worker or found.threads))
    own = resources.role == TRAIN  # its workers share out each batch: their number is not a matter of room
    return resources.model_copy(
        update={
            "workers": resources.workers if own else min(found.workers, resources.workers or found.workers),
            "cpus_per_worker": resources.cpus_per_worker or float(found.threads),
            "threads": threads,
            "tokens_per_pass": found.tokens,
            "worker_gib": found.reserved / GIB if resources.worker_gib is None else resources.worker_gib,
        }
    )


def killed_for_memory(error: BaseException, also: Sequence[str] = ()) -> bool:
    """Whether Ray's memory monitor or the operating system killed a process of ours, or memory could not be had."""
    seen: BaseException | None = error
    while seen is not None:
        if words_of_a_kill(f"{type(seen).__name__}: {seen}", also):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def words_of_a_kill(text: str, also: Sequence[str] = ()) -> str | None:
    """The line of an error's text that tells of full memory; None if none does."""
    return next((line.strip() for line in text.splitlines() if any(word in line for word in (*KILLED, *also))), None)


def need_to_answer(config: CommonConfig, model: str) -> Need | None:
    """Memory an actor needs to score, embed or answer with this model; None if its configuration lacks the widths."""
    shape = model_shape(config, model)
    return answering(shape, number_type(config, model)) if shape else None


def need_to_train(config: CommonConfig, model: str, longest: int | None = None) -> Need | None:
    """Memory a training worker needs, with rows of at most `longest` tokens; None if the model's configuration lacks the
    widths."""
    shape, train = model_shape(config, model), config.train
    if shape is None:
        return None
    whole = train.method == "full"
    trained = shape.parameters if whole else shape.adapter(train.lora_rank, train.lora_targets)
    return training(shape, train.dtype, min(train.max_length, longest or train.max_length), trained, whole)


def longest_row(run: Run, rows: Manifest, train: TrainConfig) -> int | None:
    """Tokens that no row of a stage can have more of, by what earlier stages of the run found; None if they say nothing.

    Every such stage has rows of the run's own pool.
    """
    own = run.manifest(rows.stage)
    if own is None or own.fingerprint != rows.fingerprint:
        return None  # a selection of another run
    ingest, lengths = run.manifest("ingest"), run.manifest("lengths")
    known = [ingest.values.get(LONGEST)] if ingest else []
    if lengths and lengths.settings["template"] == train.template:
        known.append(lengths.values.get(LONGEST))
    return min((tokens for tokens in known if tokens), default=None)


def model_shape(config: CommonConfig, model: str) -> Shape | None:
    """The widths in the model's own configuration."""
    return shape_of(read_config(model, config.trust_remote_code))

"""Measures on the cluster that the run would use: one small stage of tokenisers, and one task that tries everything else."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq
import ray

from raysift.actors.effective_batches import EncodeRows
from raysift.actors.language_model import portable_name
from raysift.config import CommonConfig
from raysift.jobs.cluster.machines import cluster_cpus, first_workers, for_role, pool_size
from raysift.jobs.on_ray.fitting import fit_cluster, fitted
from raysift.jobs.on_ray.peaks import look_at_peaks
from raysift.jobs.on_ray.raydata import map_rows
from raysift.jobs.planning.facts import Seat, Starts
from raysift.jobs.planning.pool import PoolSample
from raysift.jobs.planning.probe import Found, Order, measure
from raysift.jobs.runs.peaks import gather, stage_peaks
from raysift.planning.speed import Speed
from raysift.settings.memory import Need
from raysift.settings.roles import TRAIN
from raysift.settings.training import TrainConfig
from raysift.storage import open_location

TRAIN_STARTS = 1.8
"""What Ray Train takes beyond its worker's own loading (its controller, the group of workers, the rows, the account), over an
empty stage of tokenisers: 1.4 to 3 times in runs on two cores, which were more or less busy."""


def seat_here(config: CommonConfig, role: str, model: str, need: Need | None) -> Seat:
    """The workers that a stage gets on the running cluster, by the same steps as when it starts."""
    own = for_role(config, role, model).resources
    found = fit_cluster(own, need) if need is not None else None
    own = fitted(own, found) if found is not None else own
    gpus = own.gpus_per_worker or 0.0
    if role == TRAIN:
        return Seat(1 if own.workers is None else own.workers, gpus, own, at_once=True)
    return Seat(pool_size(own), gpus, own, at_once=first_workers(own) > 1)


def measure_here(
    config: CommonConfig, train: TrainConfig, sample: PoolSample, wanted: Sequence[Order], seats: Sequence[Seat]
) -> tuple[Found, Starts]:
    """Try everything on rows of the sample, and return the speeds and what passes before work begins."""
    fixed, host = _empty_stage(config, train, sample)
    gpus = max((seat.gpus for seat in seats), default=0.0)
    cpus = max((seat.resources.cpus for seat in seats), default=1.0)
    task = ray.remote(num_cpus=min(cluster_cpus(), cpus), num_gpus=gpus or None, max_retries=0)(measure)
    named = [_portable(order) for order in wanted]
    asked = time.time()
    found: Found = ray.get(
        task.remote(named, sample.rows, portable_name(config.model), train.template, config.trust_remote_code)
    )
    tokens = max(1.0, float(found.lengths.sum()))
    token_s = found.encode_s / tokens
    found.speeds["tokenise"] = Speed((1.0,), (token_s,), host=host)
    process_s = max(0.1, found.begun - asked)
    starts = Starts(
        map_s=max(0.5, fixed - tokens * token_s),
        process_s=process_s,
        tokenizer_s=found.tokenizer_s,
        libraries_s=found.libraries_s,
        train_s=TRAIN_STARTS * max(0.5, fixed - tokens * token_s),
        bare=found.bare,
        token_s=token_s,
    )
    return found, starts


def _portable(order: Order) -> Order:
    """The order for a process in another folder."""
    model: Any = order.arguments.get("model")
    named = {"model": portable_name(model)} if isinstance(model, str) else {}
    return Order(order.name, order.kind, {**order.arguments, **named}, order.actor, order.rows, order.seconds)


def _empty_stage(config: CommonConfig, train: TrainConfig, sample: PoolSample) -> tuple[float, int]:
    """Seconds of a stage of tokenisers over the sample, from its call to its last file, and the peak of its actor."""
    own = for_role(config, "tokenise").resources
    with tempfile.TemporaryDirectory(prefix="raysift-plan-", dir=_shared()) as folder:
        place = open_location(folder)
        pq.write_table(sample.rows, (place / "rows.parquet").path)
        arguments = {"model": portable_name(config.model), "template": train.template, "max_length": train.max_length}
        arguments |= {"trust_remote_code": config.trust_remote_code}
        with stage_peaks() as peaks:
            clock = time.perf_counter()
            map_rows([place / "rows.parquet"], EncodeRows, arguments, place, own)
            seconds = time.perf_counter() - clock
        told = gather(look_at_peaks(peaks.name), 0)
        peaks.read()
    return seconds, told.get("host", 0)


def _shared() -> str | None:
    """A folder that other machines of the cluster see too, where there are any; the current one is the best guess."""
    return os.getcwd() if sum(bool(node["Alive"]) for node in ray.nodes()) > 1 else None

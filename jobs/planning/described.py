"""A cluster that is not at hand, such as 8xH100: seats, speeds and memory by arithmetic from `raysift.planning.cards`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raysift.config import CommonConfig
from raysift.jobs.on_ray.fitting import model_shape
from raysift.jobs.planning.facts import Seat, Starts
from raysift.jobs.planning.probe import Order
from raysift.nano import is_nano
from raysift.planning.cards import CPUS_A_GPU, GPUS_A_MACHINE, HOST_A_GPU, Card
from raysift.planning.speed import Speed, answering_on, speed_on
from raysift.settings.cluster import Cluster, Machine
from raysift.settings.memory import GIB, PROCESS_BYTES, Need, fit_card
from raysift.settings.roles import TRAIN

STARTS = Starts(
    map_s=20.0, process_s=5.0, tokenizer_s=3.0, libraries_s=15.0, train_s=30.0, bare=GIB // 4, token_s=1 / 300_000
)
"""Of a usual server: nothing is measured, and beside hours of work it hardly counts."""
KINDS = {"rows": "forward", "gradients": "gradients", "targets": "gradients", "train": "train"}
LOAD_BYTES_S = 1e9


def cluster_of(count: int, card: Card) -> Cluster:
    """Machines of eight GPUs at most."""
    sizes = [GPUS_A_MACHINE] * (count // GPUS_A_MACHINE) + [count % GPUS_A_MACHINE] * bool(count % GPUS_A_MACHINE)
    machines = tuple(Machine(float(size * CPUS_A_GPU), float(size), size * HOST_A_GPU) for size in sizes)
    return Cluster(machines, float(count * CPUS_A_GPU), float(count))


def seat_on(config: CommonConfig, cluster: Cluster, card: Card, role: str, model: str, need: Need | None) -> Seat:
    """The workers that a stage would get there."""
    own = config.resources.of(role, cluster, is_nano(model))
    gpus = own.gpus_per_worker or 0.0
    room = int(cluster.most_gpus / gpus) if gpus else max(1, int(cluster.most_cpus / own.cpus))
    workers = min(own.workers or room, room)
    if need is not None and gpus:
        fits = fit_card(need, int(card.memory * gpus), workers, HOST_A_GPU, own.tokens_per_pass)
        own = own.model_copy(update={"tokens_per_pass": fits.tokens})
    return Seat(workers, gpus, own, at_once=bool(gpus) or role == TRAIN)


def speeds_on(
    card: Card, config: CommonConfig, wanted: Sequence[Order], needs: Any, row_tokens: float
) -> dict[str, Speed]:
    """The pace of each part on the card; `needs` gives a part's memory, `row_tokens` the mean length of the pool's rows."""
    found = {"tokenise": Speed((1.0,), (STARTS.token_s,), host=STARTS.bare)}
    for order in wanted:
        model = str(order.arguments.get("model") or getattr(order.arguments.get("settings"), "model", config.model))
        shape = model_shape(config, model)
        parameters = shape.parameters if shape else 1e8
        need: Need | None = needs(order, model)
        tokens = config.resources.tokens
        gpu = need.bytes(tokens) - need.process if need else 0
        host = PROCESS_BYTES + (need.weights if need else 0)
        load = 15.0 + 2 * parameters / LOAD_BYTES_S
        if order.kind == "answers":
            found[order.name] = answering_on(card, parameters, 2, host, gpu)
            continue
        whole = getattr(order.arguments.get("train"), "method", "lora") == "full" and order.kind == "train"
        pace = speed_on(card, "train whole" if whole else KINDS[order.kind], parameters, host, gpu, load)
        if order.kind == "targets":
            # A member of a target is read as a row is, twice (two answers, or an answer and the loss of the base model).
            pace = Speed((1.0,), (2 * row_tokens * pace.per_token[0],), load, host, gpu, once_s=5.0)
        else:
            pace = Speed((row_tokens,), pace.per_token, load, host, gpu)
        found[order.name] = pace
    return found

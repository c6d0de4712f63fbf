"""Makes a plan: checks, a sample of the pool, speeds measured here or computed for a described cluster, and the figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from raysift.actors.language_model import load_tokenizer, resolve_model
from raysift.config import CommonConfig, make_selector, replayed
from raysift.errors import ConfigError
from raysift.jobs.cluster.machines import card_bytes, read_cluster
from raysift.jobs.gradients.room import warmup_recipe
from raysift.jobs.gradients.targeting import subtask_of
from raysift.jobs.on_ray.fitting import model_shape
from raysift.jobs.on_ray.generation import pick_backend
from raysift.jobs.planning import described, gradients, learning, preflight, recipes
from raysift.jobs.planning.cheaper import Lever, levers, with_settings
from raysift.jobs.planning.facts import Facts, Seat
from raysift.jobs.planning.measuring import measure_here, seat_here
from raysift.jobs.planning.pool import PoolSample, sample_pool
from raysift.jobs.planning.probe import Order, encode
from raysift.jobs.runs.run import Run
from raysift.methods import Selector
from raysift.methods.gradient import GradientSelector
from raysift.methods.mods import Mods
from raysift.planning.cards import REACHED, Card, read_gpus
from raysift.planning.record import Cheaper, Plan, PlannedStage, Seconds
from raysift.planning.solving import solve
from raysift.planning.work import Work, bounds_of, gpu_seconds, seconds_of
from raysift.settings.generation import VLLM
from raysift.settings.hardware import describe_cpu
from raysift.settings.memory import Need
from raysift.settings.training import TrainConfig

HOUR_S = 3600.0
SHOWN_CHEAPER, LEAST_SAVING = 3, 0.02
_ = gradients, learning  # they register the work of their methods


@dataclass(frozen=True)
class Asked:
    """What a plan is asked for beside the run's settings."""

    gpus: str | None = None
    """A described cluster, such as `8xH100`."""
    price: float | None = None
    hours: float | None = None
    dollars: float | None = None


def make_plan(config: CommonConfig, asked: Asked, start: Callable[[], None], note: Callable[[str], None]) -> Plan:
    """The plan of a run with these settings. `start` starts Ray, unless the cluster is only described."""
    if asked.dollars is not None and asked.price is None:
        raise ConfigError(
            "plan: --dollars needs --price, the dollars of a GPU-hour (or of a machine-hour without GPUs)."
        )
    card = read_gpus(asked.gpus) if asked.gpus else None
    selector, began = make_selector(config), time.perf_counter()
    run = Run(config.run)
    members = preflight.before(config, selector, run)
    note("reading a sample of the pool ...")
    sample = sample_pool(config)
    if card:
        facts = describe(config, selector, sample, members, *card)
    else:
        start()
        note("trying a few rows of each stage ...")
        facts = measure(config, selector, sample, members)
    found = recipes.works(selector, facts)
    notes = preflight.after(
        facts, found, _needs(selector, facts), _card_bytes(facts, card), train_of(selector, config).max_length
    )
    cost = partial(_seconds_with, selector, facts)
    chosen = _solve(asked, facts, levers(selector, facts), cost)
    if chosen:
        config = with_settings(config, [one for lever in chosen for one in lever.settings])
        selector, facts = make_selector(config), facts.with_config(config)
        found = recipes.works(selector, facts)
    plan = _record(config, selector, facts, found, asked, card, notes, chosen)
    return plan.model_copy(update={"measuring_s": round(time.perf_counter() - began, 1)})


def train_of(selector: Selector, config: CommonConfig) -> TrainConfig:
    """The training whose template and maximum length most of the method's stages follow."""
    if isinstance(selector, GradientSelector):
        return warmup_recipe(config, selector.config)
    return getattr(selector.config, "seed_train", None) or config.train


def measure(config: CommonConfig, selector: Selector, sample: PoolSample, members: list[Any]) -> Facts:
    """Facts from the running cluster."""
    seats: list[Seat] = []

    def seat(role: str, model: str, need: Need | None) -> Seat:
        seats.append(seat_here(config, role, model, need))
        return seats[-1]

    wanted = recipes.orders(selector, config, seat, members)
    found, starts = measure_here(config, train_of(selector, config), sample, wanted, seats)
    facts = Facts(
        config,
        sample,
        found.lengths,
        found.labels,
        found.speeds,
        starts,
        partial(seat_here, config),
        partial(_shape, config),
        members,
        _subtasks(selector, members),
        engine=_has_engine(config, selector),
        problems=found.problems,
    )
    recipes.require(facts, wanted)
    return facts


def describe(
    config: CommonConfig, selector: Selector, sample: PoolSample, members: list[Any], count: int, card: Card
) -> Facts:
    """Facts about a cluster that is not there."""
    cluster = described.cluster_of(count, card)
    seat = partial(described.seat_on, config, cluster, card)
    train = train_of(selector, config)
    tokens = encode(sample.rows, load_tokenizer(config.model, config.trust_remote_code), train.template)
    lengths = np.array([len(one.input_ids) for one in tokens])
    needs: dict[str, Need | None] = {}

    def noting(role: str, model: str, need: Need | None) -> Seat:
        needs[role] = need
        return seat(role, model, need)

    wanted = recipes.orders(selector, config, noting, members)
    roles = {"train": "train", "gradients": "gradients", "targets": "gradients", "answers": "generate"}

    def need_of(order: Order, model: str) -> Need | None:
        fallback = "embed" if order.name == "encoder" else "score"
        return needs.get(roles.get(order.kind, fallback))

    speeds = described.speeds_on(card, config, wanted, need_of, float(np.minimum(lengths, train.max_length).mean()))
    return Facts(
        config,
        sample,
        lengths,
        np.array([sum(label >= 0 for label in one.labels) for one in tokens]),
        speeds,
        described.STARTS,
        seat,
        partial(_shape, config),
        members,
        _subtasks(selector, members),
        basis="arithmetic",
        engine=True,
    )


def _shape(config: CommonConfig, model: str) -> Any:
    return model_shape(config, resolve_model(model))


def _subtasks(selector: Selector, members: Sequence[Any]) -> int:
    return max(1, len({subtask_of(member) for member in members})) if isinstance(selector, GradientSelector) else 1


def _has_engine(config: CommonConfig, selector: Selector) -> bool:
    if not isinstance(selector, Mods):
        return False
    resources = config.resources.of("generate", read_cluster(config.resources))
    return pick_backend(selector.config.generation, resources) == VLLM


def _needs(selector: Selector, facts: Facts) -> list[tuple[str, Need, float]]:
    """Stages whose workers hold GPUs, with what a worker needs."""
    found: list[tuple[str, Need, float]] = []

    def seat(role: str, model: str, need: Need | None) -> Seat:
        got = facts.seat(role, model, need)
        if need is not None and got.gpus:
            found.append((role, need, got.gpus))
        return got

    recipes.works(selector, replace(facts, seat=seat))
    return list({role: (role, need, gpus) for role, need, gpus in found}.values())


def _card_bytes(facts: Facts, card: tuple[int, Card] | None) -> int | None:
    if card:
        return card[1].memory
    return card_bytes(1.0) if read_cluster(facts.config.resources).gpus else None


# --- totals, cheaper settings and the record ----------------------------------------------------------------------------


def _works_with(selector: Selector, facts: Facts, taken: Sequence[Lever]) -> list[Work]:
    settings = [one for lever in taken for one in lever.settings]
    config = with_settings(facts.config, settings)
    return recipes.works(make_selector(config) if settings else selector, facts.with_config(config))


def _seconds_with(selector: Selector, facts: Facts, taken: Sequence[Lever]) -> float:
    return sum(map(seconds_of, _works_with(selector, facts, taken)))


def dollars_of(works: Sequence[Work], price: float) -> float:
    """At so many dollars a GPU-hour for the GPUs that stages hold; without GPUs, a machine-hour for the whole time."""
    held = sum(map(gpu_seconds, works))
    return price * (held or sum(map(seconds_of, works))) / HOUR_S


def _solve(asked: Asked, facts: Facts, known: Sequence[Lever], cost: Callable[[Sequence[Lever]], float]) -> list[Lever]:
    """Settings that keep to the hours or dollars asked; raises if those that are known do not suffice."""
    if asked.hours is None and asked.dollars is None:
        return []
    selector = make_selector(facts.config)

    def over(taken: Sequence[Lever]) -> float:
        """The larger of the shares of what was asked; 1 fits."""
        works = _works_with(selector, facts, taken)
        hours = sum(map(seconds_of, works)) / HOUR_S / asked.hours if asked.hours else 0.0
        money = dollars_of(works, asked.price or 0.0) / asked.dollars if asked.dollars else 0.0
        return max(hours, money)

    found = solve(known, over, 1.0)
    if found is None:
        least = _works_with(selector, facts, known)
        hours = sum(map(seconds_of, least)) / HOUR_S
        cost_words = f" and {dollars_of(least, asked.price):,.2f} dollars" if asked.price else ""
        raise ConfigError(
            f"plan: with every cheaper setting that is known here ({', '.join(one for lever in known for one in lever.settings)}) "
            f"the run still takes {hours:.3g} hours{cost_words}. Take more or faster machines, a smaller model or pool."
        )
    return found


def _cheaper(selector: Selector, facts: Facts, whole: float) -> list[Cheaper]:
    """The cheaper settings that save most, one by one, in the order of what they lose."""
    tried = [(lever, _seconds_with(selector, facts, [lever])) for lever in levers(selector, facts)]
    worth = [(lever, seconds) for lever, seconds in tried if seconds < (1 - LEAST_SAVING) * whole]
    best = sorted(worth, key=lambda one: one[1])[:SHOWN_CHEAPER]
    return [
        Cheaper(settings=list(lever.settings), loses=lever.loses, seconds=round(seconds, 1))
        for lever, seconds in worth
        if (lever, seconds) in best
    ]


def _train_all(facts: Facts) -> float | None:
    """Likely seconds of training on the whole pool by the run's recipe; None where no training was measured."""
    part = next((name for name in ("train", "warmup", "tune") if name in facts.speeds), None)
    return seconds_of(facts.train("all", facts.rows, facts.config.train, part, None)) if part else None


def _record(
    config: CommonConfig,
    selector: Selector,
    facts: Facts,
    works: Sequence[Work],
    asked: Asked,
    card: tuple[int, Card] | None,
    notes: list[str],
    chosen: Sequence[Lever],
) -> Plan:
    stages = [_stage(work) for work in works]
    whole = sum(map(seconds_of, works))
    longest = max(works, key=seconds_of)
    everything = _train_all(facts)
    if everything is not None and everything < whole:
        notes = [
            f"training on all {facts.pool.kept:,} rows takes less time than this selection: about {everything / HOUR_S:.3g} "
            f"against {whole / HOUR_S:.3g} hours. The selection pays where the data or several trainings are worth it",
            *notes,
        ]
    if not facts.pool.whole:
        notes = [f"the pool was read in part: {facts.pool.kept:,} rows are an estimate", *notes]
    if card:
        notes = [_described_note(*card), *notes]
    return Plan(
        method=selector.name,
        model=config.model,
        machine=f"{card[0]} x {card[1].name}, described" if card else _machine(config),
        measured=card is None,
        settings=replayed(config),
        stages=stages,
        gpus=max((work.gpus for work in works), default=0.0),
        price=asked.price,
        dollars=None if asked.price is None else round(dollars_of(works, asked.price), 4),
        bottleneck=f"{longest.stage}: {seconds_of(longest) / whole:.0%} of the time",
        cheaper=_cheaper(selector, facts, whole),
        solved=[one for lever in chosen for one in lever.settings],
        train_all_s=None if everything is None else round(everything, 1),
        speeds={name: speed.told() for name, speed in facts.speeds.items()},
        starts=asdict(facts.starts),
        notes=[*notes, *(f"{lever.settings[0]}: {lever.loses}" for lever in chosen)],
    )


def _stage(work: Work) -> PlannedStage:
    low, likely, high = bounds_of(work)
    return PlannedStage(
        stage=work.stage,
        rows=round(work.rows),
        kept=round(work.kept),
        tokens=round(work.tokens),
        device=work.device,
        workers=work.busy,
        seconds=Seconds(low=round(low, 3), likely=round(likely, 3), high=round(high, 3)),
        host=work.host,
        gpu=work.gpu,
        written=round(work.written),
        restart_s=round(work.restart_s, 1),
        basis=work.basis,
    )


def _machine(config: CommonConfig) -> str:
    cluster = read_cluster(config.resources)
    gpus = f", {cluster.gpus:g} GPUs" if cluster.gpus else ""
    return f"{len(cluster.machines)} machine{'s' * (len(cluster.machines) > 1)}, {cluster.cpus:g} CPUs ({describe_cpu()}){gpus}"


def _described_note(count: int, card: Card) -> str:
    reached = ", ".join(f"{share:.0%} for {name}" for name, share in REACHED.items())
    return (
        f"arithmetic, not measured: {count} x {card.name} with {card.flops / 1e12:,.0f} TFLOP/s in bf16 and "
        f"{card.bandwidth / 1e12:g} TB/s each, of which stages are taken to reach {reached}"
    )

"""The work of methods that match rows with a target: by gradients (ROSE, LESS) or by states (RDS+)."""

from __future__ import annotations

from collections import Counter
from typing import Any

from raysift.actors.state_match import StateMatch
from raysift.config import CommonConfig
from raysift.evaluation.examples import reference_answer
from raysift.gradients.null_columns import ROWS, plan_rows, replicates
from raysift.jobs.gradients.room import SIGNS, exact_room, moments_of, room_needed, warmup_recipe
from raysift.jobs.gradients.stages import WHOLE, gradient_loading
from raysift.jobs.on_ray.fitting import need_to_answer, need_to_train
from raysift.jobs.planning.facts import ANSWER_BYTES, Facts
from raysift.jobs.planning.probe import Order
from raysift.jobs.planning.recipes import (
    Seating,
    count_lengths,
    final_order,
    orders,
    placed,
    score_and_choose,
    train_order,
    works,
)
from raysift.methods.gradient import GradientConfig, GradientSelector
from raysift.methods.rds import Rds
from raysift.planning.work import Work


def gradient_order(kind: str, config: CommonConfig, selector: GradientSelector, seat: Seating, **more: Any) -> Order:
    settings = selector.config
    train, stored = warmup_recipe(config, settings), settings.matching == "store"
    own = placed(config, seat("gradients", config.model, gradient_need(config, settings, more.get("subtasks", 1))))
    arguments = gradient_loading(own, settings) | {"model": config.model, "train": train, "adam": settings.adam}
    arguments |= {"projection": settings.projection if stored else None, "whole": WHOLE, "selector": selector}
    return Order(kind, kind, arguments | more, seconds=8.0 if kind == "gradients" else 4.0)


def gradient_need(config: CommonConfig, settings: GradientConfig, subtasks: int) -> Any:
    train = warmup_recipe(config, settings)
    points = settings.checkpoints or train.epochs
    if settings.matching == "exact":
        return exact_room(config, settings, config.model, points, subtasks)
    each = moments_of(settings) + SIGNS
    return room_needed(config, settings, config.model, points, each, settings.projection.dimension)


@works.register
def _gradient(selector: GradientSelector, facts: Facts) -> list[Work]:
    config, settings, rows = facts.config, selector.config, facts.rows
    train = warmup_recipe(config, settings)
    points = min(settings.checkpoints or train.epochs, train.epochs)
    shape = facts.shape(config.model)
    adapter = shape.adapter(train.lora_rank, train.lora_targets) if shape else 0
    own = config.model_copy(update={"train": train})
    warm = max(1.0, int(settings.warmup_share * rows))
    counted = count_lengths(facts)
    begun = [] if settings.warmup_from else [facts.driver("warmup_rows", rows, warm, written=facts.files(warm))]
    begun += (
        [] if settings.warmup_from else [facts.train("warmup", warm, train, "warmup", need_to_train(own, config.model))]
    )
    exact, need = settings.matching == "exact", gradient_need(config, settings, facts.subtasks)
    nulls, drawn = _null(selector, facts)
    columns = facts.subtasks * (1 + nulls)
    width = (
        4.0 * columns if exact else settings.projection.dimension / (8 if settings.projection.kind == "signs" else 0.5)
    )
    held = int(4 * adapter * (1 + moments_of(settings)) * (points - 1))
    target_bytes = points * columns * (4.0 * adapter if exact else 4.0 * settings.projection.dimension)
    gradients = facts.map(
        "gradients",
        "gradients",
        rows,
        "gradients",
        config.model,
        need,
        passes=points,
        lengths=facts.cut(train),
        row_bytes=ANSWER_BYTES + points * (8.0 + width),
        more_host=0 if facts.speeds["gradients"].gpu else held,
    )
    matched = (
        [] if exact else [facts.driver("match", rows, rows, rows * points * width / 2e8, 4 * rows * points * columns)]
    )
    return [
        facts.ingest(),
        facts.driver("likeness", len(facts.members), len(facts.members)),
        *counted,
        *begun,
        facts.task("targets", "targets", len(facts.members) + drawn, points, "gradients", need, target_bytes),
        gradients,
        *matched,
        *score_and_choose(facts, "influence"),
        *facts.after(),
    ]


def _null(selector: GradientSelector, facts: Facts) -> tuple[int, int]:
    """Null columns of each subtask, and the rows that are passed for them."""
    from raysift.jobs.gradients.targeting import subtask_of

    columns = replicates(facts.subtasks)
    if selector.null_kind != ROWS:
        return (columns if selector.null_kind else 0), 0
    planned = plan_rows(Counter(map(subtask_of, facts.members)), columns, int(facts.rows))
    return (columns, planned[1]) if planned else (0, 0)


@orders.register
def _order_gradient(selector: GradientSelector, config: CommonConfig, seat: Seating, members: list[Any]) -> list[Order]:
    from raysift.jobs.gradients.targeting import subtask_of

    subtasks = max(1, len({subtask_of(member) for member in members}))
    train = warmup_recipe(config, selector.config)
    found = [
        gradient_order("gradients", config, selector, seat, subtasks=subtasks),
        gradient_order("targets", config, selector, seat, subtasks=subtasks, members=list(members)),
    ]
    if not selector.config.warmup_from:
        found.insert(0, train_order("warmup", config, train, seat))
    return [*found, *final_order(config, seat)]


@works.register
def _similarity(selector: Rds, facts: Facts) -> list[Work]:
    config, rows = facts.config, facts.rows
    need, members = need_to_answer(config, config.model), len(facts.members)
    counted = count_lengths(facts)
    matched = facts.map(
        "similarity",
        "states",
        rows,
        "score",
        config.model,
        need,
        lengths=facts.cut(config.train),
        row_bytes=ANSWER_BYTES + 12.0 * members,
    )
    choose = facts.driver("choose", rows, facts.budget, written=2 * facts.files(facts.budget))
    return [facts.ingest(), facts.driver("likeness", members, members), *counted, matched, choose, *facts.after()]


@orders.register
def _order_similarity(selector: Rds, config: CommonConfig, seat: Seating, members: list[Any]) -> list[Order]:
    targets: Any = [
        [
            *({"role": one.role, "content": one.content} for one in member.prompt),
            {"role": "assistant", "content": reference_answer(member)},
        ]
        for member in members
    ]
    train = config.train
    resources = seat("score", config.model, need_to_answer(config, config.model)).resources
    arguments: dict[str, Any] = {"model": config.model, "targets": targets, "template": train.template}
    arguments |= {"max_length": train.max_length, "dtype": train.dtype, "device": resources.placed_on}
    arguments |= {"threads": resources.threads, "trust_remote_code": config.trust_remote_code}
    own = final_order(config, seat)
    return [Order("states", "rows", arguments, StateMatch), *own]

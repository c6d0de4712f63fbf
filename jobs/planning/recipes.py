"""The work of each method's stages, in the order of its recipe (`raysift.jobs.recipes`), and what must be measured for it.

Dispatch is by the selector's class, as for recipes; a method without an entry is planned as its base class is.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import numpy as np

from raysift.actors.effective_batches import Place
from raysift.actors.embedder import Embedder
from raysift.config import CommonConfig
from raysift.errors import ConfigError
from raysift.jobs.on_ray.fitting import need_to_answer, need_to_train
from raysift.jobs.planning.facts import ANSWER_BYTES, Facts, Seat
from raysift.jobs.planning.probe import Order
from raysift.jobs.runs.models import number_type
from raysift.jobs.scoring.quality import SCORERS
from raysift.methods import Selector
from raysift.methods.coverage import Coverage
from raysift.methods.quality import Quality
from raysift.planning.work import Work
from raysift.scoring.settings import EmbeddingSettings, QualitySettings, Threshold
from raysift.settings.budget import parse_budget
from raysift.settings.training import TrainConfig

Seating = Any
"""A function of role, model and need, which gives the seat (see `Facts.seat`)."""


def placed(config: CommonConfig, seat: Seat) -> CommonConfig:
    """The settings with a seat's resources."""
    return config.model_copy(update={"resources": seat.resources})


def count_lengths(facts: Facts, reads: bool = False) -> list[Work]:
    """The stage that counts tokens, where the scores (`reads`) or the budget need them."""
    wanted = reads or parse_budget(facts.config.budget).counts_tokens
    return [facts.tokenising("lengths", facts.rows)] if wanted else []


def final_order(config: CommonConfig, seat: Seating) -> list[Order]:
    """The training on the selection, if it was asked for."""
    return [train_order("train", config, config.train, seat)] if config.train_on_selection else []


# --- yardsticks, and what methods share ----------------------------------------------------------------------------------


@singledispatch
def works(selector: Selector, facts: Facts) -> list[Work]:
    """The work of each stage, in order."""
    counted = count_lengths(facts, bool(selector.reads))
    return [facts.ingest(), *counted, *score_and_choose(facts, "score"), *facts.after()]


@singledispatch
def orders(selector: Selector, config: CommonConfig, seat: Seating, members: list[Any]) -> list[Order]:
    """What to measure."""
    return final_order(config, seat)


def score_and_choose(facts: Facts, name: str) -> list[Work]:
    return [
        facts.driver(name, facts.rows, facts.rows, written=30 * facts.rows),
        facts.driver("choose", facts.rows, facts.budget, written=2 * facts.files(facts.budget)),
    ]


def train_order(name: str, config: CommonConfig, train: TrainConfig, seat: Seating, seconds: float = 6.0) -> Order:
    own = config.model_copy(update={"train": train})
    resources = seat("train", config.model, need_to_train(own, config.model)).resources
    place = Place(
        device=resources.placed_on,
        threads=resources.threads,
        rows_per_pass=resources.batch_rows,
        tokens_per_pass=resources.tokens,
        gradient_checkpointing=resources.gradient_checkpointing,
        trust_remote_code=config.trust_remote_code,
    )
    return Order(name, "train", {"model": config.model, "train": train, "place": place}, seconds=seconds)


def loading(config: CommonConfig, resources: Any, model: str) -> dict[str, Any]:
    return {
        "device": resources.placed_on,
        "threads": resources.threads,
        "trust_remote_code": config.trust_remote_code,
        "dtype": number_type(config, model),
    }


def scorer_order(config: CommonConfig, settings: QualitySettings, seat: Seating) -> Order:
    model = settings.scorer
    part: Any = settings if settings.kind == "reward" else getattr(settings, settings.kind)
    own = {"model": model, "max_length": settings.max_length, "settings": part}
    resources = seat("score", model, need_to_answer(config, model)).resources
    return Order("scorer", "rows", own | loading(config, resources, model), SCORERS[settings.kind, "transformers"])


def encoder_order(config: CommonConfig, settings: EmbeddingSettings, seat: Seating) -> Order:
    resources = seat("embed", settings.model, need_to_answer(config, settings.model)).resources
    return Order("encoder", "rows", {"settings": settings} | loading(config, resources, settings.model), Embedder)


def quality_work(facts: Facts, settings: QualitySettings) -> Work:
    need = need_to_answer(facts.config, settings.scorer)
    cut = None if settings.max_length is None else np.minimum(facts.lengths, settings.max_length)
    return facts.map("quality", "scorer", facts.rows, "score", settings.scorer, need, lengths=cut)


def embed_work(facts: Facts, settings: EmbeddingSettings, rows: float) -> Work:
    shape = facts.shape(settings.model)
    width = 4.0 * (shape.hidden if shape else 768)
    need = need_to_answer(facts.config, settings.model)
    return facts.map("embed", "encoder", rows, "embed", settings.model, need, row_bytes=ANSWER_BYTES + width)


def centers_work(facts: Facts, name: str, rows: float, count: float, width: float = 512.0) -> Work:
    """k-center: every centre is compared with every row, and most products are spared on real data."""
    seconds = rows * count * width / 4e9 + 1.0
    return facts.driver(name, rows, count, seconds, facts.files(count))


def passing(threshold: Threshold, above: bool) -> tuple[float, str | None]:
    """Share of rows beyond a bar; half of them where the bar is a score, whose distribution nobody knows yet."""
    if threshold.quantile is None:
        return 0.5, "guessed"
    return (1 - threshold.quantile if above else threshold.quantile), None


@works.register
def _quality(selector: Quality, facts: Facts) -> list[Work]:
    counted = count_lengths(facts)
    return [
        facts.ingest(),
        *counted,
        quality_work(facts, selector.config.scorer),
        *score_and_choose(facts, "score"),
        *facts.after(),
    ]


@orders.register
def _order_quality(selector: Quality, config: CommonConfig, seat: Seating, members: list[Any]) -> list[Order]:
    own = final_order(config, seat)
    return [scorer_order(config, selector.config.scorer, seat), *own]


@works.register
def _coverage(selector: Coverage, facts: Facts) -> list[Work]:
    return [
        facts.ingest(),
        embed_work(facts, selector.config.embedding, facts.rows),
        centers_work(facts, "centers", facts.rows, facts.budget),
        *score_and_choose(facts, "order"),
        *facts.after(),
    ]


@orders.register
def _order_coverage(selector: Coverage, config: CommonConfig, seat: Seating, members: list[Any]) -> list[Order]:
    own = final_order(config, seat)
    return [encoder_order(config, selector.config.embedding, seat), *own]


def require(facts: Facts, wanted: list[Order]) -> None:
    """Raise if something that the plan needs could not be measured."""
    lost = {order.name: facts.problems[order.name] for order in wanted if order.name in facts.problems}
    if lost:
        told = "; ".join(f"{name}: {why}" for name, why in lost.items())
        raise ConfigError(f"plan: a few rows were tried, as the run would do it, and this failed: {told}")

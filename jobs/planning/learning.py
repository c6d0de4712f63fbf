"""The work of methods that train on the way: MoDS, whose tuned model answers, and RAISE, which learns a policy."""

from __future__ import annotations

from typing import Any

from raysift.actors.difficulty import Difficulty
from raysift.actors.likelihood import AnswerLoss
from raysift.actors.responder import Responder
from raysift.config import CommonConfig
from raysift.jobs.on_ray.fitting import need_to_answer, need_to_train
from raysift.jobs.planning.facts import ANSWER_BYTES, Facts
from raysift.jobs.planning.probe import Order
from raysift.jobs.planning.recipes import (
    Seating,
    centers_work,
    embed_work,
    encoder_order,
    final_order,
    loading,
    orders,
    passing,
    quality_work,
    score_and_choose,
    scorer_order,
    train_order,
    works,
)
from raysift.jobs.policy.stages import target_rows
from raysift.methods.mods import Mods, seed_count
from raysift.methods.raise_policy import Raise, count_policy_steps
from raysift.planning.speed import answer_length
from raysift.planning.work import Work

VLLM_START_S = 30.0
VLLM_STEP = 1.2
"""Seconds of a token from vLLM on CPUs, over those of transformers with eight answers side by side: of one run on two cores."""
PICK_S = 2e-7
"""Of RAISE's network, per row of the pool and step."""


@works.register
def _mods(selector: Mods, facts: Facts) -> list[Work]:
    config, settings, rows = facts.config, selector.config, facts.rows
    total = facts.budget
    share, guessed = passing(settings.alpha, above=True)
    good = share * rows
    seeds = min(float(seed_count(settings, round(total))), good)
    found = [
        facts.ingest(),
        quality_work(facts, settings.scorer),
        facts.driver("good", rows, good, written=facts.files(good)),
        embed_work(facts, settings.embedding, good),
        centers_work(facts, "seeds", good, seeds),
    ]
    if settings.seed_share < 1:
        train = settings.seed_train or config.train
        own = config.model_copy(update={"train": train})
        needed = passing(settings.beta, above=False)[0] * good
        found += [
            facts.train("tune", seeds, train, "tune", need_to_train(own, config.model)),
            answers_work(facts, settings.generation, good),
            facts.map(
                "necessity",
                "scorer",
                good,
                "score",
                settings.scorer.scorer,
                need_to_answer(config, settings.scorer.scorer),
                basis=guessed,
            ),
            facts.driver("needed", good, needed, written=facts.files(needed)),
            centers_work(facts, "augmented", needed, max(0.0, total - seeds)),
        ]
    return [*found, *score_and_choose(facts, "order"), *facts.after()]


def answers_work(facts: Facts, settings: Any, rows: float) -> Work:
    """Answers of the tuned model. How long they are is known only from a few answers of the untuned one."""
    config, speed = facts.config, facts.speeds["answers"]
    length = answer_length(speed.ends, settings.max_new_tokens)
    if facts.basis == "arithmetic":
        length = min(float(settings.max_new_tokens), 2.0 * float(facts.labels.mean()))
    need = None if facts.engine else need_to_answer(config, config.model)
    work = facts.map("generate", "answers", rows, "generate", config.model, need, row_bytes=ANSWER_BYTES + 3 * length)
    pace = VLLM_STEP if facts.engine else 1.0
    answering = rows * settings.beams * length * speed.step_s * pace
    start = work.start_s + (VLLM_START_S if facts.engine else 0.0)
    blocks = max(1, work.blocks)
    return Work(
        **vars(work)
        | {
            "tokens": work.tokens + rows * length,
            "start_s": start,
            "worker_s": work.worker_s + answering,
            "restart_s": (work.worker_s + answering) / blocks,
            "basis": facts.basis if facts.basis == "arithmetic" else "guessed",
        }
    )


@orders.register
def _order_mods(selector: Mods, config: CommonConfig, seat: Seating, members: list[Any]) -> list[Order]:
    settings = selector.config
    found = [scorer_order(config, settings.scorer, seat), encoder_order(config, settings.embedding, seat)]
    if settings.seed_share < 1:
        train = settings.seed_train or config.train
        resources = seat("generate", config.model, need_to_answer(config, config.model)).resources
        template = settings.generation.template
        arguments = {
            "model": config.model,
            "template": train.template if template == "train" else template,
            "max_new_tokens": settings.generation.max_new_tokens,
            "beams": settings.generation.beams,
        } | loading(config, resources, config.model)
        found += [train_order("tune", config, train, seat), Order("answers", "answers", arguments, Responder)]
    return [*found, *final_order(config, seat)]


@works.register
def _raise(selector: Raise, facts: Facts) -> list[Work]:
    config, settings, rows = facts.config, selector.config, facts.rows
    features, episode, learning = settings.features, settings.episode, settings.learning
    steps = count_policy_steps(settings, config.train, round(facts.budget))
    one = facts.train(
        "final", min(rows, steps * config.train.batch_size), config.train, "train", need_to_train(config, config.model)
    )
    speed, asked = facts.speeds["train"], facts.cut(config.train)
    measured = min(len(facts.members), episode.validation_rows or len(facts.members)) * (1 + episode.report_share)
    validating = measured * facts.speeds["validation"].row_s * steps / episode.validate_every
    training = steps * (config.train.batch_size * speed.seconds(asked) + speed.step_s) + steps * rows * PICK_S
    start = facts.starts.process_s + facts.starts.tokenizer_s + facts.starts.libraries_s + speed.load_s
    tokens = steps * config.train.batch_size * float(asked.mean())
    rounds = learning.rounds * learning.episodes
    base = {"start_s": start, "workers": 1, "restart_s": (training + validating), "written": 2**20}
    learn = Work(
        **vars(one)
        | base
        | {"stage": "learn", "rows": rows, "kept": rows, "tokens": rounds * tokens}
        | {"worker_s": rounds * (training + validating)}
    )
    final = Work(**vars(one) | base | {"tokens": tokens, "worker_s": training + validating, "kept": facts.budget})
    found = [
        facts.ingest(),
        facts.driver("validation", len(facts.members), len(facts.members)),
        facts.driver("likeness", len(facts.members), len(facts.members)),
        facts.tokenising("encode", rows, rows * 5.0 * float(asked.mean()) * 0.5),
        facts.map("difficulty", "difficulty", rows, "score", features.model, need_to_answer(config, features.model)),
        embed_work(facts, features.embedding, rows),
        facts.driver("features", rows, rows, 2.0 + rows * 2e-4, rows * 4.0 * (features.semantic_dimensions + 4)),
    ]
    learned = [] if settings.policy_from else [learn]
    return [*found, *learned, final, *score_and_choose(facts, "order")]


@orders.register
def _order_raise(selector: Raise, config: CommonConfig, seat: Seating, members: list[Any]) -> list[Order]:
    features = selector.config.features
    place = seat("score", features.model, need_to_answer(config, features.model)).resources
    known = {"model": features.model, "template": features.template, "max_length": features.max_length}
    rows, _ = target_rows(members)
    train = config.train
    loss = {"model": config.model, "template": train.template, "max_length": train.max_length}
    return [
        train_order("train", config, train, seat),
        Order("difficulty", "rows", known | loading(config, place, features.model), Difficulty),
        encoder_order(config, features.embedding, seat),
        Order("validation", "rows", loss | loading(config, place, config.model), AnswerLoss, rows),
    ]

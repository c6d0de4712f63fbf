"""Settings that make a method's run shorter, those that lose least first, each with what it loses."""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import numpy as np

from raysift.config import CommonConfig, load_config, replayed
from raysift.jobs.gradients.room import warmup_recipe
from raysift.jobs.planning.facts import Facts
from raysift.methods import Selector
from raysift.methods.coverage import Coverage
from raysift.methods.gradient import GradientSelector
from raysift.methods.mods import Mods
from raysift.methods.quality import Quality
from raysift.methods.raise_policy import Raise
from raysift.methods.rds import Rds

SHORTER = 0.9
"""Share of the rows that a shorter maximum length leaves whole."""


@dataclass(frozen=True)
class Lever:
    """Settings, and what they lose."""

    settings: tuple[str, ...]
    loses: str


def with_settings(config: CommonConfig, overrides: list[str]) -> CommonConfig:
    """The run's settings with some of them changed."""
    return load_config(None, replayed(config) | {"run": config.run}, overrides) if overrides else config


@singledispatch
def levers(selector: Selector, facts: Facts) -> list[Lever]:
    """Ways to a shorter run."""
    return []


def _shorter_rows(facts: Facts, section: str, most: int, cut: str) -> list[Lever]:
    """A maximum length that leaves nine rows of ten whole."""
    length = int(np.quantile(np.minimum(facts.lengths, most), SHORTER))
    length = max(16, -(-length // 16) * 16)
    over = round(float(np.mean(facts.lengths > length)) * facts.rows)
    if length >= min(most, int(facts.lengths.max())):
        return []
    return [Lever((f"{section}={length}",), f"about {over:,} rows are {cut} after {length} tokens")]


@levers.register
def _gradient(selector: GradientSelector, facts: Facts) -> list[Lever]:
    name, settings, config = selector.name, selector.config, facts.config
    train = warmup_recipe(config, settings)
    points = min(settings.checkpoints or train.epochs, train.epochs)
    found = []
    if points > 2:
        half = points // 2
        found.append(
            Lever(
                (f"{name}.checkpoints={half}",),
                f"scores come from the last {half} of {points} checkpoints, and vary more",
            )
        )
    own = f"{name}.warmup.max_length" if settings.warmup else "train.max_length"
    found += _shorter_rows(facts, own, train.max_length, "cut")
    if not settings.warmup_from and settings.warmup_share * facts.rows > 200:
        share = round(settings.warmup_share / 2, 4)
        found.append(
            Lever((f"{name}.warmup_share={share}",), "the model is warmed up on half the rows; gradients tell less")
        )
    if points > 1:
        found.append(Lever((f"{name}.checkpoints=1",), "scores come from the last checkpoint alone, and vary most"))
    if settings.targets.limit == "none" or settings.targets.limit > 32:
        found.append(Lever((f"{name}.targets.limit=32",), "the target is known by 32 of its members"))
    return found


@levers.register
def _similarity(selector: Rds, facts: Facts) -> list[Lever]:
    return _shorter_rows(facts, "train.max_length", facts.config.train.max_length, "cut")


@levers.register
def _quality(selector: Quality, facts: Facts) -> list[Lever]:
    return _scorer(selector, facts)


def _scorer(selector: Any, facts: Facts) -> list[Lever]:
    settings, name = selector.config.scorer, selector.name
    found = _shorter_rows(facts, f"{name}.scorer.max_length", settings.max_length or 2**20, "scored by their beginning")
    if settings.kind == "judge":
        found.append(
            Lever(
                (f"{name}.scorer.kind=reward",),
                "a reward model judges instead of a language model; name it with scorer.model",
            )
        )
    return found


@levers.register
def _coverage(selector: Coverage, facts: Facts) -> list[Lever]:
    if selector.config.centers.mode == "coresets":
        return []
    return [Lever((f"{selector.name}.centers.mode=coresets",), "centres are an approximation of the greedy ones")]


@levers.register
def _mods(selector: Mods, facts: Facts) -> list[Lever]:
    settings = selector.config
    found = []
    if settings.generation.beams > 1:
        found.append(
            Lever(("mods.generation.beams=1",), "answers are greedy, not by beam search as in the official code")
        )
    if settings.seed_share < 1:
        most = settings.generation.max_new_tokens
        if most > 64:
            found.append(
                Lever(
                    (f"mods.generation.max_new_tokens={most // 2}",),
                    "more answers are cut off, and judged as they are then",
                )
            )
    if (share := settings.alpha.quantile) is not None and share < 0.75:
        found.append(Lever(("mods.alpha.quantile=0.75",), "only the best quarter counts as good, and may be chosen"))
    found += _scorer(selector, facts)
    if settings.seed_share < 1:
        found.append(
            Lever(("mods.seed_share=1",), "no answers: rows are good and diverse, but may be known to the model")
        )
    return found


@levers.register
def _raise(selector: Raise, facts: Facts) -> list[Lever]:
    settings = selector.config
    episode, learning = settings.episode, settings.learning
    found = []
    if (episode.validation_rows or 10**6) > 100 and len(facts.members) > 100:
        found.append(
            Lever(("raise.episode.validation_rows=100",), "progress is measured on fewer examples, with more noise")
        )
    found += _shorter_rows(facts, "train.max_length", facts.config.train.max_length, "cut")
    if episode.validate_every < 4:
        found.append(Lever(("raise.episode.validate_every=4",), "four steps share each reward"))
    if learning.rounds > 5:
        half = max(5, learning.rounds // 2)
        found.append(
            Lever((f"raise.learning.rounds={half}",), f"the policy learns in {half} rounds of {learning.rounds}")
        )
    return found

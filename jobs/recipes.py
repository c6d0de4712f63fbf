"""The stage list of each method, readable as a recipe. A method without an entry of its own is a yardstick."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raysift.budget import parse_budget
from raysift.config import CommonConfig
from raysift.jobs import stages
from raysift.jobs.run import Run
from raysift.manifest import Manifest
from raysift.methods import find_method


@dataclass(frozen=True)
class Pool:
    """A dataset handed over in Python, with the name under which it counts as the same data."""

    dataset: Any = None
    name: str | None = None


def yardstick(run: Run, config: CommonConfig, pool: Pool) -> Manifest:
    """Score each row by itself, take the best."""
    method = find_method(str(config.method))
    selector = method(getattr(config, method.name), config.seed)
    rows = stages.ingest(run, config, pool.dataset, pool.name)
    needs_lengths = bool(selector.reads) or parse_budget(config.budget).counts_tokens
    lengths = stages.lengths(run, config, rows) if needs_lengths else None
    scores = stages.score(run, config, selector, rows, lengths if selector.reads else None)
    return stages.choose(run, config, selector, rows, scores, lengths)


RECIPES: dict[str, Callable[[Run, CommonConfig, Pool], Manifest]] = {}


def run_method(run: Run, config: CommonConfig, pool: Pool | None = None) -> Manifest:
    """The whole journey: select, and where asked train on the selection and evaluate. Gives the selection's manifest."""
    run.save_config(config.model_dump(mode="json", exclude={"run"}))
    selected = RECIPES.get(str(config.method), yardstick)(run, config, pool or Pool())
    if config.train_on_selection:
        trained = stages.finetune(run, config, selected)
        if config.test:
            stages.evaluate(run, config, trained)
    return selected

"""The stage list of each method, readable as a recipe. A method without an entry of its own is a yardstick."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raysift.budget import parse_budget
from raysift.config import CommonConfig
from raysift.jobs import gradients, stages, store, store_match
from raysift.jobs.run import Run
from raysift.manifest import Manifest
from raysift.methods import Selector, find_method
from raysift.storage import Location


@dataclass(frozen=True)
class Pool:
    """A dataset handed over in Python, with the name under which it counts as the same data."""

    dataset: Any = None
    name: str | None = None


def yardstick(run: Run, config: CommonConfig, pool: Pool) -> Manifest:
    """Score each row by itself, take the best."""
    selector = make_selector(config)
    rows = stages.ingest(run, config, pool.dataset, pool.name)
    needs_lengths = bool(selector.reads) or parse_budget(config.budget).counts_tokens
    lengths = stages.lengths(run, config, rows) if needs_lengths else None
    scores = stages.score(run, config, selector, rows, lengths if selector.reads else None)
    return stages.choose(run, config, selector, rows, scores, lengths)


def by_gradient(run: Run, config: CommonConfig, pool: Pool) -> Manifest:
    """ROSE and LESS: warm up on a random share, match each row's gradient with the target's at every checkpoint."""
    selector = make_selector(config)
    settings: Any = selector.config
    rows = stages.ingest(run, config, pool.dataset, pool.name)
    lengths = stages.lengths(run, config, rows) if parse_budget(config.budget).counts_tokens else None
    warm_rows = gradients.warmup_rows(run, config, settings, rows)
    warm = gradients.warmup(run, config, settings, warm_rows)
    return match_and_choose(run, config, rows, warm, lengths, store.store_place(run, config))


def match_and_choose(
    run: Run, config: CommonConfig, rows: Manifest, warm: Manifest, lengths: Manifest | None, place: Location
) -> Manifest:
    """The second half, which `raysift rescore` repeats for other targets: exactly, or over the store at `place`."""
    selector = make_selector(config)
    settings: Any = selector.config
    target = gradients.targets(run, config, settings, selector, warm)
    if settings.matching == "store":
        kept = store.store_of(run, config, settings, warm, target, place)
        stored = store.fill(run, config, settings, rows, kept)
        matched = store_match.match(run, config, rows, target, stored, kept)
    else:
        matched = gradients.gradients(run, config, settings, rows, warm, target)
    scores = gradients.influence(run, config, settings, selector, rows, warm, target, matched)
    return stages.choose(run, config, selector, rows, scores, lengths)


def make_selector(config: CommonConfig) -> Selector:
    """The configured selector of the run's method."""
    method = find_method(str(config.method))
    return method(getattr(config, method.name), config.seed)


RECIPES: dict[str, Callable[[Run, CommonConfig, Pool], Manifest]] = {"less": by_gradient, "rose": by_gradient}


def run_method(run: Run, config: CommonConfig, pool: Pool | None = None) -> Manifest:
    """The whole journey: select, and where asked train on the selection and evaluate. Gives the selection's manifest."""
    with run.replayable(config.model_dump(mode="json", exclude={"run"})):
        selected = RECIPES.get(str(config.method), yardstick)(run, config, pool or Pool())
        if config.train_on_selection:
            trained = stages.finetune(run, config, selected)
            if config.test:
                stages.evaluate(run, config, trained)
    return selected

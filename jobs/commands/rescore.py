"""`raysift rescore RUN --target NEW`: the stored rows of a run against other targets, as a run of its own.

The new run reuses rows, warm-up and vectors of the old one, whose pool need not be there any more. Only the new targets'
gradients need the model. Its `run.yaml` is complete: replayed, it does the whole journey for the new targets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raysift.config import CommonConfig, make_selector, replayed
from raysift.errors import ConfigError, DataError, StaleRunError
from raysift.fingerprint import differences
from raysift.jobs import stages
from raysift.jobs.gradients.matching import match_and_choose
from raysift.jobs.gradients.store import filled_store
from raysift.jobs.gradients.targeting import like_pool, read_targets
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.reuse import read_events, sources_of
from raysift.jobs.runs.run import Run, free_name, open_run
from raysift.manifest import Manifest
from raysift.methods import METHODS
from raysift.methods.gradient import GradientSelector
from raysift.settings.budget import parse_budget
from raysift.storage import extend_name, open_location

# What may differ from the run whose rows, warm-up and vectors are read; all other settings decided those.
OWN_SETTINGS = {
    "target",
    "budget",
    "output_format",
    "train_on_selection",
    "train",
    "test",
    "evaluate",
    "win_rate",
    "search",
    "resources",
}
OWN_OF_METHOD = {"checkpoints", "targets", "match"}


def rescore(
    source: str,
    target: Sequence[str],
    run: str,
    *,
    budget: str | None = None,
    overrides: Sequence[str] = (),
    console: Console | None = None,
    reuse: Sequence[str] = (),
    start: Callable[[], None] = lambda: None,
) -> tuple[Run, Manifest]:
    """Select for other targets from the vectors that a run with `matching: store` has kept; it is reused, and `reuse` after it.

    Returns the new run, named by `run`, and its selection.
    """
    opened = open_run(source, console)
    changes = {"target": list(target), "run": run, "train_on_selection": False, "reuse": list(reuse)}
    config = opened.config(changes | ({"budget": budget} if budget else {}), overrides)
    store = _store_of_vectors(opened, config, source)
    if read_events(open_location(run)) and not sources_of(open_location(run)):
        raise ConfigError(f"rescore: {run} is a run already, and none that was rescored. Give another name with --run.")
    selector = _by_gradient(config, source)
    found = read_targets(config, selector)
    this_run = Run(run, console, [source, *config.reuse], start)
    with this_run.replayable(replayed(config)):
        rows, _, warm = (this_run.adopt(stage, source) for stage in ("ingest", "warmup_rows", "warmup"))
        assert rows is not None
        assert warm is not None
        like_pool(this_run, config, selector, found, rows)
        lengths = stages.lengths(this_run, config, rows) if parse_budget(config.budget).counts_tokens else None
        return this_run, match_and_choose(this_run, config, selector, found, rows, warm, lengths, store)


def rescored_name(source: str) -> str:
    """The name of the new run where none is given."""
    return free_name(extend_name(source, "-rescored"))


def _by_gradient(config: CommonConfig, name: str) -> GradientSelector:
    selector = make_selector(config) if config.method else None
    if isinstance(selector, GradientSelector):
        return selector
    known = ", ".join(method for method, found in METHODS.items() if issubclass(found, GradientSelector))
    raise ConfigError(f"rescore: {name} is a run of '{config.method}', which has no gradients. Known: {known}.")


def _store_of_vectors(source: Run, config: CommonConfig, name: str) -> str:
    """Where the store of the run is; raises where there is none to rescore from."""
    made_with = source.config()
    selector = _by_gradient(made_with, name)
    if selector.config.matching != "store":
        raise ConfigError(
            f"rescore: {name} matched as it went ({made_with.method}.matching=exact) and kept no gradients. Run it under "
            f"another name with {made_with.method}.matching=store, then rescore that run."
        )
    _require_same_vectors(made_with, config, selector, name)
    found = {stage: source.manifest(stage) for stage in ("ingest", "warmup", "gradients")}
    stored = found["gradients"]
    if stored is None or None in found.values():
        missing = ", ".join(stage for stage, manifest in found.items() if manifest is None)
        raise DataError(f"rescore: {name} has no finished {missing}. Finish it with the command that began it.")
    store = config.resources.store or filled_store(source, stored)
    if not open_location(store).exists():
        raise DataError(
            f"rescore: the store {store} is gone, so {name} has no gradients any more. Put it back, or name the folder where it "
            "is now with resources.store=..."
        )
    return store


def _require_same_vectors(made_with: CommonConfig, config: CommonConfig, selector: GradientSelector, name: str) -> None:
    """Refuses settings that would give other rows, another warm-up or other vectors than those that are read."""
    free, own = OWN_SETTINGS | METHODS.keys(), OWN_OF_METHOD.union(selector.of_target)
    if selector.config.warmup is None:
        free -= {"train"}  # it was the warm-up's recipe
    old, new = (
        one.model_dump(mode="json", exclude=free)
        | {selector.name: getattr(one, selector.name).model_dump(mode="json", exclude=own)}
        for one in (made_with, config)
    )
    if changed := differences(old, new):
        lines = "\n".join(f"  {line}" for line in changed)
        raise StaleRunError(f"rescore: rescore takes these from {name}; start a new run to change them:\n{lines}")

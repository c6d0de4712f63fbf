"""`raysift rescore RUN --target NEW`: the stored rows of a run against other targets, as a run of its own.

The new run reads rows, warm-up and vectors where the old one left them. Only the new targets' gradients need the model. Its
`run.yaml` is complete: replayed, it does the whole journey for the new targets.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import yaml

from raysift.budget import parse_budget
from raysift.config import CommonConfig, load_config
from raysift.errors import ConfigError, DataError, StaleRunError
from raysift.fingerprint import differences
from raysift.jobs import stages
from raysift.jobs.api import Selection
from raysift.jobs.console import Console
from raysift.jobs.gradients.store import store_place
from raysift.jobs.recipes import make_selector, match_and_choose
from raysift.jobs.run import CONFIG, EVENTS, Run, free_name, open_run
from raysift.jobs.show import show_selection
from raysift.manifest import Manifest, read_manifest
from raysift.methods import METHODS
from raysift.methods.gradient import GradientConfig
from raysift.storage import Location, open_location

SOURCE_RUN = "rescored_from.json"

# What may differ from the run whose rows, warm-up and vectors are read; all other settings decided those.
OWN_SETTINGS = {
    "target",
    "budget",
    "run",
    "output_format",
    "train_on_selection",
    "train",
    "test",
    "evaluate",
    "win_rate",
    "search",
    "resources",
}
OWN_OF_METHOD = {"checkpoints", "targets", "match", "preference", "end_prompt"}


class BorrowingRun(Run):
    """A run that reads the stages it has not done itself from the run it came from."""

    def __init__(self, folder: str | Location, source: Run, console: Console | None = None) -> None:
        super().__init__(folder, console)
        self.source = source

    def files(self, manifest: Manifest, kind: str) -> list[Location]:
        own = read_manifest(self.folder / manifest.stage)
        if own and own.fingerprint == manifest.fingerprint:
            return super().files(manifest, kind)
        return self.source.files(manifest, kind)


def open_any_run(name: str, console: Console | None = None) -> Run:
    """An existing run, also one that came from another by rescoring."""
    place = open_location(name) / SOURCE_RUN
    if not place.exists():
        return open_run(name, console)
    return BorrowingRun(name, open_any_run(json.loads(place.read_text())["run"], console), console)


def find_manifest(run: Run, *stage_names: str) -> Manifest | None:
    """The manifest of the first of these stages that is finished, here or in the run this one came from."""
    found = next((m for name in stage_names if (m := read_manifest(run.folder / name))), None)
    return find_manifest(run.source, *stage_names) if found is None and isinstance(run, BorrowingRun) else found


def config_of(run: Run, changes: dict[str, object] | None = None, overrides: Sequence[str] = ()) -> CommonConfig:
    """The settings that a run was made with, some of them changed."""
    place = run.folder / CONFIG
    if not place.exists():
        raise ConfigError(f"run: {run.folder} has no {CONFIG}, so nothing tells how it was made.")
    return load_config(None, yaml.safe_load(place.read_text()) | (changes or {}), overrides)


def rescore(
    run: str,
    target: str | Sequence[str],
    *,
    new_run: str | None = None,
    budget: str | None = None,
    overrides: Sequence[str] = (),
    console: Console | None = None,
) -> Selection:
    """Select for other targets from the vectors that a run with `matching: store` has kept."""
    source = open_any_run(run, console)
    name = new_run or free_name(f"{run.rstrip('/')}-rescored")
    changes = {
        "target": [target] if isinstance(target, str) else list(target),
        "run": name,
        "train_on_selection": False,
    }
    config = config_of(source, changes | ({"budget": budget} if budget else {}), overrides)
    rows, warm, place = _what_is_kept(source, config, run)
    if (open_location(name) / EVENTS).exists() and not (open_location(name) / SOURCE_RUN).exists():
        raise ConfigError(
            f"rescore: {name} is a run already, and none that was rescored. Give another name with --run."
        )
    this_run = BorrowingRun(name, source, console)
    (this_run.folder / SOURCE_RUN).write(json.dumps({"run": _absolute(run)}) + "\n")
    lengths = None
    with this_run.replayable(config.model_dump(mode="json", exclude={"run"})):
        if parse_budget(config.budget).counts_tokens:
            lengths = find_manifest(source, "lengths")
            if lengths is None or lengths.settings["template"] != config.train.template:
                lengths = stages.lengths(this_run, config, rows)
        return Selection(this_run, match_and_choose(this_run, config, rows, warm, lengths, place))


def rescore_command(
    run: str, target: Sequence[str], new_run: str | None, budget: str | None, overrides: Sequence[str], console: Console
) -> None:
    """Rescore in a Ray session of its own, and show what was chosen."""
    from raysift.jobs.api import own_session

    with own_session():
        selection = rescore(run, target, new_run=new_run, budget=budget, overrides=overrides, console=console)
    show_selection(selection.run, selection.manifest, console)
    console.note(f"run: {selection.run.folder}")


def _what_is_kept(source: Run, config: CommonConfig, name: str) -> tuple[Manifest, Manifest, Location]:
    """Rows and warm-up of the run, and its store; raises where there is none to rescore from."""
    made_with = config_of(source)
    settings = make_selector(made_with).config if made_with.method else None
    if not isinstance(settings, GradientConfig):
        raise ConfigError(
            f"rescore: {name} is a run of '{made_with.method}', which has no gradients. Known: less, rose."
        )
    if settings.matching != "store":
        raise ConfigError(
            f"rescore: {name} matched as it went ({made_with.method}.matching=exact) and kept no gradients. Run it under "
            f"another name with {made_with.method}.matching=store, then rescore that run."
        )
    _require_same_vectors(made_with, config, name)
    found = [find_manifest(source, stage) for stage in ("ingest", "warmup", "gradients")]
    place = store_place(_root(source), config)
    if None in found or not place.exists():
        raise DataError(
            f"rescore: {name} has no finished gradients, or its store {place} is gone. Finish it with the command that began it."
        )
    rows, warm, _ = found
    assert rows is not None
    assert warm is not None
    return rows, warm, place


def _require_same_vectors(made_with: CommonConfig, config: CommonConfig, name: str) -> None:
    """Refuses settings that would give other rows, another warm-up or other vectors than those that are read."""
    method, free = str(made_with.method), OWN_SETTINGS | METHODS.keys()
    if getattr(made_with, method).warmup is None:
        free -= {"train"}  # it was the warm-up's recipe
    old, new = (
        one.model_dump(mode="json", exclude=free)
        | {method: getattr(one, method).model_dump(mode="json", exclude=OWN_OF_METHOD)}
        for one in (made_with, config)
    )
    if changed := differences(old, new):
        lines = "\n".join(f"  {line}" for line in changed)
        raise StaleRunError(f"rescore: rescore takes these from {name}; start a new run to change them:\n{lines}")


def _root(run: Run) -> Run:
    """The run that began it all, in whose folder the store is by default."""
    return _root(run.source) if isinstance(run, BorrowingRun) else run


def _absolute(name: str) -> str:
    place = open_location(name)
    return place.path if place.is_local else name

"""What all calls share: settings from arguments, the run's folder, rows in memory, Ray, and nothing left of a refused call."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike, fspath
from typing import Any

from raysift.config import CommonConfig, RunConfig, lay_over, make_config, replayed
from raysift.errors import ConfigError
from raysift.jobs.api.inputs import GIVEN, Held, is_ray_dataset, read_given
from raysift.jobs.api.progress import console_for, no_widget_notices
from raysift.jobs.api.words import python_words
from raysift.jobs.cluster.machines import gpus_in_reach
from raysift.jobs.cluster.session import start_session
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.replay import name_from_anywhere
from raysift.jobs.runs.reuse import EVENTS, is_run
from raysift.jobs.runs.run import Run, free_name, open_run
from raysift.methods import METHODS
from raysift.storage import Location, extend_name, open_location

RunName = str | PathLike[str]
ROLES = ("pool", "target", "test")
_GIVEN = re.compile(rf".*/{GIVEN}/([0-9a-f]+/\w+\.\w+)$")


@contextlib.contextmanager
def begin(
    command: str,
    settings: Mapping[str, Any],
    given: Mapping[str, Any],
    run: RunName | None = None,
    fresh: bool = False,
    log: str | None = None,
    pool_name: str | None = None,
) -> Iterator[tuple[Run, CommonConfig]]:
    """Yield a run and its checked settings; the first stage starts or joins Ray.

    `given` holds pool, target and test as they were given; None stands for nothing. Without `run`, see `folder_for`. What a call
    needs of the other modules is imported inside the block, so that nothing is heard of Ray's import in a notebook.
    """
    console = console_for(log)
    with python_words(), no_widget_notices(), contextlib.ExitStack() as stack:
        if pool_name is not None and not is_ray_dataset(given.get("pool")):
            raise ConfigError("config: 'pool_name' is for a ray.data.Dataset; all else is known by its content.")
        with tempfile.TemporaryDirectory(prefix="raysift-") as work:
            found = {role: read_given(role, one, work) for role, one in named_rows(given).items()}
            nameless = is_ray_dataset(given.get("pool")) and pool_name is None
            folder = folder_for(command, settings, found, run, fresh, nameless, console)
            config = make_config(with_rows(settings, found, folder) | {"run": folder}, gpus_in_reach)
            opened = Run(config.run, console, config.reuse, lambda: start(console))
            held = [one for one in found.values() if isinstance(one, Held)]
            stack.enter_context(without_leftovers(opened, held))
        yield opened, config


def named_rows(given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, without what was not, and without a Ray dataset as the pool: ingest reads it by itself."""
    return {
        role: one for role, one in given.items() if one is not None and not (role == "pool" and is_ray_dataset(one))
    }


def with_rows(settings: Mapping[str, Any], found: Mapping[str, list[str] | Held], folder: str) -> dict[str, Any]:
    """The settings with names of files for pool, target and test."""
    names = {role: [one.place(folder)] if isinstance(one, Held) else one for role, one in found.items()}
    return {**nested(settings), **names}


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by section: `{"ingest.format": "alpaca"}` means `{"ingest": {"format": "alpaca"}}`; paths become text."""
    values: dict[str, Any] = {}
    for key, value in settings.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        values = lay_over(values, value)
    found: dict[str, Any] = _plain(values)
    return found


def in_section(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with the method's own ones, such as `warmup_share`, in its section. No common setting has such a name."""
    own = {"preset", *METHODS[method].Config.model_fields} - RunConfig.model_fields.keys()
    values = nested(settings)
    section = {key: values.pop(key) for key in [*values] if key in own}
    return lay_over(values, {method: section}) if section else values


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return fspath(value) if isinstance(value, PathLike) else value


def folder_for(
    command: str,
    settings: Mapping[str, Any],
    found: Mapping[str, list[str] | Held],
    run: RunName | None,
    fresh: bool,
    nameless: bool,
    console: Console,
) -> str:
    """The named folder; else `runs/COMMAND`, or the first of `runs/COMMAND-2`, ... that is free or holds this very call.

    So a cell that is run again continues, and one that was changed begins a run of its own. `nameless` data is never known
    to be the same.
    """
    folder = f"runs/{command}" if run is None else fspath(run)
    if fresh or (run is None and nameless):
        return free_name(folder)
    if run is not None:
        return folder
    wanted = _identity(replayed(make_config(with_rows(settings, found, folder), gpus_in_reach)))
    number, candidate = 1, folder
    while open_location(candidate).exists() and not _holds(candidate, wanted):
        number += 1
        candidate = extend_name(folder, f"-{number}")
    if number > 1 and not open_location(candidate).exists():
        console.note(f"{folder} holds results of other settings or data; this call writes to {candidate}")
    return candidate


def _holds(folder: str, wanted: Any) -> bool:
    return is_run(folder) and _identity(open_run(folder).made_with() or {}) == wanted


def _identity(settings: Mapping[str, Any]) -> Any:
    """Settings with names that mean the same in any folder, and rows in memory by their content."""

    def known(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: known(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [known(one) for one in value]
        return _GIVEN.sub(r"\1", value) if isinstance(value, str) else value

    return known(name_from_anywhere(settings))


@contextlib.contextmanager
def without_leftovers(opened: Run, held: Iterable[Held]) -> Iterator[None]:
    """Put rows in memory into the run's folder; an error before the first stage takes them away again, and a new folder too."""
    before, missing = _events(opened), _missing(opened.folder)
    written: list[Location] = []
    try:
        for one in held:
            opened.claim()
            if place := one.keep(opened.name):
                written.append(place)
        yield
    except BaseException:
        if written and _events(opened) == before:
            for place in written:
                place.parent.delete()
            if missing:
                opened.folder.delete()
            for folder in missing[1:]:
                with contextlib.suppress(OSError):  # somebody else's files may lie there by now
                    os.rmdir(folder)
        raise


def _events(opened: Run) -> int:
    return (opened.folder / EVENTS).size()


def _missing(folder: Location) -> list[str]:
    """The folder and those above it, as far as they are not there yet."""
    found = []
    while folder.path.strip("/") and not folder.exists():
        found.append(folder.path)
        if not folder.is_local:
            break
        folder = folder.parent
    return found


def start(console: Console) -> None:
    """Join the running Ray, or start one that ends with the process."""
    start_session(console)


def as_overrides(settings: Mapping[str, Any], at: str = "") -> list[str]:
    """Settings as `section.key=value`, to lay over those of a run as the command line does."""
    found: list[str] = []
    for key, value in settings.items():
        deeper = isinstance(value, Mapping) and value
        found += as_overrides(value, f"{at}{key}.") if deeper else [f"{at}{key}={json.dumps(value)}"]
    return found

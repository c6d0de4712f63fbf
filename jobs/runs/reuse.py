"""Reuse of other runs: which runs are named, which of their stages count here, and whether the files still exist.

A reused stage has a manifest in the new run's folder like any other; it names the run that computed the stage and holds its
files. It always points at that run, never at an intermediate one, so no run depends on one that only passed the stage on.
`reuse.json` keeps the names of the runs, so the same command can continue after a kill.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from os import PathLike, fspath
from typing import Any

from raysift.errors import ConfigError, DataError
from raysift.manifest import Manifest, changes, read_manifest
from raysift.storage import Location, open_location

EVENTS, CONFIG, REUSED = "events.jsonl", "run.yaml", "reuse.json"
SHOWN_CHANGES, CHANGE_WIDTH = 3, 80


def run_name(folder: str | PathLike[str] | Location) -> str:
    """A name for the run that works from any folder: the absolute path on a disk, else the URI as given."""
    place = open_location(folder)
    return place.path.rstrip("/") if place.is_local or isinstance(folder, Location) else fspath(folder)


def is_run(name: str) -> bool:
    """Whether this is a run folder."""
    return (open_location(name) / EVENTS).exists()


def check_sources(names: Sequence[str], folder: Location) -> list[str]:
    """Return the runs named with --reuse, without duplicates, under names from `run_name`; raise if one is no run."""
    for name in names:
        if not is_run(name):
            raise ConfigError(
                f"reuse: '{name}' is no run folder (it has no {EVENTS}). Check the name given to --reuse."
            )
        place = open_location(name)
        if place.fs == folder.fs and place.path.rstrip("/") == folder.path.rstrip("/"):
            raise ConfigError(f"reuse: '{name}' is this run itself. Give the new run another name with --run.")
    return list(dict.fromkeys(run_name(name) for name in names))


def record_sources(folder: Location, names: Sequence[str]) -> None:
    """Save the names in the run's folder, replacing earlier ones."""
    (folder / REUSED).write(json.dumps({"runs": list(names)}) + "\n")


def sources_of(folder: Location) -> list[str]:
    """The runs from which a run takes stages."""
    place = folder / REUSED
    if not place.exists():
        return []
    try:
        return [str(name) for name in json.loads(place.read_bytes())["runs"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"reuse: {place} does not name the runs that this run reuses: {type(error).__name__}: {error}. Delete it, and "
            "name them with --reuse; without it the stages that were taken over stay so."
        ) from error


def read_events(folder: Location) -> list[dict[str, Any]]:
    """The events in a run's log; damaged lines are skipped."""
    found = []
    for line in (folder / EVENTS).read_bytes().splitlines() if (folder / EVENTS).exists() else []:
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            found += [event] if isinstance(event, dict) and event.get("stage") and event.get("event") else []
    return found


def lineage(names: Sequence[str]) -> list[str]:
    """These runs, the runs they reuse, and so on, without duplicates; missing runs are skipped."""
    found: list[str] = []
    left = list(names)
    while left:
        name = left.pop(0)
        if name not in found and is_run(name):
            found.append(name)
            left += sources_of(open_location(name))
    return found


def find_finished(
    folder: Location, stage: str, identity: str, own: Manifest | None, sources: Sequence[str]
) -> Manifest | None:
    """Find an undamaged stage with that fingerprint in another run.

    `own`, if the stage was already taken over, comes first, then `sources` in order; the search stops at the first match.
    Raises if a run that has the stage, or may have it, is damaged or missing and no other run has it: work of hours is never
    repeated silently.
    """
    gone: list[str] = []
    damaged: list[Manifest] = []
    unreadable: list[DataError] = []
    for name in (None, *sources):
        try:
            found = finished_by(name, stage) if name else own
            if found and found.fingerprint == identity:
                if found.damage() is None:
                    return found
                damaged.append(found)
        except DataError as error:
            unreadable.append(error)
            continue
        if name and not found and not is_run(name):
            gone.append(name)
    damaged = [found for found in damaged if found.reused_from not in gone]
    if gone or damaged:
        raise DataError(f"{stage}: {_tell_lost(folder, stage, own, gone, damaged)}")
    if unreadable:
        raise unreadable[0]
    return None


def finished_by(name: str, stage: str) -> Manifest | None:
    """A finished stage of another run, marked as reused from the run that computed it."""
    found = read_manifest(open_location(name) / stage)
    return found if found is None or found.reused_from else found.model_copy(update={"reused_from": run_name(name)})


def tell_changes(sources: Sequence[str], stage: str, settings: dict[str, Any], inputs: dict[str, Any]) -> str | None:
    """How the wanted stage differs from that of the first run that has it; None if no run has it."""
    found = next((found for name in sources if (found := finished_by(name, stage))), None)
    if found is None:
        return None
    lines = sorted(changes(found, settings, inputs), key=lambda line: line.startswith("inputs"))
    told = [line if len(line) <= CHANGE_WIDTH else line.partition(":")[0] for line in lines[:SHOWN_CHANGES]]
    return "; ".join(told + ["..."] * (len(lines) > SHOWN_CHANGES))


def _tell_lost(
    folder: Location, stage: str, own: Manifest | None, gone: Sequence[str], damaged: Sequence[Manifest]
) -> str:
    """The message about missing files, with both ways out: restore them, or repeat the stage."""
    lost = [f"{name}, which this run reuses, is not there any more" for name in gone]
    lost += [f"{found.reused_from} has done this stage, but {found.damage()}" for found in damaged]
    ties = [folder / REUSED] if gone else [found.home for found in damaged if found.home.exists()]
    ties += [folder / stage] if own else []
    return (
        f"{'; '.join(dict.fromkeys(lost))}. Put it back, or name with --reuse the run where it is now. To do the stage again "
        f"instead, delete {' and '.join(dict.fromkeys(map(str, ties)))}{' and leave out --reuse' if gone else ''}."
    )

"""A run folder: one folder a stage, a manifest written last in each, and what happened in `events.jsonl`.

A stage writes into `NAME/STAGE/FINGERPRINT/`, where a killed attempt with the same settings continues and other settings
cannot be mixed in; `NAME/STAGE/manifest.json` commits it and names the files that count. Asked again with the same
fingerprint a stage is skipped; with another one the run stops and prints the fields that differ.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import yaml

from raysift.errors import ConfigError, find_cause
from raysift.fingerprint import canonical, fingerprint
from raysift.jobs.console import Console
from raysift.manifest import Manifest, installed_versions, read_manifest, require_same, write_manifest
from raysift.storage import Location, open_location

EVENTS = "events.jsonl"
CONFIG = "run.yaml"


@dataclass(frozen=True)
class StageResult:
    """What a stage's body gives back: files relative to the folder it was given, counts that add up, values."""

    files: Mapping[str, list[str]] = field(default_factory=dict)
    counts: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    rows: int | None = None


class Run:
    """A named run on local disk or an object store."""

    def __init__(self, folder: str | Location, console: Console | None = None) -> None:
        self.folder = open_location(folder).make_folder()
        self.console = console or Console("quiet")
        events = self.folder / EVENTS
        self._events = events.read_text().splitlines() if events.exists() else []

    def stage(
        self,
        name: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Any],
        body: Callable[[Location], StageResult],
        version: int = 1,
    ) -> Manifest:
        """Do the stage, or give its manifest when it is done already with these settings and inputs.

        `settings` and `inputs` hold all that decides the result and nothing else; `version` is raised when the code of
        the stage changes what it gives.
        """
        home = self.folder / name
        wanted_settings, wanted_inputs = canonical(dict(settings)), canonical(dict(inputs))
        identity = fingerprint({"settings": wanted_settings, "inputs": wanted_inputs, "version": version})
        done = read_manifest(home)
        if done and done.fingerprint == identity:
            self.record("skipped", name, fingerprint=identity)
            return done
        if done:
            require_same(done, wanted_settings, wanted_inputs, str(self.folder))
        work = home / identity
        self.record("continued" if work.exists() else "started", name, fingerprint=identity)
        started, clock = datetime.now(UTC), time.perf_counter()
        try:
            result = body(work.make_folder())
        except Exception as error:
            cause = find_cause(error)
            self.record("failed", name, error=str(cause) if cause else type(error).__name__)
            if cause is not None and cause is not error:
                raise cause from error
            raise
        except BaseException as error:
            self.record("failed", name, error=type(error).__name__)
            raise
        seconds = time.perf_counter() - clock
        manifest = Manifest(
            stage=name,
            fingerprint=identity,
            settings=wanted_settings,
            inputs=wanted_inputs,
            files={kind: [f"{identity}/{file}" for file in files] for kind, files in result.files.items()},
            counts=dict(result.counts),
            values=dict(result.values),
            versions=installed_versions(),
            started=started.isoformat(timespec="seconds"),
            seconds=round(seconds, 3),
            rows_per_second=round(result.rows / seconds, 1) if result.rows else None,
        )
        write_manifest(home, manifest)
        self.record("finished", name, seconds=round(seconds, 1), **manifest.counts)
        return manifest

    def files(self, manifest: Manifest, kind: str) -> list[Location]:
        """The files of a kind that a stage of this run left."""
        return manifest.locations(self.folder / manifest.stage, kind)

    def record(self, event: str, stage: str, **fields: Any) -> None:
        """Add an event to the run's log and say it."""
        self.console.event(event, stage, **fields)
        line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "stage": stage, "event": event, **fields}
        self._events.append(json.dumps(line, default=str))
        # An object store cannot append; the log is short, so it is written whole each time.
        (self.folder / EVENTS).write("\n".join(self._events) + "\n")

    @contextlib.contextmanager
    def replayable(self, config: Mapping[str, Any]) -> Iterator[None]:
        """Keep `run.yaml`, which replays the run: `raysift METHOD --config run.yaml --run NEW`.

        Written before the first stage, so that a killed run has it, and again after the last one; settings that the run
        refuses never take the place of those it was made with.
        """
        place, text = self.folder / CONFIG, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        if not place.exists():
            place.write(text)
        yield
        place.write(text)

    def manifests(self) -> list[Manifest]:
        """Manifests of the finished stages, in the order in which they were first started."""
        order: list[str] = []
        for line in self._events:
            stage = json.loads(line).get("stage")
            if stage and stage not in order:
                order.append(stage)
        found = [read_manifest(self.folder / stage) for stage in order]
        return [manifest for manifest in found if manifest]


def open_run(folder: str, console: Console | None = None) -> Run:
    """An existing run, to look at."""
    place = open_location(folder)
    if not (place / EVENTS).exists():
        raise ConfigError(f"run: '{folder}' is no run folder (it has no {EVENTS}). Check the name given to --run.")
    return Run(place, console)


def free_name(folder: str) -> str:
    """The folder itself if it is not there yet, else the first of NAME-2, NAME-3, ... that is not."""
    name, number = folder.rstrip("/"), 1
    candidate = name
    while open_location(candidate).exists():
        number += 1
        candidate = f"{name}-{number}"
    return candidate

"""A run folder: one folder per stage, each with a manifest that is written last, and a log of events in `events.jsonl`.

A stage writes into `NAME/STAGE/FINGERPRINT/`, so a killed attempt with the same settings continues there and other settings
cannot mix in. `NAME/STAGE/manifest.json` commits the stage and names the files that count. A repeated stage with the same
fingerprint is skipped; with another fingerprint the run stops and prints the fields that differ. If a run named with `reuse`
has finished the stage with that fingerprint, the stage is reused: its manifest is copied, its files stay where they are.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import yaml

from raysift.config import CommonConfig, load_config
from raysift.errors import ConfigError, DataError, find_cause, system_words
from raysift.fingerprint import canonical, fingerprint
from raysift.jobs.cluster.machines import gpus_in_reach
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.following import Follow
from raysift.jobs.runs.lease import Lease, take
from raysift.jobs.runs.peaks import stage_peaks
from raysift.jobs.runs.progress import Bar
from raysift.jobs.runs.replay import name_from_anywhere
from raysift.jobs.runs.reuse import (
    CONFIG,
    EVENTS,
    check_sources,
    find_finished,
    finished_by,
    read_events,
    record_sources,
    run_name,
    sources_of,
    tell_changes,
)
from raysift.jobs.runs.stage_names import WHAT_IT_DOES
from raysift.manifest import (
    MANIFEST,
    Manifest,
    installed_versions,
    read_manifest,
    require_same,
    settle,
    write_manifest,
)
from raysift.pool.id_text import exact
from raysift.storage import Location, extend_name, in_parallel, open_location, refuse_passwords

CHANGES_NOTHING = ("skipped", "reused")


@dataclass(frozen=True)
class StageResult:
    """What a stage's body returns: files relative to its folder, counts that add up, values."""

    files: Mapping[str, list[str]] = field(default_factory=dict)
    counts: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    rows: int | None = None


class Run:
    """A named run on local disk or an object store, and the runs from which it reuses identical stages.

    Without `reuse`, the runs named in an earlier call are used. `start` prepares what the bodies of stages need, such as
    Ray. It is called before each body, so a run whose stages are all done does not call it. The folder is made when the
    first stage begins, so a refused command leaves no trace.
    """

    def __init__(
        self,
        folder: str | Location,
        console: Console | None = None,
        reuse: Sequence[str] = (),
        start: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder = require_own(folder)
        named = check_sources(reuse, self.folder)
        self.name = run_name(folder)
        self.start = start
        self.console = console or Console("quiet")
        self.reuse, self._reuse_is_new = named or sources_of(self.folder), bool(named)
        self._settings: str | None = None
        self.toys: dict[str, float] = {}
        self._plan: tuple[str, ...] = ()
        self.follow: Follow | None = None
        self._stage = ""
        self._lease: Lease | None = None
        self._depth = 0
        events = self.folder / EVENTS
        self._events = events.read_bytes().decode(errors="replace").splitlines() if events.exists() else []

    def plan(self, *stages: str) -> None:
        """Name the stages to come, in their order, so that each is shown as number 3 of 8."""
        self._plan = stages

    @contextlib.contextmanager
    def progress(self, total: int | None, unit: str = "rows") -> Iterator[Bar]:
        """A bar for work of the stage that runs now; what it notes, the run says."""
        with self.console.progress(self._stage, total, unit, self._step(self._stage)) as bar:
            bar.note = self.console.note
            if (follow := self.follow) is not None:
                bar.watch = follow.look
            yield bar

    def _step(self, stage: str) -> str:
        return f"{self._plan.index(stage) + 1}/{len(self._plan)}" if stage in self._plan else ""

    def manifest(self, *stages: str) -> Manifest | None:
        """The manifest of the first finished stage among these, or None."""
        return next((found for name in stages if (found := read_manifest(self.folder / name))), None)

    def config(self, changes: dict[str, object] | None = None, overrides: Sequence[str] = ()) -> CommonConfig:
        """The settings of the run, with some of them changed."""
        made_with = self.made_with()
        if made_with is None:
            raise ConfigError(f"run: {self.folder} has no {CONFIG}, so nothing tells how it was made.")
        return load_config(None, made_with | (changes or {}), overrides, gpus_in_reach)

    def made_with(self) -> dict[str, Any] | None:
        """The content of `run.yaml`; None if there is no such file."""
        place = self.folder / CONFIG
        try:
            found = yaml.safe_load(place.read_text()) if place.exists() else None
        except (yaml.YAMLError, UnicodeDecodeError):
            found = "no YAML"
        if found is not None and not isinstance(found, dict):
            raise DataError(f"run: {place} is damaged: it holds no settings. Put it back, or delete it.")
        return found

    def stage(
        self,
        name: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Any],
        body: Callable[[Location], StageResult],
        version: int = 1,
    ) -> Manifest:
        """Run the stage and return its manifest, unless this run or a reused one has it with these settings and inputs.

        `settings` and `inputs` hold everything that decides the result and nothing else. Raise `version` when a change of
        the stage's code changes its result.
        """
        wanted_settings, wanted_inputs = canonical(dict(settings)), canonical(dict(inputs))
        identity = fingerprint({"settings": wanted_settings, "inputs": wanted_inputs, "version": version})
        with self.at_work():
            return self._finished(name, identity, wanted_settings, wanted_inputs) or self._do(
                name, identity, wanted_settings, wanted_inputs, body
            )

    def _do(
        self,
        name: str,
        identity: str,
        wanted_settings: dict[str, Any],
        wanted_inputs: dict[str, Any],
        body: Callable[[Location], StageResult],
    ) -> Manifest:
        """Run the stage's body and write its manifest; another process may have done so before it gave the run back."""
        if self._take() and (done := self._finished(name, identity, wanted_settings, wanted_inputs)):
            return done
        home = self.folder / name
        work = home / identity
        changed = tell_changes(self.reuse, name, wanted_settings, wanted_inputs)
        differs = {"differs": changed} if changed else {}
        self._go_on()
        types = ", ".join(sorted({*named_values(wanted_settings, "dtype"), *named_values(wanted_inputs, "dtype")}))
        told = {"dtype": types} if types else {}
        self.record("continued" if work.exists() else "started", name, fingerprint=identity, **differs, **told)
        self.start()
        self._stage = name
        if self.follow is not None:
            self.follow.begin(name)
        started, clock = datetime.now(UTC), time.perf_counter()
        try:
            with stage_peaks() as peaks:
                result = body(work.make_folder())
        except Exception as error:
            cause = find_cause(error)
            self.record("failed", name, error=str(cause) if cause else type(error).__name__)
            if cause is not None and cause is not error:
                raise cause from error
            raise
        except BaseException as error:
            stopped = self.follow.stopped() if self.follow is not None else None
            self.record("failed", name, error=str(stopped) if stopped else type(error).__name__)
            if stopped is not None:
                raise stopped from None
            raise
        seconds = time.perf_counter() - clock
        files = {kind: [f"{identity}/{file}" for file in files] for kind, files in result.files.items()}
        manifest = Manifest(
            stage=name,
            fingerprint=identity,
            settings=wanted_settings,
            inputs=wanted_inputs,
            files=files,
            sizes=settle(home, [name for kind in files.values() for name in kind]),
            counts=dict(result.counts),
            values=dict(result.values),
            versions=installed_versions(),
            started=started.isoformat(timespec="seconds"),
            seconds=round(seconds, 3),
            rows_per_second=round(result.rows / seconds, 1) if result.rows else None,
            peaks=peaks.read(),
        )
        if self._lease is not None:
            self._lease.require()
        manifest = write_manifest(home, manifest)
        self.record("finished", name, seconds=round(seconds, 1), **manifest.counts)
        if self.follow is not None:
            self.follow.end(name, seconds)
        return manifest

    def adopt(self, name: str, source: str) -> Manifest | None:
        """Reuse a stage of another run whatever its settings, which are not known here; None if that run did not compute it."""
        found = finished_by(source, name)
        with self.at_work():
            return self._finished(name, found.fingerprint, found.settings, found.inputs) if found else None

    def _finished(self, name: str, identity: str, settings: dict[str, Any], inputs: dict[str, Any]) -> Manifest | None:
        """Return the stage if already done; raise if it was done with other settings, or if its files are damaged or missing."""
        own = read_manifest(self.folder / name)
        if own and own.fingerprint != identity:
            require_same(own, settings, inputs, self.name)
        if own and not own.reused_from:
            if damage := own.damage():
                raise DataError(
                    f"{name}: this stage of {self.name} is finished, but {damage}. Put the file back, or delete "
                    f"{self.folder / name} to do the stage again."
                )
            self.record("skipped", name, fingerprint=identity)
            return own
        found = find_finished(self.folder, name, identity, own, self.reuse)
        if found:
            if found is not own:
                self._go_on()
                write_manifest(self.folder / name, found)
            self.record("reused", name, fingerprint=identity, run=found.reused_from)
        return found

    def claim(self) -> None:
        """Make the folder and mark it as a run folder."""
        try:
            if not (self.folder / EVENTS).exists():
                (self.folder.make_folder() / EVENTS).write("")
        except OSError as error:
            raise ConfigError(
                f"run: cannot write into '{self.name}': {system_words(error)} Name another folder with --run."
            ) from None

    def _go_on(self) -> None:
        """Save the settings and reused runs once the run proceeds with them; a refused command changes neither.

        From here on no other process may work in the run.
        """
        self._take()
        if self._settings is not None:
            (self.folder / CONFIG).write(self._settings)
            self._settings = None
        if self._reuse_is_new:
            record_sources(self.folder, self.reuse)
            self._reuse_is_new = False

    def _take(self) -> bool:
        """Make the folder and take its lease until the outermost block of `at_work` ends; whether it was not yet ours."""
        self.claim()
        if not self._depth or self._lease is not None:
            return False
        self._lease = take(self.folder, lambda words: self.console.note(f"run: {words}"))
        if dead := self._lease.before:
            self.console.note(
                f"run: taken over from process {dead['pid']} on {dead['host']}, which ended in the middle"
            )
        return True

    @contextlib.contextmanager
    def at_work(self, now: bool = False) -> Iterator[None]:
        """Keep the run from other processes, from its first change on or from `now` on, until the outermost block ends."""
        self._depth += 1
        try:
            if now:
                self._take()
            yield
        finally:
            self._depth -= 1
            if not self._depth and self._lease is not None:
                self._lease.release()
                self._lease = None

    def files(self, manifest: Manifest, kind: str) -> list[Location]:
        """A stage's files of one kind, in this run or in the run it was reused from."""
        if manifest.reused_from and not (manifest.home / MANIFEST).exists():
            raise DataError(
                f"{manifest.stage}: {self.name} reuses this stage of {manifest.reused_from}, where it is gone. Put it back, or "
                "repeat the run's command with --reuse naming the run where it is now."
            )
        return manifest.locations(kind)

    def record(self, event: str, stage: str, **fields: Any) -> None:
        """Add an event to the run's log and print it."""
        self._tell(event, stage, fields)
        line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "stage": stage, "event": event, **fields}
        self._events.append(json.dumps(exact(line), default=str))
        try:
            # Object stores cannot append; the log is short, so it is rewritten each time.
            (self.folder / EVENTS).write("\n".join(self._events) + "\n")
        except OSError:
            if event not in CHANGES_NOTHING:  # a finished run can be read on read-only storage, too
                raise

    def _tell(self, event: str, stage: str, fields: Mapping[str, Any]) -> None:
        begins = event in ("started", "continued")
        if begins and self.console.voice != "json" and (what := WHAT_IT_DOES.get(stage)):
            event = f"{what}" if event == "started" else f"continued: {what}"
        self.console.event(event, stage, self._step(stage), **fields)

    @contextlib.contextmanager
    def replayable(self, config: Mapping[str, Any]) -> Iterator[None]:
        """Write `run.yaml`, which replays the run from any folder: `raysift METHOD --config run.yaml --run NEW`.

        It is written when the first new stage begins. So a killed run has it, and settings that the run refuses never
        replace those it was made with. A step added to a selection, such as an evaluation, keeps the selection's file.
        """
        text = yaml.safe_dump(name_from_anywhere(config), sort_keys=False, allow_unicode=True)
        refuse_passwords(text)
        is_added = config.get("method") is None and (self.made_with() or {}).get("method")
        self._settings = None if is_added else text
        with self.at_work():
            yield
            if not (self.folder / CONFIG).exists():
                self._go_on()
        self._settings = None

    def manifests(self) -> list[Manifest]:
        """Manifests of the finished stages, in the order of their first start."""
        order: list[str] = []
        for event in read_events(self.folder):
            if event["stage"] not in order:
                order.append(event["stage"])
        found = in_parallel(lambda stage: read_manifest(self.folder / stage), order)
        return [manifest for manifest in found if manifest]


def named_values(tree: Any, name: str) -> Iterator[str]:
    """The values under this name anywhere in canonical settings."""
    for key, value in tree.items() if isinstance(tree, Mapping) else ():
        if key == name and value is not None:
            yield str(value)
        yield from named_values(value, name)


def require_own(folder: str | Location) -> Location:
    """Return the location of a run; refuse a non-empty folder that is not a run's."""
    if not str(folder).strip():
        raise ConfigError("run: the name of the run is empty; is a shell variable unset? Name a folder with --run.")
    place = open_location(folder)
    try:
        if place.exists() and not place.is_folder():
            raise ConfigError(f"run: '{folder}' is a file, expected a folder. Name another one with --run.")
        ours = (place / EVENTS).exists()
        first = None if ours else place.first_entry()
    except OSError as error:
        raise ConfigError(f"run: '{folder}' cannot be used: {system_words(error)} Name another folder.") from None
    if first:
        raise ConfigError(
            f"run: '{folder}' is no run folder: it holds '{first}' and no {EVENTS}, and files of the run could take the place "
            "of yours. Name a new folder with --run."
        )
    return place


def open_run(folder: str, console: Console | None = None) -> Run:
    """Open an existing run for reading."""
    place = open_location(folder)
    if not (place / EVENTS).exists():
        raise ConfigError(f"run: '{folder}' is no run folder (it has no {EVENTS}). Check the name given to --run.")
    return Run(folder, console)


def free_name(folder: str) -> str:
    """The folder itself if it does not exist yet, else the first free one of NAME-2, NAME-3, ..."""
    candidate, number = extend_name(folder, ""), 1
    while open_location(candidate).exists():
        number += 1
        candidate = extend_name(folder, f"-{number}")
    return candidate

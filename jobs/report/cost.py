"""Cost and reproduction: seconds and bytes of each stage, what differs from the defaults, versions and hashes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from raysift.config import make_config, replayed
from raysift.errors import RaysiftError
from raysift.jobs.planning.rendering import COMPARED, compared, plan_of
from raysift.jobs.report.gather import Gathered
from raysift.manifest import Manifest
from raysift.report.blocks import TABLE_ROWS, Bar, Bars, Block, Column, Section, Table, Text, cut

SHOWN_CHARACTERS, HASH_DIGITS = 300, 16


def cost_section(found: Gathered) -> Section | None:
    """Seconds, speed, bytes and restarts of each stage; a reused stage cost nothing here."""
    if not found.manifests:
        return None
    begun = Counter(event["stage"] for event in found.events if event["event"] in ("started", "continued"))
    columns = (
        *(Column(name="stage"), Column(name="started"), Column(name="seconds", type="seconds")),
        *(Column(name=name, type="number") for name in ("rows/s", "tokens/s")),
        *(Column(name="peak memory", type="bytes"), Column(name="peak on GPU", type="bytes")),
        *(Column(name="bytes", type="bytes"), Column(name="restarts", type="count"), Column(name="reused from")),
    )
    rows = tuple(
        (
            one.stage,
            one.started,
            None if one.reused_from else one.seconds,
            None if one.reused_from else one.rows_per_second,
            None if one.reused_from else tokens_per_second(one),
            one.peaks.get("host"),
            one.peaks.get("gpu"),
            sum(one.sizes.values()),
            max(0, begun[one.stage] - 1),
            one.reused_from,
        )
        for one in found.manifests
    )
    blocks: list[Block] = []
    own = [one for one in found.manifests if not one.reused_from]
    if len(own) > 1:
        bar = Bar(name="seconds", values=tuple(one.seconds for one in own))
        blocks.append(
            Bars(title="Time by stage", label="seconds", groups=tuple(one.stage for one in own), series=(bar,))
        )
    blocks.append(Table(title="Stages", columns=columns, rows=rows[:TABLE_ROWS]))
    blocks += plan_blocks(found)
    seconds = sum(one.seconds for one in own)
    reused = len(found.manifests) - len(own)
    lead = f"{seconds:,.1f} seconds in {len(own)} stages" + (
        f"; {reused} were taken from other runs." if reused else "."
    )
    return Section(key="cost", title="Cost", lead=lead, blocks=tuple(blocks))


def tokens_per_second(stage: Manifest) -> float | None:
    """As the stage says it of its training, else what its workers read in its time."""
    read = stage.peaks.get("tokens")
    return stage.values.get("tokens_per_second") or (round(read / stage.seconds, 1) if read and stage.seconds else None)


def plan_blocks(found: Gathered) -> list[Block]:
    """Plan and fact side by side, if the run followed a plan."""
    plan = plan_of(found.run)
    lines = compared(plan, found.manifests) if plan else []
    if not lines:
        return []
    kinds = ("text", "seconds", "seconds", "number", "bytes", "bytes", "number")
    columns = tuple(Column(name=name, type=kind) for name, kind in zip(COMPARED, kinds, strict=True))
    return [Table(title="Plan and fact", columns=columns, rows=tuple(map(tuple, lines)))]


def reproduction_section(found: Gathered) -> Section | None:
    """What decided the result: settings that differ from the defaults first, then all; versions; content of the inputs."""
    made = found.made_with
    usual = defaults_of(made)
    settings = list(flat_settings(made))
    differing = [line for line in settings if line[0] not in usual or usual[line[0]] != line[1]] if usual else []
    blocks: list[Block] = [
        _settings("Settings that differ from the default", differing, usual),
        _settings("All settings", settings, usual),
        _versions(found),
        _inputs(found),
    ]
    blocks = [block for block in blocks if not isinstance(block, Table) or block.rows]
    if not settings:
        blocks.insert(0, Text(text="The run has no run.yaml, so nothing tells its settings."))
    return Section(key="reproduction", title="Reproduction", blocks=tuple(blocks))


def defaults_of(made: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run of this method and model on which nobody decided anything; none where they are not known."""
    try:
        usual = make_config(
            {name: made.get(name) for name in ("method", "model", "seed") if made.get(name) is not None}
        )
    except RaysiftError:
        return {}
    known = dict(flat_settings(replayed(usual)))
    return {name: value for name, value in known.items() if name not in ("method", "model", "seed")}


def flat_settings(values: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting as `section.key` and its value, in their order."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat_settings(value, f"{at}{name}.")
        else:
            yield f"{at}{name}", value


def told(value: Any) -> str:
    """A value of a setting as text."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)
    return cut(text, SHOWN_CHARACTERS)


def _settings(title: str, lines: list[tuple[str, Any]], usual: Mapping[str, Any]) -> Table:
    columns = tuple(Column(name=name) for name in ("setting", "value", "default"))
    rows = tuple((name, told(value), told(usual[name]) if name in usual else "") for name, value in lines)
    more = len(rows) - TABLE_ROWS
    note = f"{more:,} more are in run.yaml." if more > 0 else ""
    return Table(title=title, note=note, columns=columns, rows=rows[:TABLE_ROWS])


def _versions(found: Gathered) -> Table:
    """Versions by package; several where stages were done with different ones."""
    seen: dict[str, dict[str, list[str]]] = {}
    for one in found.manifests:
        for package, version in one.versions.items():
            seen.setdefault(package, {}).setdefault(version, []).append(one.stage)
    rows = tuple(
        (package, version, "all" if len(versions) == 1 else ", ".join(stages))
        for package, versions in sorted(seen.items())
        for version, stages in versions.items()
    )
    columns = tuple(Column(name=name) for name in ("package", "version", "stages"))
    return Table(title="Versions", columns=columns, rows=rows[:TABLE_ROWS])


def _inputs(found: Gathered) -> Table:
    """Fingerprints of the files and models that stages read, and of the stages themselves."""
    rows: list[tuple[str, str, str]] = []
    for one in found.manifests:
        rows.append((one.stage, "the stage itself", one.fingerprint))
        for name, value in one.inputs.items():
            files = (
                value
                if isinstance(value, list) and all(isinstance(line, list) and len(line) == 2 for line in value)
                else None
            )
            rows += [(one.stage, f"{name}: {file}", str(content)[:HASH_DIGITS]) for file, content in files or []]
            if files is None:
                told = ", ".join(f"{key} {of}" for key, of in value.items()) if isinstance(value, dict) else str(value)
                rows.append((one.stage, name, cut(told, SHOWN_CHARACTERS)))
    columns = tuple(Column(name=name) for name in ("stage", "input", "content"))
    note = f"{len(rows) - TABLE_ROWS:,} more are in the manifests." if len(rows) > TABLE_ROWS else ""
    return Table(title="Fingerprints of the inputs", note=note, columns=columns, rows=tuple(rows[:TABLE_ROWS]))

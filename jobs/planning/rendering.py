"""A plan as tables, and set beside what the run then took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raysift.jobs.runs.console import Console
from raysift.jobs.runs.progress import clock_time
from raysift.jobs.runs.run import Run
from raysift.manifest import Manifest
from raysift.planning.record import PLAN, Plan, PlannedStage, read_plan

HEADS = [
    "stage",
    "rows in",
    "rows out",
    "tokens",
    "on",
    "low",
    "likely",
    "high",
    "host",
    "GPU",
    "written",
    "after a kill",
]


def show_plan(plan: Plan, console: Console) -> None:
    """Print the stages, totals, the bottleneck and what would be cheaper."""
    total = plan.total()
    rows = [_line(stage) for stage in plan.stages]
    written = sum(stage.written for stage in plan.stages)
    host, gpu = (max((getattr(stage, name) for stage in plan.stages), default=0) for name in ("host", "gpu"))
    sums = [_time(total.low), _time(total.likely), _time(total.high), size(host), size(gpu), size(written), ""]
    console.table(
        f"Plan of {plan.method} with {plan.model} on {plan.machine}", HEADS, [*rows, ["all", "", "", "", "", *sums]]
    )
    if plan.dollars is not None:
        of = "GPU-hour" if plan.gpus else "machine-hour"
        console.note(f"cost: about {plan.dollars:,.2f} dollars at {plan.price:g} a {of}")
    console.note(f"bottleneck: {plan.bottleneck}")
    if plan.solved:
        console.note(f"changed to stay within what was asked: {' '.join(plan.solved)}")
    if plan.cheaper:
        cheaper = [
            [" ".join(one.settings), _time(one.seconds), f"{1 - one.seconds / total.likely:.0%}", one.loses]
            for one in plan.cheaper
        ]
        console.table("Cheaper", ["setting", "likely", "saves", "loses"], cheaper)
    for note in plan.notes:
        console.note(note)


def _line(stage: PlannedStage) -> list[Any]:
    seconds = stage.seconds
    on = f"{stage.workers} x {stage.device}" if stage.host else "driver"
    times = [_time(seconds.low), _time(seconds.likely), _time(seconds.high)]
    tokens = stage.tokens or None
    sizes = [size(stage.host), size(stage.gpu), size(stage.written), _time(stage.restart_s) if stage.restart_s else ""]
    return [stage.stage, stage.rows, stage.kept, tokens, on, *times, *sizes]


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else clock_time(seconds)


def size(count: float) -> str:
    """Bytes for people; empty for none."""
    if not count:
        return ""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} B"


COMPARED = ["stage", "planned", "took", "ratio", "peak planned", "peak", "ratio"]


def compared(plan: Plan, manifests: Sequence[Manifest]) -> list[list[Any]]:
    """Plan and fact of each stage that this run did itself: seconds, and the peak memory of its largest worker."""
    planned = {stage.stage: stage for stage in plan.stages}
    done = [one for one in manifests if not one.reused_from and one.stage in planned]
    lines = [_compared(planned[one.stage], one.seconds, one.peaks) for one in done]
    if len(done) < 2:
        return lines
    likely, took = sum(planned[one.stage].seconds.likely for one in done), sum(one.seconds for one in done)
    host, peak = max(planned[one.stage].host for one in done), max(one.peaks.get("host", 0) for one in done)
    return [*lines, ["all", *_pair(likely, took), *_pair(host, peak)]]


def _compared(stage: PlannedStage, seconds: float, peaks: Mapping[str, int]) -> list[Any]:
    kind = "gpu" if stage.gpu and peaks.get("gpu") else "host"
    return [stage.stage, *_pair(stage.seconds.likely, seconds), *_pair(getattr(stage, kind), peaks.get(kind, 0))]


def _pair(planned: float, found: float) -> list[float | None]:
    """Planned, found, and found over planned where both are known."""
    both = bool(planned) and bool(found)
    return [planned or None, found or None, round(found / planned, 2) if both else None]


def show_compared(plan: Plan, manifests: Sequence[Manifest], console: Console) -> None:
    """Print plan and fact side by side."""
    lines = [
        [name, *(f"{one:.1f} s" if one else None for one in line[:2]), line[2], *map(_size, line[3:5]), line[5]]
        for name, *line in compared(plan, manifests)
    ]
    if lines:
        console.table("Plan and fact", COMPARED, lines)


def _size(count: float | None) -> str | None:
    return size(count) if count else None


def plan_of(run: Run) -> Plan | None:
    """The plan that a run followed, if it followed one."""
    place = run.folder / PLAN
    return read_plan(str(place)) if place.exists() else None

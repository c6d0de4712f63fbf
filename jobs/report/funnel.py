"""The funnel: what each stage took in, kept, rejected and could not answer; the numbers of a stage add up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from raysift.jobs.report.gather import Gathered
from raysift.jobs.runs.stage_names import WHAT_IT_DOES
from raysift.manifest import Manifest
from raysift.methods.mods import KNOWN, POOR
from raysift.report.blocks import Funnel, Section, Stage

OF_OTHER_ROWS = ("likeness", "targets", "validation", "evaluate", "own", "against", "judge", "win_rate", "search")
"""Stages that count the target's records or test questions, not rows of the pool."""
FATES = {"good": POOR, "needed": KNOWN}
"""What the table of scores says of rows that these stages reject."""
BEYOND, UNTOLD = "beyond the budget", "not kept"


def funnel_section(found: Gathered) -> Section | None:
    """One bar for each stage that lets rows go, from ingest to the selection."""
    stages = tuple(_shown(found, stage) for stage in _stages(found))
    if not stages:
        return None
    lost = sum(sum(stage.rejected.values()) + stage.failed for stage in stages)
    lead = f"{stages[0].rows_in:,} rows came in, {stages[-1].kept:,} are left." if lost else "No row was lost."
    return Section(key="funnel", title="Funnel", lead=lead, blocks=(Funnel(stages=stages),))


def _shown(found: Gathered, stage: Stage) -> Stage:
    """The stage with chips that rows of the report have; rows that failed before have the chip of that stage."""
    known = {chip for chips in found.chips.values() for chip in chips} | {f"failed: {name}" for name in found.failures}
    chips = {what: chip for what, chip in stage.chips.items() if chip in known or stage.stage == "ingest"}
    if stage.failed and stage.stage != "ingest" and "failed" not in chips and found.failures:
        chips["failed"] = f"failed: {next(iter(found.failures))}"
    return replace(stage, chips=chips)


def _stages(found: Gathered) -> Iterator[Stage]:
    for manifest in found.manifests:
        counts = manifest.counts
        if manifest.stage in OF_OTHER_ROWS or "kept" not in counts or "rows_in" not in counts:
            continue
        if manifest.stage == "choose":
            yield _chosen(found, manifest)
        elif manifest.stage == "order":
            yield _ordered(found, manifest)
        elif manifest.stage == "ingest" or counts.get("failed") or counts.get("rejected"):
            yield stage_of(manifest.stage, counts)


def stage_of(name: str, counts: Mapping[str, Any], rejected: Mapping[str, int] | None = None) -> Stage:
    """A stage from its counts; rows that no count names are `not kept`, so that the numbers add up."""
    told = counts.get("rejected") or {} if rejected is None else rejected
    by_reason = {reason: int(count) for reason, count in sorted(told.items()) if count}
    rows_in, kept, failed = (int(counts.get(key) or 0) for key in ("rows_in", "kept", "failed"))
    rest = rows_in - kept - failed - sum(by_reason.values())
    by_reason |= {UNTOLD: rest} if rest > 0 else {}
    chips = {reason: f"rejected: {reason}" for reason in by_reason} if name == "ingest" else {}
    chips = chips or {reason: FATES[name] for reason in by_reason if name in FATES}
    return Stage(
        stage=name,
        does=WHAT_IT_DOES.get(name, ""),
        rows_in=rows_in,
        kept=kept,
        rejected=by_reason,
        failed=failed,
        chips=chips | ({"failed": f"failed: {name}"} if failed and name != "ingest" else {}),
    )


def _ordered(found: Gathered, manifest: Manifest) -> Stage:
    """The stage that notes what became of each row: its reasons are the fates in the table of scores."""
    fates = dict(found.scored.fates) if found.scored else {}
    stage = stage_of(manifest.stage, {**manifest.counts, "failed": 0}, fates)
    return replace(stage, chips={fate: fate for fate in fates})


def _chosen(found: Gathered, manifest: Manifest) -> Stage:
    """The last stage: of the rows with a score or a place, those that the budget allows."""
    before = found.scores.counts if found.scores else manifest.counts
    kept = int(manifest.counts["kept"])
    rows_in = max(kept, int(before.get("kept", manifest.counts["rows_in"])))
    stage = stage_of("choose", {"rows_in": rows_in, "kept": kept}, {BEYOND: rows_in - kept})
    return replace(stage, chips={BEYOND: "just out"} if rows_in > kept else {})

"""The alerts of a run: each law of `raysift.report.alerts` with this run's figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from raysift.evaluation.comparison import rank_correlation
from raysift.jobs.pool.target_check import LIKENESS
from raysift.jobs.report.features import ANSWER
from raysift.jobs.report.funnel import OF_OTHER_ROWS
from raysift.jobs.report.gather import Gathered
from raysift.jobs.report.groups import source_counts
from raysift.jobs.report.scored import TIED
from raysift.jobs.report.scores import joined_scores
from raysift.jobs.report.verdict import stopped_in
from raysift.manifest import Manifest
from raysift.pool.likeness import remarks
from raysift.reasons.agreement import AGREEMENT
from raysift.report import alerts
from raysift.report.alerts import NOTE, WARNING
from raysift.report.blocks import Alert, Alerts, Section
from raysift.report.groups import SELECTED, by_length
from raysift.scoring.thresholds import describe_scale


def alerts_section(found: Gathered) -> Section:
    """All that a person should look at, warnings first; a section without alerts says so."""
    items = [_shown(found, one) for one in (*_of_stages(found), *_of_scores(found), *_of_selection(found)) if one]
    items.sort(key=lambda alert: alert.level != WARNING)
    warnings = sum(alert.level == WARNING for alert in items)
    lead = f"{warnings} of {len(items)} need a look." if warnings else "Nothing stands out."
    return Section(key="alerts", title="Alerts", lead=lead, blocks=(Alerts(items=tuple(items)),) if items else ())


def _shown(found: Gathered, alert: Alert) -> Alert:
    """The alert, without a chip that no row of the report has."""
    has_rows = any(alert.chip in chips for chips in found.chips.values())
    return alert if has_rows else replace(alert, chip=None)


def _of_stages(found: Gathered) -> Iterator[Alert | None]:
    for event in found.events[-1:]:
        if event["event"] == "failed":
            yield Alert(key="stage_failed", level=WARNING, text=f"The run stopped in {stopped_in(event)}")
    for stage, event in {event["stage"]: event for event in found.events if event["event"] == "killed"}.items():
        text = f"{stage}: workers were killed for want of memory; it went on with smaller batches or fewer workers."
        yield Alert(key=f"memory_{stage}", level=NOTE, text=text, count=event.get("for_memory"))
    for manifest in found.manifests:
        counts, stage = manifest.counts, manifest.stage
        rows = int(counts.get("rows_in") or 0)
        lost = int(counts.get("failed") or 0) + int(counts.get("rows_failed") or 0)
        cut = int(counts.get("truncated") or 0) + int(counts.get("rows_truncated") or 0)
        told_before = manifest is found.scores and bool(found.failures) and stage not in found.failures
        chip = None if stage in OF_OTHER_ROWS else f"failed: {stage}" if stage in found.failures else None
        yield None if told_before else alerts.failed(stage, lost, rows, chip)
        yield alerts.truncated(stage, cut, rows, f"cut: {stage}" if stage in found.cut_rows else None)
        for file in counts.get("bad_files", []):
            yield Alert(key="bad_file", level=WARNING, text=f"A file of the pool was set aside as a whole: {file}")
        for name, figures in manifest.values.get(LIKENESS, {}).items():
            for remark in remarks(name, figures):
                yield Alert(key="target", level=WARNING, text=remark)
        yield from _of_values(manifest)


def _of_values(manifest: Manifest) -> Iterator[Alert | None]:
    values = manifest.values
    if toys := values.get("toys"):
        from raysift.jobs.runs.toys import tell_toy

        for name, share in toys.items():
            text = tell_toy(name, share)
            yield Alert(key="toy", level=WARNING, text=text[:1].upper() + text[1:], count=share)
    if weights := values.get("checkpoint_weights"):
        yield alerts.checkpoint_weights(weights, values["checkpoints"])
    if found := values.get(AGREEMENT):
        yield alerts.target_agreement(found)
    if "performance" in values and "start" in values:
        yield alerts.learned_nothing(values["start"], values["performance"])
    if "picks" in manifest.counts:
        counts = manifest.counts
        yield alerts.collapsed(counts["kept"], counts["picks"], counts["rows_in"])


def _of_scores(found: Gathered) -> Iterator[Alert | None]:
    scored = found.scored
    if scored is None:
        return
    finite = scored.scores[np.isfinite(scored.scores)]
    with np.errstate(over="ignore", invalid="ignore"):
        said = describe_scale("Scores", finite) if scored.cut is not None else []
    for remark in said:
        yield Alert(key="scale", level=WARNING, text=remark)
    joined = joined_scores(found)
    if joined is not None and len(joined) > 2:
        yield alerts.length_by_rank(rank_correlation(joined["score"].to_numpy(), joined[ANSWER].to_numpy()))
    chip = TIED if scored.notable.get(TIED) else None
    yield alerts.tied(scored.tied_in, scored.tied_out, len(found.ids), chip)


def _of_selection(found: Gathered) -> Iterator[Alert | None]:
    for where, side in (("pool", found.pool), ("selection", found.picked)):
        for name, asked in side.asked.items():
            chip = f"asked in the {name}" if where == "selection" else None
            yield alerts.asked_in(len(asked.found), len(asked.questions), name, where, chip)
    if found.choose is None:
        return
    if found.null:
        yield alerts.noise(found.null.sentence, found.null.above, found.null.selected)
    yield alerts.one_source(*source_counts(found))
    counts = found.choose.counts
    yield alerts.fewer_than_asked(counts["kept"], counts.get("asked"))
    yield alerts.twins(len(found.twins), len(found.ids), found.searched, "same text")
    yield alerts.same_question(len(found.same_questions), found.searched, "same question")
    lengths = (side.features[ANSWER].to_pylist() for side in (found.pool, found.picked))
    bars = by_length("", *lengths)
    if bars and bars.lift:
        selected = next(one for one in bars.series if one.name == SELECTED)
        enough = [low is not None and low > 0 for low in selected.low or ()]
        yield alerts.length_by_lift(
            bars.groups, [lift if ok else 0 for lift, ok in zip(bars.lift, enough, strict=True)]
        )

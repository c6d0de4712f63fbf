"""The section `why` of a report: what decided, method by method, from the tables that the stages left.

It loads no model and needs no Ray. Runs by gradient tell theirs here, MoDS below, RAISE in `why_policy.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from raysift.actors.row_gradients import MATCHES
from raysift.gradients.null_columns import NullColumns
from raysift.ids import is_among
from raysift.jobs.gradients.null import found_null
from raysift.jobs.report.why_policy import why_policy
from raysift.jobs.report.why_target import agreeing, strongest, why_similarity
from raysift.jobs.runs.run import Run
from raysift.jobs.runs.tables import read_chunks, read_ids
from raysift.manifest import Manifest
from raysift.records import ID
from raysift.report.blocks import (
    Bar,
    Bars,
    Block,
    Column,
    Counts,
    Heatmap,
    Histogram,
    Mark,
    Section,
    Table,
    Text,
)
from raysift.settings.gradients import ProjectionSettings
from raysift.store.distortion import estimate_distortion

SHOWN_SUBTASKS = 40
BARS = {
    "good": ("quality", "mods.alpha"),
    "needed": ("score of the tuned model's own answer", "mods.beta"),
}


def why(run: Run, with_text: bool) -> Section | None:
    """What decided which rows were taken; None for methods whose scores tell it all."""
    kinds: tuple[tuple[str, Callable[[Run, bool], tuple[str, list[Block]]]], ...] = (
        ("influence", why_gradient),
        ("similarity", why_similarity),
        ("good", why_stages),
        ("final", why_policy),
    )
    for stage, tell in kinds:
        # Any method may train on its selection in a stage `final`; only RAISE leaves an order of picks as well.
        if run.manifest(stage) and (stage != "final" or run.manifest("features")):
            lead, blocks = tell(run, with_text)
            return Section(key="why", title="Why these rows", lead=lead, blocks=tuple(blocks)) if blocks else None
    return None


# --- ROSE and LESS ---------------------------------------------------------------------------------------------------


def why_gradient(run: Run, with_text: bool) -> tuple[str, list[Block]]:
    """Mean cosines of chosen rows and of the pool, the weights of checkpoints, and the strongest records of the target."""
    scores, target, matched = run.manifest("influence"), run.manifest("targets"), run.manifest("match", "gradients")
    blocks: list[Block] = []
    lead = (
        "A row is taken where training on it goes in the direction that the target asks for. Where the chosen rows' cosines are "
        "hardly above the pool's, the target says little about this pool."
    )
    if scores is None or target is None or matched is None:
        return lead, blocks
    names, subtasks = scores.values["checkpoints"], target.values["subtasks"]
    chosen = run.manifest("choose")
    ids = read_ids(run.files(chosen, "selection")) if chosen else np.empty(0, np.int64)
    each = NullColumns.of(target.values).each
    pool, own = mean_cosines(run, matched, ids, (len(names), len(subtasks)), each)
    if own is not None:
        blocks.append(_heatmap("Mean cosine of the chosen rows with the target", names, subtasks, own))
    if pool is not None:
        blocks.append(_heatmap("Mean cosine of all rows with the target", names, subtasks, pool))
    blocks.append(_checkpoints(scores, target))
    blocks += null_blocks(run)
    return lead, [*blocks, *agreeing(target), *strongest(run, target, scores, with_text)]


def null_blocks(run: Run) -> list[Block]:
    """How the chosen rows stand against the null, by subtask."""
    found = found_null(run)
    if found is None:
        return []
    if found.above is None or found.selected is None:
        return [Text(title="Against noise", text=found.sentence)]
    whole = ("all", found.pool, found.selected, found.above, found.excess)
    parts = sorted(found.parts, key=lambda part: (-part.selected, part.subtask))[:SHOWN_SUBTASKS]
    rows = [whole, *((p.subtask, p.pool, p.selected, p.above, p.excess) for p in parts)]
    columns = (
        Column(name="subtask"),
        Column(name="rows of the pool above", type="count"),
        Column(name="selected", type="count"),
        Column(name="of these above", type="count"),
        Column(name="median above the null, in its spreads", type="number"),
    )
    note = f"{found.sentence[:1].upper()}{found.sentence[1:]}."
    return [Table(title="Against noise", note=note, columns=columns, rows=tuple(rows))]


def mean_cosines(
    run: Run, matched: Manifest, chosen: np.ndarray, shape: tuple[int, int], each: int = 1
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Means over all rows and over the chosen ones, by checkpoint and subtask; None over no row. `each`: columns of a subtask."""
    sums, counts = np.zeros((2, *shape)), [0, 0]
    for chunk in read_chunks(run.files(matched, "answers"), [ID, MATCHES]):
        good = chunk.filter(chunk[MATCHES].is_valid())
        cells = good[MATCHES].combine_chunks().flatten().flatten()
        numbers = np.asarray(cells, np.float64).reshape(len(good), *shape, each)[..., 0]
        mine = is_among(good[ID].to_numpy(), chosen)
        for place, part in enumerate((numbers, numbers[mine])):
            sums[place] += part.sum(axis=0)
            counts[place] += len(part)
    pool, own = (total / count if count else None for total, count in zip(sums, counts, strict=True))
    return pool, own


def _heatmap(title: str, names: Sequence[str], subtasks: Sequence[str], values: np.ndarray) -> Heatmap:
    shown = np.sort(np.argsort(-np.abs(values).max(axis=0), kind="stable")[:SHOWN_SUBTASKS])
    note = (
        f"{len(shown)} of {len(subtasks)} subtasks, those with the largest cosines."
        if len(shown) < len(subtasks)
        else ""
    )
    return Heatmap(
        title=title,
        note=note,
        label="mean cosine",
        columns=tuple(subtasks[i] for i in shown),
        rows=tuple(names),
        values=tuple(tuple(line) for line in values[:, shown].tolist()),
        diverging=True,
    )


def _checkpoints(scores: Manifest, target: Manifest) -> Table:
    names, weights = scores.values["checkpoints"], scores.values["checkpoint_weights"]
    losses = target.values.get("mean_losses", [None] * len(names))
    columns = (
        Column(name="checkpoint"),
        Column(name="weight", type="percent"),
        Column(name="mean target loss", type="number"),
    )
    return Table(
        title="Checkpoints of the warm-up",
        note=" ".join(["A checkpoint's weight is its share of the learning rate.", _error_of_store(target)]).strip(),
        columns=columns,
        rows=tuple(zip(names, weights, losses, strict=True)),
    )


def _error_of_store(target: Manifest) -> str:
    settings: Any = target.settings.get("projection")
    projection = ProjectionSettings.model_validate(settings) if settings else ProjectionSettings(kind="none")
    found = estimate_distortion(projection, target.values["parameters"])
    if found is None:
        return "Cosines are exact: nothing was projected."
    off = f"{found.cosine_sd():.4f} (one standard deviation)"
    return f"Gradients were projected for the store, so a cosine at one checkpoint is off by {off}."


# --- MoDS ------------------------------------------------------------------------------------------------------------


def why_stages(run: Run, with_text: bool) -> tuple[str, list[Block]]:
    """What each step of MoDS let pass, and where the bars lay among the scores."""
    lead = (
        "Rows pass the quality bar; seeds cover them; a model tuned on the seeds shows which rows it does not know yet; of "
        "these, the rows that cover most are added."
    )
    steps = [("good", "quality above the bar"), ("seeds", "seeds")]
    steps += [("needed", "not known yet"), ("augmented", "added to the seeds")]
    found = [(name, manifest.counts) for stage, name in steps if (manifest := run.manifest(stage))]
    bars = Bars(
        title="Rows that each step took, and rows it took them from",
        label="rows",
        type="count",
        groups=tuple(name for name, _ in found),
        series=(
            Bar(name="looked at", values=tuple(float(counts["rows_in"]) for _, counts in found)),
            Bar(name="taken", values=tuple(float(counts["kept"]) for _, counts in found)),
        ),
    )
    blocks: list[Block] = [bars]
    for stage, (label, setting) in BARS.items():
        manifest = run.manifest(stage)
        if manifest and manifest.values.get("histogram"):
            blocks.append(_barred(manifest, label, setting))
    return lead, blocks


def _barred(manifest: Manifest, label: str, setting: str) -> Histogram:
    bins, cut = manifest.values["histogram"], manifest.values["cut"]
    edges = [*(one["low"] for one in bins), bins[-1]["high"]]
    if len(bins) == 1 and edges[0] == edges[1]:
        edges = [edges[0] - 0.5, edges[1] + 0.5]
    side = "above" if cut["side"] == "above" else "below"
    marks = () if cut["value"] is None else (Mark(value=cut["value"], label=f"{setting}: rows {side} it pass"),)
    return Histogram(
        title=f"{label[0].upper()}{label[1:]}, and its bar",
        label=label,
        edges=tuple(edges),
        series=(Counts(name="rows", counts=tuple(one["count"] for one in bins)),),
        marks=marks,
    )

"""The records of the target that decide most: their figures from the run, their texts from the target files.

The files may have changed since the run: then the figures stand without texts.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysift.config import make_selector
from raysift.errors import RaysiftError
from raysift.jobs.gradients.pulls import changed_targets, quoted
from raysift.jobs.gradients.targeting import content_key, read_targets
from raysift.jobs.runs.run import Run
from raysift.jobs.runs.tables import read_chunks
from raysift.manifest import Manifest
from raysift.reasons.agreement import AGREEMENT, tell_agreement
from raysift.records import ID
from raysift.report.blocks import Block, Column, Quote, Table, Texts, cut

SHOWN, SHOWN_SUBTASKS = 5, 40


def agreeing(target: Manifest) -> list[Block]:
    """How far random halves of the target agree, in all, by subtask and by checkpoint; nothing for runs made before."""
    found = target.values.get(AGREEMENT)
    if not found:
        return []
    parts = [("all", found)]
    if len(found["subtasks"]) > 1:
        lowest = sorted(
            found["subtasks"].items(), key=lambda one: (one[1]["halves"] is None, one[1]["halves"] or 0, one[0])
        )
        parts += lowest[:SHOWN_SUBTASKS]
    if len(found["checkpoints"]) > 1:
        parts += found["checkpoints"].items()
    names = ("members", "halves", "low", "high", "full", "chance")
    heads = (found["kind"], "agreement of halves", "from", "to", "of all, estimated", "chance does as well")
    kinds = ("count", "number", "number", "number", "number", "percent")
    return [
        Table(
            title="Agreement of the target's halves",
            note=tell_agreement(found),
            columns=(
                Column(name="part"),
                *(Column(name=head, type=kind) for head, kind in zip(heads, kinds, strict=True)),
            ),
            rows=tuple((part, *(own[name] for name in names)) for part, own in parts),
        )
    ]


def strongest(run: Run, target: Manifest, scores: Manifest, with_text: bool) -> list[Block]:
    """The pairs or examples that agree most with their subtask's target, and those that agree least.

    Nothing for runs made before the stage kept these figures.
    """
    if "examples" not in target.files:
        return []
    place = run.files(target, "examples")[0]
    names = [name for name in pq.read_schema(place.path, filesystem=place.fs).names if name != "sketch"]
    found = summed_up(pq.read_table(place.path, columns=names, filesystem=place.fs), scores)
    texts = _texts(run) if with_text else {}
    blocks: list[Block] = []
    parts = [("Target records that agree most with their subtask", found[:SHOWN])]
    parts += [("Target records that agree least with their subtask", found[SHOWN:][-SHOWN:][::-1])]
    note = "Cosine of a record's gradient with the sum over its subtask, itself included; below 0 it works against the others."
    for title, lines in parts:
        if lines:
            blocks.append(Texts(title=title, note=note, items=tuple(_quote(line, texts) for line in lines)))
    return blocks


def summed_up(table: pa.Table, scores: Manifest) -> list[dict[str, Any]]:
    """One line per record, by falling cosine: the mean of its figures over the checkpoints, by their weights."""
    weights = dict(zip(scores.values["checkpoints"], scores.values["checkpoint_weights"], strict=True))
    by_key: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for line in table.to_pylist():
        by_key.setdefault((line["subtask"], line["key"]), []).append(line)
    found = []
    for (subtask, key), lines in by_key.items():
        shares = np.array([weights.get(line["checkpoint"], 0.0) for line in lines])
        shares = shares / shares.sum() if shares.sum() else np.full(len(lines), 1 / len(lines))
        figures: dict[str, Any] = {"subtask": subtask}
        for name in ("cosine", "norm", "loss", "margin", "between"):
            values = [line[name] for line in lines]
            if None not in values:
                figures[name] = float(shares @ np.array(values, np.float64))
        found.append({"key": key, "figures": figures})
    return sorted(found, key=lambda line: (-line["figures"]["cosine"], line["figures"]["subtask"], line["key"]))


def why_similarity(run: Run, with_text: bool) -> tuple[str, list[Block]]:
    """RDS+: the target examples that most chosen rows are nearest to."""
    chosen = run.manifest("choose")
    lead = "A row is taken where the model sees it as similar to a target example; the examples pick in turn."
    if chosen is None:
        return lead, []
    counts: Counter[str] = Counter()
    total = 0
    for chunk in read_chunks(run.files(chosen, "selection"), [ID, "subtask"]):
        counts.update(chunk["subtask"].to_pylist())
        total += len(chunk)
    texts = _by_name(run) if with_text else {}
    first = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: 2 * SHOWN]
    items = tuple(Quote(title=name, text=texts.get(name), figures={"chosen rows": count}) for name, count in first)
    note = f"{len(counts):,} examples are the nearest one of some of the {total:,} chosen rows."
    return lead, [Texts(title="Target examples that most chosen rows are nearest to", note=note, items=items)]


def _quote(line: dict[str, Any], texts: dict[int, str]) -> Quote:
    figures = {name: value for name, value in line["figures"].items() if name != "subtask"}
    if "between" in figures:
        figures["cosine of its two answers"] = figures.pop("between")
    return Quote(title=line["figures"]["subtask"], text=texts.get(line["key"]), figures=figures)


def _texts(run: Run) -> dict[int, str]:
    """Texts of the target's records by their content; empty where the files are not what the run read."""
    return {content_key(member): _said(member) for member in _members(run)}


def _by_name(run: Run) -> dict[str, str]:
    return {member.id: _said(member) for member in _members(run)}


def _members(run: Run) -> list[Any]:
    try:
        config = run.config()
        selector: Any = make_selector(config)
        return [] if changed_targets(run, config) else read_targets(config, selector).members
    except (RaysiftError, OSError):
        return []


def _said(member: Any) -> str:
    asked, answer, rejected = quoted(member)
    lines = [asked, f"answer: {answer}" if rejected is None else f"better: {answer}"]
    return cut("\n".join([*lines, *([f"worse: {rejected}"] if rejected is not None else [])]))

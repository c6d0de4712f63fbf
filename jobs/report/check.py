"""The quantile check of the run's scores, where one was made: loss and metric over the bins, and what the order is worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raysift.evaluation.check import LOSS, METRIC, TAUGHT
from raysift.evaluation.check_words import interval_words
from raysift.evaluation.entries import BASE
from raysift.jobs.check.rendering import bin_lines
from raysift.jobs.check.result import checked
from raysift.jobs.report.gather import Gathered
from raysift.report.blocks import TABLE_ROWS, Block, Column, Line, Lines, Section, Table, Text

Found = Mapping[str, Any]


def check_section(found: Gathered) -> Section | None:
    """The check in the run's own folder."""
    result = checked(found.run.folder)
    if result is None:
        return None
    lead, *others = result["verdicts"]
    blocks: list[Block] = [Text(title="What that rests on", text="\n".join(others))] if others else []
    kinds = [name for name in (LOSS, METRIC) if any(name in one for one in result["states"].values())]
    blocks += [_curves(result, name) for name in kinds]
    return Section(
        key="check",
        title="Do rows that score higher teach more?",
        lead=lead,
        blocks=(*blocks, _bins(result), _orders(result)),
    )


def _named(found: Found, name: str) -> str:
    return name if name == LOSS else str(found["metric"])


def _curves(found: Found, name: str) -> Lines:
    """The mean of each bin with its interval over seeds, and the base model as a level line."""
    series = []
    for state, measured in ((state, one[name]) for state, one in found["states"].items() if name in one):
        lines = measured["bins"]
        points = tuple((float(number), line["mean"]) for number, line in enumerate(lines, 1))
        ends = {end: tuple(line[end] for line in lines) for end in ("low", "high")}
        series.append(Line(name=state, points=points, low=ends["low"], high=ends["high"]))
        level = ((1.0, measured["base"]), (float(len(lines)), measured["base"]))
        series.append(Line(name=f"{BASE}, {state}", points=level))
    note = (
        f"Each bin trained {found['seeds']} models on {found['rows']:,} of its rows; {found['confidence']:.0%} intervals over "
        "seeds. Bin 1 has the highest scores."
    )
    title = f"{_named(found, name).capitalize()} on {found['measured'][name]} held-out {found['held_out']['kind']}"
    return Lines(title=title, note=note, x="bin", y=_named(found, name), series=tuple(series))


def _bins(found: Found) -> Table:
    lines = bin_lines(found)
    heads = [(f"{name} {state}", state, name) for state in found["states"] for name in found["states"][state]]
    columns = (
        Column(name="bin"),
        *(Column(name=name, type="number") for name in ("highest score", "lowest score")),
        *(Column(name=f"{_named(found, name)}, {state}", type="number") for _, state, name in heads),
    )
    rows = tuple(
        (
            str(line["bin"]) if line["bin"] else BASE,
            *(line["score_high"], line["score_low"]),
            *(line[key] for key, _, _ in heads),
        )
        for line in lines[:TABLE_ROWS]
    )
    return Table(title="Bins", columns=columns, rows=rows)


def _orders(found: Found) -> Table:
    rows = [
        (f"{_named(found, name)}, {state}", interval_words(one["order"]))
        for state, kinds in found["states"].items()
        for name, one in kinds.items()
    ]
    if TAUGHT in found["states"]:
        rows.append(("little gained by being taught the format", interval_words(found["format"]["order"])))
    note = f"{found['confidence']:.0%} intervals over bins. 1: the higher the score, the better; 0: no order."
    columns = (Column(name="of"), Column(name="correlation with the score"))
    return Table(title="Rank correlations", note=note, columns=columns, rows=tuple(rows))

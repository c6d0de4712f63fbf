"""A comparison as text: tables and sentences for a terminal, Markdown for a page, CSV for a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raysift.evaluation.entries import BASE, LONGEST, UNIFORM
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.table_layout import duration

Table = tuple[str, list[str], list[list[str]]]
"""Title, column heads, rows."""

COLUMNS = (
    *("name", "seeds", "rows", "tokens", "steps", "selection_seconds", "training_seconds", "score", "low", "high"),
    *("difference", "difference_low", "difference_high", "overlap_uniform", "chance_uniform", "overlap_longest"),
    *("chance_longest", "length_rank", "above_null", "loss", "verdict"),
)


def tables(found: Mapping[str, Any]) -> list[Table]:
    """All tables of a comparison, most important first."""
    lines = found["methods"]
    scores: Table = (
        _title(found),
        ["trained on", "rows", "score", f"against {UNIFORM}"],
        [
            [
                line["name"],
                _count(line["rows"]),
                _interval(line, "score", "low", "high", _number),
                _interval(line, "difference", "difference_low", "difference_high", _signed),
            ]
            for line in lines
        ],
    )
    costs: Table = (
        "What it cost",
        ["trained on", "select", "train", "steps", "tokens", "loss on target"],
        [
            [
                line["name"],
                _time(line["selection_seconds"]),
                _time(line["training_seconds"]),
                _count(line["steps"]),
                _count(line["tokens"]),
                _number(line["loss"]),
            ]
            for line in lines
        ],
    )
    chosen: Table = (
        "How like each other the rows are",
        ["trained on", f"shared with {UNIFORM}", f"with {LONGEST}", "by chance", "rank by length", "above the null"],
        [
            [
                line["name"],
                _share(line["overlap_uniform"]),
                _share(line["overlap_longest"]),
                _share(line["chance_uniform"] if line["chance_uniform"] is not None else line["chance_longest"]),
                _number(line["length_rank"], 2),
                _share(line.get("above_null")),  # comparisons from before there was a null have none
            ]
            for line in lines
            if line["name"] != BASE
        ],
    )
    return [scores, costs, chosen, *_spreads(lines)]


def _title(found: Mapping[str, Any]) -> str:
    times = f" x {found['trainings']} trainings" if found["trainings"] > 1 else ""
    hint = "; indicative" if found["indicative"] else ""
    return f"Score on {found['questions']} questions, {found['seeds']} seeds{times}, {found['confidence']:.0%} intervals{hint}"


def details(found: Mapping[str, Any]) -> list[Table]:
    """Tables of score by total cost, rows in common, and rank correlations of the rows' scores."""
    costly = sorted(found["methods"], key=_total)
    best, rising = -1.0, []
    for line in costly:
        rising.append(
            [line["name"], _time(_total(line)), _number(line["score"]), "best so far" if line["score"] > best else ""]
        )
        best = max(best, line["score"])
    cost: Table = ("Score by total cost", ["trained on", "select and train", "score", ""], rising)
    shared = _matrix("Rows in common, of the rows of both", found["overlap"], _share)
    ranks = _matrix("Rank correlation of the rows' scores", found["ranks"], lambda value: _number(value, 2))
    return [cost, shared, ranks]


def sentences(found: Mapping[str, Any]) -> list[str]:
    """The verdict on each method, and a caveat if there are few seeds."""
    said = [line["verdict"] for line in found["methods"] if line["name"] != UNIFORM]
    said += [f"{line['name']}: {line['null']}" for line in found["methods"] if line.get("null")]
    if found["indicative"]:
        said.append(f"{found['seeds']} seeds are few: take the figures as a hint, and compare with 3 or more.")
    return said


def show(found: Mapping[str, Any], console: Console, all_tables: bool = True) -> None:
    """Print tables and verdicts."""
    for table in [*tables(found), *(details(found) if all_tables else [])]:
        console.table(*table)
    for sentence in sentences(found):
        console.note(sentence)


def as_markdown(found: Mapping[str, Any]) -> str:
    """All tables and sentences as a Markdown page."""
    parts = []
    for title, heads, lines in [*tables(found), *details(found)]:
        rows = [heads, ["---"] + ["---:"] * (len(heads) - 1), *lines]
        parts.append(f"**{title}**\n\n" + "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in rows))
    parts.insert(1, "\n".join(f"- {_cell(sentence)}" for sentence in sentences(found)))
    return "\n\n".join(parts) + "\n"


def as_csv(found: Mapping[str, Any]) -> str:
    """One line for each method, in full precision; a missing value is empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(found["methods"])
    return out.getvalue()


def _spreads(lines: Sequence[Mapping[str, Any]]) -> list[Table]:
    rows = [
        [line["name"], _number(line["spread"]["selection"]), _number(line["spread"]["training"])]
        for line in lines
        if line["spread"]
    ]
    heads = ["trained on", "seed of the selection", "seed of the training"]
    return [("Standard deviation of the score", heads, rows)] if rows else []


def _matrix(title: str, found: Mapping[str, Any], shown: Callable[[float | None], str]) -> Table:
    names = found["names"]
    return title, ["", *names], [[name, *map(shown, line)] for name, line in zip(names, found["values"], strict=True)]


def _total(line: Mapping[str, Any]) -> float:
    return float(line["selection_seconds"] or 0) + float(line["training_seconds"] or 0)


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _interval(line: Mapping[str, Any], mean: str, low: str, high: str, shown: Callable[..., str]) -> str:
    """A mean, with its interval if there is one."""
    bounds = "" if line[low] is None else f" ({shown(line[low], 2)} to {shown(line[high], 2)})"
    return shown(line[mean]) + bounds


def _signed(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:+.{digits}f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _time(seconds: float | None) -> str:
    return "" if seconds is None else duration(seconds)

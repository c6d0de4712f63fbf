"""Shows a check: a line for each bin with bars, the orders with their intervals, and what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raysift.evaluation.check import LOSS, METRIC, STATES, TAUGHT
from raysift.evaluation.check_words import bars, interval_words
from raysift.evaluation.entries import BASE
from raysift.jobs.runs.console import Console

Table = tuple[str, list[str], list[list[str]]]
"""Title, column heads, rows."""
Found = Mapping[str, Any]


def tables(found: Found) -> list[Table]:
    """The bins, and the orders."""
    return [_bins(found), _orders(found)]


def sentences(found: Found) -> list[str]:
    """What the check says, the sentence that matters most first."""
    return list(found["verdicts"])


def bin_lines(found: Found) -> list[dict[str, Any]]:
    """A line for the base model, as bin 0, and for each bin: bounds of the scores, and the mean of each measurement."""
    scores = [{"high": None, "low": None}, *found["scores"]]
    return [
        {"bin": number, "score_high": scores[number]["high"], "score_low": scores[number]["low"]}
        | {
            f"{name} {state}": measured["bins"][number - 1]["mean"] if number else measured["base"]
            for state, kinds in found["states"].items()
            for name, measured in kinds.items()
        }
        for number in range(found["quantiles"] + 1)
    ]


def _bins(found: Found) -> Table:
    lines = bin_lines(found)
    columns = [[BASE if not line["bin"] else str(line["bin"]) for line in lines]]
    columns.append(
        ["" if not line["bin"] else f"{line['score_high']:.3g} to {line['score_low']:.3g}" for line in lines]
    )
    heads = ["bin", "scores"]
    for name in (LOSS, METRIC):
        for state in (state for state in STATES if name in found["states"].get(state, {})):
            values = [line[f"{name} {state}"] for line in lines]
            drawn = bars(values)
            shown = [f"{value:.3f} {bar}" for value, bar in zip(values, drawn, strict=True)]
            heads.append(f"{_named(found, name)}, {state}")
            columns.append(shown)
    title = (
        f"{found['method']}: {found['scored_rows']:,} rows in {found['quantiles']} bins by score, bin 1 the highest; "
        f"{found['rows']:,} rows a model, {found['seeds']} seeds"
    )
    return title, heads, [list(line) for line in zip(*columns, strict=True)]


def _orders(found: Found) -> Table:
    rows = [
        [f"{_named(found, name)}, {state}", interval_words(kinds[name]["order"]), _agreement(kinds[name]["order"])]
        for name in (LOSS, METRIC)
        for state, kinds in found["states"].items()
        if name in kinds
    ]
    if TAUGHT in found["states"]:
        order = found["format"]["order"]
        rows.append(["little gained by the format", interval_words(order), _agreement(order)])
    title = f"Rank correlation with the score, {found['confidence']:.0%} intervals over bins; 1: the higher, the better"
    return title, ["of", "correlation", "two seeds agree"], rows


def _agreement(order: Found | None) -> str:
    return "" if order is None or order["agreement"] is None else f"{order['agreement']:.2f}"


def _named(found: Found, name: str) -> str:
    return name if name == LOSS else str(found["metric"])


def show(found: Found, console: Console) -> None:
    """Print tables and sentences."""
    for table in tables(found):
        console.table(*table)
    for sentence in sentences(found):
        console.note(sentence)


def as_markdown(found: Found) -> str:
    """Sentences and tables as a Markdown page."""
    parts = ["\n".join(f"- {_cell(sentence)}" for sentence in sentences(found))]
    for title, heads, lines in tables(found):
        rows: Sequence[Sequence[str]] = [heads, ["---"] * len(heads), *lines]
        parts.append(f"**{_cell(title)}**\n\n" + "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in rows))
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


__all__ = ["as_markdown", "bin_lines", "sentences", "show", "tables"]

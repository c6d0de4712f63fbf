"""`raysift check`: rank the rows of a finished run, draw of each bin, train, teach and measure, and say what the order is worth.

CHECK/rows/          the rows that each seed draws of each bin
CHECK/cells/         what was measured, named by a hash of all that decides it
CHECK/check.json     the result, beside check.md
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raysift.evaluation.check import Figures, summarise
from raysift.evaluation.check_words import verdicts
from raysift.jobs.check.cells import Cell, plan_cells, run_cells
from raysift.jobs.check.draws import draw
from raysift.jobs.check.plan import Plan
from raysift.jobs.check.result import write_result
from raysift.jobs.runs.run import Run


def check(run: Run, plan: Plan) -> dict[str, Any]:
    """Do the whole check in a folder of its own, write its result and return it."""
    with run.at_work(now=True):
        draws = [draw(run, plan, seed) for seed in plan.seeds]
        cells = plan_cells(run, plan, draws)
        for words in costs(plan, cells):
            run.console.note(words)
        figures = run_cells(run, plan, draws, cells)
        found = conclude(plan, cells, figures)
        write_result(run.folder, found)
    return found


def costs(plan: Plan, cells: Sequence[Cell]) -> list[str]:
    """What is trained and measured, told before it starts."""
    train, held, settings = plan.config.train, plan.held, plan.settings
    left = len({cell.place.path for cell in cells if cell.figures() is None})
    bins = len(plan.bins.bins)
    rows = f"{plan.each:,} rows x {train.epochs} epochs" + (
        f", {train.max_steps} steps at most" if train.max_steps else ""
    )
    size = len(plan.bins.bins[-1].ids)
    taught = (
        f"; then {settings.taught_steps} steps on {len(held.taught)} examples of the {held.taught_from} teach the format"
        if held.taught
        else ""
    )
    what = "pairs" if held.are_pairs else "examples"
    return [
        f"check: {plan.scored:,} scored rows in {bins} bins of {size:,}; {bins} bins x {settings.seeds} seeds and the base model "
        f"are {len(cells):,} models, {left:,} of them to do, each trained on {rows}{taught}",
        f"check: each answers {len(held.measured):,} of {held.found:,} held-out {what}"
        + (" twice" if held.taught else "")
        + ("" if held.metric else "; they name no metric, so the loss alone is measured"),
    ]


def conclude(plan: Plan, cells: Sequence[Cell], figures: Sequence[Figures]) -> dict[str, Any]:
    """The result as plain JSON types, sentences included."""
    held, config = plan.held, plan.config
    by_cell = {(cell.bin, cell.seed): one for cell, one in zip(cells, figures, strict=True) if cell.bin}
    found = {
        "run": plan.source.name,
        "method": config.method,
        "model": config.model,
        "quantiles": len(plan.bins.bins),
        "rows": plan.each,
        "scored_rows": plan.scored,
        "pool_rows": int(plan.rows.counts["kept"]),
        "ties": plan.bins.ties,
        "scores": [{"high": one.high, "low": one.low, "rows": len(one.ids)} for one in plan.bins.bins],
        "held_out": {"kind": "pairs" if held.are_pairs else "examples", "found": held.found},
        "taught": {"examples": len(held.taught), "steps": plan.settings.taught_steps, "from": held.taught_from},
        "metric": held.metric,
    } | summarise(figures[0], by_cell, config.evaluate.confidence)
    return found | {"verdicts": verdicts(found)}

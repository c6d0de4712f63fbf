"""Writes a report: report.json, and report.html, which draws it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from raysift.errors import RaysiftError
from raysift.jobs.report.record import report_of, report_of_runs
from raysift.jobs.runs.run import Run
from raysift.report.blocks import as_json
from raysift.storage import Location

PAGE, DATA = "report.html", "report.json"


def record_of(runs: Sequence[Run], with_text: bool = True) -> dict[str, Any]:
    """The record of one run or comparison, or of several runs, as plain JSON types."""
    found = report_of(runs[0], with_text) if len(runs) == 1 else report_of_runs(runs, with_text)
    plain: dict[str, Any] = as_json(found)
    return plain


def write_report(runs: Sequence[Run], folder: Location, with_text: bool = True) -> Location:
    """Write record and page into a folder, and return the page; the same runs give the same bytes."""
    from raysift.jobs.report.page.page import write_page

    record = record_of(runs, with_text)
    (folder / DATA).write(orjson.dumps(record, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    write_page(record, folder / PAGE)
    return folder / PAGE


def report_at_end(run: Run, wanted: bool = True) -> None:
    """Write the report of a run that has just finished. An error becomes a warning: what is finished stays finished."""
    if not wanted:
        return
    try:
        run.console.note(f"report: {write_report([run], run.folder)}")
    except Exception as error:
        # Messages of other libraries may hold text of rows.
        why = str(error) if isinstance(error, RaysiftError) else type(error).__name__
        run.console.warn(f"report: none was written ({why}). The run is finished. Try again: raysift report {run.name}")

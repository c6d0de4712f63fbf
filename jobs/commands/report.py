"""`raysift report RUN [RUN ...]`: one page about a run, about several, or about a comparison. Needs no Ray and no model."""

from __future__ import annotations

import json
from collections.abc import Sequence

from raysift.errors import ConfigError, system_words
from raysift.jobs.compare.result import is_comparison
from raysift.jobs.report.writing import DATA, record_of, write_report
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.run import open_run
from raysift.storage import open_location


def report_command(folders: Sequence[str], out: str | None, with_text: bool, as_json: bool, console: Console) -> None:
    """Write the report and print where it lies, or print its record."""
    runs = [open_run(folder, console) for folder in dict.fromkeys(folders)]
    if len(runs) > 1 and (wrong := [run.name for run in runs if is_comparison(run.folder)]):
        raise ConfigError(
            f"report: '{wrong[0]}' is a comparison, which has a report of its own: raysift report {wrong[0]}. "
            "Several runs in one report must be runs of methods."
        )
    if as_json:
        print(json.dumps(record_of(runs, with_text), indent=1))
        return
    folder = open_location(out) if out else runs[-1].folder
    try:
        if folder.exists() and not folder.is_folder():
            raise ConfigError(f"report: --out '{out}' is a file, expected a folder. Name another one.")
        place = write_report(runs, folder.make_folder(), with_text)
    except OSError as error:
        raise ConfigError(f"report: cannot write into '{folder}': {system_words(error)} Name another --out.") from None
    console.note(f"report: {place}, and {DATA} beside it")

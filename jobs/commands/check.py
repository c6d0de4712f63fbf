"""`raysift check RUN`: from the command line to a check and its output."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raysift.errors import ConfigError
from raysift.jobs.check import rendering
from raysift.jobs.check.check import check
from raysift.jobs.check.plan import make_plan
from raysift.jobs.check.result import FOLDER, RESULT
from raysift.jobs.cluster.session import own_session
from raysift.jobs.report.writing import report_at_end
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.reuse import run_name
from raysift.jobs.runs.run import Run, open_run
from raysift.storage import extend_name

FORMATS = ("table", "md", "json")


def check_command(
    name: str, changes: Mapping[str, Any], overrides: Sequence[str], form: str, out: str | None, console: Console
) -> None:
    """Check a run, print the result, and write the run's report again."""
    if form not in FORMATS:
        raise ConfigError(f"--format: '{form}' is unknown. Allowed: {', '.join(FORMATS)}.")
    with own_session(console) as start:
        found, run = check_run(name, changes, overrides, out, console, start)
    if form == "table":
        rendering.show(found, console)
        console.note(f"result: {run.folder / RESULT}, and check.md beside it")
    else:
        print({"md": rendering.as_markdown, "json": _as_json}[form](found), end="")


def check_run(
    name: str,
    changes: Mapping[str, Any],
    overrides: Sequence[str],
    out: str | None,
    console: Console,
    start: Callable[[], None],
) -> tuple[dict[str, Any], Run]:
    """The result of a check and the folder that holds it, a run's own `check` unless another one is named."""
    source = open_run(name, console)
    plan = make_plan(source, changes, overrides)
    run = Run(out or checking_name(name), console, [run_name(name)], start)
    found = check(run, plan)
    if out is None:
        report_at_end(source, plan.config.report)
    return found, run


def checking_name(name: str) -> str:
    """The folder of a run's own check."""
    return extend_name(name, f"/{FOLDER}")


def _as_json(found: Mapping[str, Any]) -> str:
    return json.dumps(found, indent=1) + "\n"

"""`raysift compare FILE.yaml` or `raysift compare RUN RUN ...`: from the command line to a comparison and its output."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from raysift.config import gather_settings
from raysift.errors import ConfigError
from raysift.jobs.cluster.session import own_session
from raysift.jobs.compare import rendering
from raysift.jobs.compare.compare import check_claims, compare, require_claims
from raysift.jobs.compare.plan import Plan, make_plan
from raysift.jobs.report.writing import report_at_end
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.replay import name_from_anywhere
from raysift.jobs.runs.reuse import run_name
from raysift.jobs.runs.run import Run

Format = Literal["table", "md", "csv", "json"]
FORMATS = ("table", "md", "csv", "json")


def compare_command(
    named: Sequence[str],
    given: Mapping[str, Any],
    overrides: Sequence[str],
    claims: Sequence[str],
    form: str,
    folder: str | None,
    console: Console,
) -> None:
    """Compare what a YAML or options name, or finished runs."""
    if form not in FORMATS:
        raise ConfigError(f"--format: '{form}' is unknown. Allowed: {', '.join(FORMATS)}.")
    plan, values = read_plan(named, given, overrides)
    folder = folder or str(values.get("run") or "runs/compare")
    check_claims(plan, claims)
    with own_session(console) as start:
        run = Run(folder, console, start=start)
        found = compare(run, plan, values, claims)
    report_at_end(run, plan.shared.report)
    if form == "table":
        rendering.show(found, console)
        console.note(f"result: {folder}/compare.json, compare.md, compare.csv")
    else:
        print({"md": rendering.as_markdown, "csv": rendering.as_csv, "json": _as_json}[form](found), end="")
    require_claims(found)


def read_plan(named: Sequence[str], given: Mapping[str, Any], overrides: Sequence[str]) -> tuple[Plan, dict[str, Any]]:
    """The plan, and the settings that repeat it: a YAML file and options, or finished runs and options."""
    files = [name for name in named if name.endswith((".yaml", ".yml"))]
    if files and len(named) > 1:
        raise ConfigError(f"compare: found {', '.join(named)}; expected one YAML file, or finished runs.")
    values = name_from_anywhere(gather_settings(files[0] if files else None, given, overrides))
    if named and not files:
        values["compare"] = {**(values.get("compare") or {}), "runs": [run_name(name) for name in named]}
    return make_plan(values), values


def _as_json(found: Mapping[str, Any]) -> str:
    return json.dumps(found, indent=1) + "\n"

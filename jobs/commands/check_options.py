"""`raysift check`: its arguments and options, and nothing heavy."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from raysift.jobs.commands.options import make_console, takes

Quantiles = Annotated[int | None, typer.Option("--quantiles", min=3, help="Bins of equal size; default: 10.")]
Rows = Annotated[
    int | None,
    typer.Option(
        "--rows", min=1, help="Rows of each bin that a model is trained on; default: as many as the run chose."
    ),
]
Seeds = Annotated[int | None, typer.Option("--seeds", min=1, help="Models of each bin; default: 3.")]
HeldOut = Annotated[
    list[str] | None,
    typer.Option(
        "--held-out",
        metavar="FILE...",
        help="Examples or pairs to measure on, apart from the target; default: the run's test files.",
    ),
]
Taught = Annotated[
    int | None,
    typer.Option("--taught", min=0, help="Examples that teach the target's format before a second look; default: 8."),
]
Out = Annotated[
    str | None, typer.Option("--out", help="Folder or URI for the results; default: check in the run's folder.")
]
Form = Annotated[str, typer.Option("--format", help="table, md or json.")]


def add_check(app: typer.Typer) -> None:
    """Add the command."""
    app.command("check", rich_help_panel="Look")(check)


@takes("model", "adapter", "report", "log", "overrides")
def check(
    given: dict[str, Any],
    run: Annotated[str, typer.Argument(help="A finished run of any method.", metavar="RUN")],
    quantiles: Quantiles = None,
    rows: Rows = None,
    seeds: Seeds = None,
    held_out: HeldOut = None,
    taught: Taught = None,
    out: Out = None,
    form: Form = "table",
) -> None:
    """Test whether rows that score higher teach more: train on bins of the ranked pool, and measure on held-out examples."""
    console, overrides = make_console(given.pop("log"), "check"), given.pop("overrides") or []
    named = {"quantiles": quantiles, "rows": rows, "seeds": seeds, "held_out": held_out or None, "taught": taught}
    extra = [f"check.{key}={json.dumps(value)}" for key, value in named.items() if value is not None]
    from raysift.jobs.commands.check import check_command

    changes = {key: value for key, value in given.items() if value is not None}
    check_command(run, changes, [*extra, *overrides], form, out, console)

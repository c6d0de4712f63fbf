"""The commands that take a method's arguments: one for each method, `search`, and `plan`, which says what a run would take."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from raysift.jobs.commands.method_help import MethodCommand
from raysift.jobs.commands.options import AsJson, prepare, takes
from raysift.methods import METHODS, find_method

ARGUMENTS = (
    *("pool", "target", "model", "budget", "run", "reuse", "config", "seed", "adapter", "train", "test"),
    *("on_bad_file", "fresh", "report", "log", "overrides"),
)


def add_methods(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for name, method in METHODS.items():
        _add_method(app, name, method.summary)
    search = "Search policy settings of RAISE (Ray Tune); best.yaml is for `raysift raise --config`."
    _add_method(app, "search", search, "raise")
    app.command("plan", rich_help_panel="Look")(plan)


def _add_method(app: typer.Typer, name: str, summary: str, method: str | None = None) -> None:
    """Add a method's command; they differ in name only. With `method`, the command searches settings for that method."""
    follows = () if method else ("plan", "stop_over")

    @takes(*ARGUMENTS, *follows, hide_target=not METHODS[method or name].takes_target)
    def command(given: dict[str, Any]) -> None:
        plan, stop_over = given.pop("plan", None), given.pop("stop_over", None)
        settings, console = prepare(name, given | {"method": method or name})
        from raysift.jobs.commands.actions import run_search, run_selection
        from raysift.jobs.runs.checks import check_named

        check_named(settings, given["target"], given["test"])
        if method:
            run_search(settings, console)
        else:
            run_selection(settings, console, plan, stop_over)

    panel = "Steps" if method else "Methods"
    app.command(name, cls=MethodCommand, help=summary, rich_help_panel=panel)(command)


@takes(*ARGUMENTS)
def plan(
    given: dict[str, Any],
    method: Annotated[str, typer.Argument(help="A method, such as less.", metavar="METHOD")],
    out: Annotated[str, typer.Option("--out", help="File for the plan.")] = "plan.json",
    gpus: Annotated[
        str | None, typer.Option("--gpus", help="Plan for a described cluster, such as 8xH100, by arithmetic alone.")
    ] = None,
    price: Annotated[
        float | None, typer.Option("--price", min=0, help="Dollars of a GPU-hour; without GPUs, of a machine-hour.")
    ] = None,
    hours: Annotated[
        float | None, typer.Option("--hours", min=0, help="Look for settings that finish in so many hours.")
    ] = None,
    dollars: Annotated[
        float | None, typer.Option("--dollars", min=0, help="Look for settings that cost no more; needs --price.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a run of METHOD with these arguments would take, stage by stage: hours, memory, bytes, and what is cheaper.

    Tries a few rows of the pool with the real models for up to half a minute. Ends with exit code 2 and what to do if the run
    would not work.
    """
    find_method(method)
    settings, console = prepare("plan" if as_json else "plan METHOD", given | {"method": method})
    if "run" not in settings.model_fields_set:
        settings = settings.model_copy(update={"run": f"runs/{method}"})
    from raysift.jobs.commands.plan import plan_command
    from raysift.jobs.planning.planning import Asked
    from raysift.jobs.runs.checks import check_named

    check_named(settings, given["target"], given["test"])
    plan_command(settings, Asked(gpus, price, hours, dollars), out, as_json, console)

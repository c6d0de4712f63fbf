"""The command line: parse and check first, import heavy libraries afterwards. `raysift --help` loads no model library and no Ray.

One grammar for every method:

    raysift METHOD --pool PATH... [--target PATH...] [--model nano|ID|DIR] --budget 5%|2000|1.5Mtok --run runs/NAME
                   [--config FILE] [section.key=value ...]
    raysift run FILE.yaml [section.key=value ...]

Exit codes: 0 done, 1 unexpected, 2 settings, 3 data, 4 the run holds other results, 5 a stage failed, 6 model,
7 a comparison's --assert does not hold, 130 interrupted, 143 terminated. Where nothing but names is wrong, a command ends
with 2 before Ray starts: `run` without a method or with an unknown one, `export` of an unfinished run, to an unknown
format or into a folder of other files, `explain` of a text that is no id or the beginning of several, `show` of no run,
`nano target|pairs|test` of an unknown skill. 3 is for what was looked up and is not there: files, rows, an id; and for rows
that the format of `export` cannot hold.
"""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from raysift.errors import ConfigError
from raysift.jobs.commands import nano
from raysift.jobs.commands.check_options import add_check
from raysift.jobs.commands.guard import run_guarded
from raysift.jobs.commands.methods import add_methods
from raysift.jobs.commands.options import (
    AgainstAdapter,
    AgainstAnswers,
    AgainstModel,
    Answers,
    AsJson,
    Claims,
    Compared,
    Form,
    Fresh,
    JudgeModel,
    Log,
    Methods,
    PoolArgument,
    Report,
    Seeds,
    is_override,
    make_console,
    prepare,
    spread_multiple,
    takes,
    with_paths,
)

app = typer.Typer(
    name="raysift",
    help="Pick the few per cent of an instruction pool worth training on, and train on them.",
    epilog=(
        "Exit codes: 0 done, 1 unexpected, 2 settings, 3 data, 4 the run holds other results, 5 a stage failed, 6 model, "
        "7 a comparison's --assert does not hold, 130 interrupted, 143 terminated."
    ),
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(nano.app, name="nano", no_args_is_help=True, rich_help_panel="Look")


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and end.", is_eager=True, callback=lambda told: _version(told)
        ),
    ] = False,
) -> None:
    """Pick the few per cent of an instruction pool worth training on, and train on them."""


def _version(told: bool) -> None:
    if told:
        from raysift import __version__

        print(f"raysift {__version__}")
        raise typer.Exit


add_methods(app)


@app.command(rich_help_panel="Steps")
@takes("pool", "run", "reuse", "config", "on_bad_file", "fresh", "log")
def ingest(
    given: dict[str, Any],
    paths: PoolArgument = None,
) -> None:
    """Read a pool: detect its format, assign ids, check rows, remove exact duplicates."""
    settings, console = prepare("ingest", *with_paths(given, paths))
    from raysift.jobs.commands.actions import run_ingest

    run_ingest(settings, console)


@app.command(rich_help_panel="Steps")
@takes(
    *("pool", "model", "adapter", "run", "reuse", "config", "seed", "test", "on_bad_file", "fresh", "log", "overrides")
)
def finetune(
    given: dict[str, Any],
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="less, mods, raise, nano, ...: preset of `train`.")
    ] = None,
) -> None:
    """Fine-tune a model on all rows of a pool or a selection; evaluate it if --test names examples."""
    settings, console = prepare("finetune", given, [f"train.recipe={recipe}"] if recipe else [])
    from raysift.jobs.commands.actions import run_finetune

    run_finetune(settings, console)


@app.command(rich_help_panel="Steps")
@takes("test", "model", "adapter", "run", "reuse", "config", "seed", "fresh", "log", "overrides")
def evaluate(given: dict[str, Any]) -> None:
    """Score a model, with or without an adapter, on example files."""
    settings, console = prepare("evaluate", given)
    from raysift.jobs.commands.actions import run_evaluate

    run_evaluate(settings, console)


@app.command(rich_help_panel="Look")
@takes("pool", "target", "test", "model", "adapter", "budget", "run", "seed", "report", "log")
def compare(
    given: dict[str, Any],
    named: Compared = None,
    methods: Methods = None,
    seeds: Seeds = None,
    form: Form = "table",
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    claims: Claims = None,
) -> None:
    """Compare methods under one budget and recipe: score, difference to uniform, cost, overlap, and a verdict in words."""
    overrides = [name for name in named or [] if is_override(name)]
    places = [name for name in named or [] if name not in overrides]
    extra = {"compare.methods": methods and list(methods.split(",")), "compare.seeds": seeds}
    overrides += [f"{key}={json.dumps(value)}" for key, value in extra.items() if value]
    console = make_console(given.pop("log"), "compare")
    folder = given.pop("run")
    from raysift.jobs.commands.compare import compare_command

    compare_command(places, given, overrides, claims or [], "json" if as_json else form, folder, console)


add_check(app)


@app.command("win-rate", rich_help_panel="Steps")
@takes("test", "model", "adapter", "run", "reuse", "config", "seed", "fresh", "log", "overrides")
def win_rate(
    given: dict[str, Any],
    answers: Answers = None,
    against_model: AgainstModel = None,
    against_adapter: AgainstAdapter = None,
    against_answers: AgainstAnswers = None,
    judge: JudgeModel = None,
) -> None:
    """Let a judge decide, question by question, which of two models answers better."""
    named = {"answers": answers, "against.model": against_model, "against.adapter": against_adapter}
    named |= {"against.answers": against_answers, "judge.model": judge}
    extra = [f"win_rate.{key}={json.dumps(value)}" for key, value in named.items() if value is not None]
    settings, console = prepare("win-rate", given, extra)
    from raysift.jobs.pairwise.win_rate import win_rate_command
    from raysift.pairwise.settings import WinRateSettings

    win_rate_command(settings, settings.win_rate or WinRateSettings(), console)


@app.command(rich_help_panel="Steps")
@takes("target", "run", "reuse", "budget", "report", "log", "overrides")
def rescore(
    given: dict[str, Any],
    source: Annotated[str, typer.Argument(help="A finished run with matching=store.", metavar="RUN")],
) -> None:
    """Select for other targets from the gradients that a run has stored, without a new pass over the rows."""
    if not given["target"]:
        raise ConfigError("config: 'target' is missing. Name what to select for now: --target FILE...")
    from raysift.jobs.commands.actions import run_rescore

    overrides = [*(given["overrides"] or []), *(["report=false"] if given["report"] is False else [])]
    new = (given["target"], given["run"], given["budget"], overrides)
    run_rescore(source, *new, make_console(given["log"]), given["reuse"] or [])


@app.command("run", rich_help_panel="Steps")
@takes("run", "reuse", "fresh", "report", "log", "overrides")
def run_file(
    given: dict[str, Any],
    file: Annotated[
        str, typer.Argument(help="Settings, such as `raysift look POOL --write FILE` makes.", metavar="FILE")
    ],
) -> None:
    """Do what a YAML file describes: its key `method` names a method, or ingest, finetune, evaluate.

    Its relative paths are relative to the current folder, as with --config. Exit codes: 2 for settings, 3 for data,
    and those of the method.
    """
    from raysift.jobs.commands.run_yaml import run_command

    run_command(file, given, given.pop("overrides") or [])


@app.command(rich_help_panel="Look")
def export(
    run: Annotated[str, typer.Argument(help="A run with a finished selection.", metavar="RUN")],
    to: Annotated[str, typer.Option("--to", help="messages, alpaca, sharegpt, original or parquet.")],
    out: Annotated[
        str | None, typer.Option("--out", help="Folder or URI; default: selected-FORMAT in the run's folder.")
    ] = None,
    log: Log = None,
) -> None:
    """Write the rows of a finished selection in another format, with a data card. Needs no Ray.

    Exit codes: 2 for a run without a selection, a format or a folder that cannot be used; 3 for rows that the format
    cannot hold.
    """
    from raysift.jobs.commands.export import export_command

    export_command(run, to, out, make_console(log))


@app.command(rich_help_panel="Look")
def show(
    run: Annotated[str, typer.Argument(help="A run folder.")],
    by: Annotated[
        str | None, typer.Option("--by", help="Group the selection by a column of the rows' meta, such as skill.")
    ] = None,
    as_json: AsJson = False,
    log: Log = None,
) -> None:
    """Show what a run did: its stages, rows kept or dropped and why, rows selected."""
    if as_json:
        from raysift.jobs.commands.describe_run import print_run

        print_run(run, by)
    else:
        from raysift.jobs.commands.show import show_run

        show_run(run, make_console(log), by)


@app.command(rich_help_panel="Look")
def report(
    runs: Annotated[list[str], typer.Argument(help="A run or a comparison; or several runs.", metavar="RUN...")],
    out: Annotated[
        str | None, typer.Option("--out", help="Folder or URI; default: the folder of the run named last.")
    ] = None,
    text: Annotated[bool, typer.Option("--text/--no-text", help="Show the texts of rows.")] = True,
    as_json: AsJson = False,
    log: Log = None,
) -> None:
    """Write one page about a run, to read and to pass on: report.html, and report.json beside it. Needs no Ray.

    Every method, `compare` and `demo` write it at their end, unless told --no-report. With several runs, it shows how they
    differ.
    """
    from raysift.jobs.commands.report import report_command

    report_command(runs, out, text, as_json, make_console(log))


@app.command(rich_help_panel="Look", context_settings={"ignore_unknown_options": True})
def explain(
    run: Annotated[str, typer.Argument(help="A run folder.")],
    row: Annotated[str, typer.Argument(help="The first digits of a row's id, as `show` prints it.", metavar="ID")],
    pairs: Annotated[
        bool, typer.Option("--pairs/--no-pairs", help="Load the model and tell which target pairs pull most.")
    ] = True,
    text: Annotated[
        bool, typer.Option("--text/--no-text", help="Print the texts of the row and of what is near it.")
    ] = True,
    as_json: AsJson = False,
    log: Log = None,
) -> None:
    """Explain why a row was selected or not: its text, the numbers that decided, what pulls it, what would have changed it.

    Exit codes: 2 for a text that is no id or the beginning of several, 3 for an id that no row has.
    """
    from raysift.jobs.commands.explained import explain_command

    explain_command(run, row, pairs, text, as_json, make_console(log))


@app.command(rich_help_panel="Look")
@takes("pool", "target", "model", "budget", "config", "seed", "log")
def look(
    given: dict[str, Any],
    paths: PoolArgument = None,
    write: Annotated[
        str | None, typer.Option("--write", help="YAML file to make: the settings that matter, commented.")
    ] = None,
) -> None:
    """Show what is in a pool and its targets, and which methods can use them. Needs no model and no Ray.

    With --target and --model, that model computes how far the target's pairs or examples agree, as a run of `rose` or `less`
    says before its pass over the pool.
    """
    named, overrides = with_paths(given, paths)
    settings, console = prepare("look", named, overrides)
    from raysift.jobs.commands.look import look as look_at
    from raysift.jobs.runs.checks import check_pool

    check_pool(settings)
    computes = given["model"] is not None and settings.target
    look_at(
        settings,
        write,
        console,
        (lambda method: prepare("look", named | {"method": method}, overrides)[0]) if computes else None,
    )


@app.command(rich_help_panel="Look")
def settings(
    method: Annotated[str, typer.Argument(help="A method, such as less.", metavar="METHOD")],
    key: Annotated[str | None, typer.Argument(help="A setting or a section, such as less.match.")] = None,
    model: Annotated[str, typer.Option("--model", help="Defaults are those for this model.")] = "nano",
    log: Log = None,
) -> None:
    """List a method's settings: default, allowed values, meaning, and whether they affect the result."""
    from raysift.jobs.commands.settings import show_settings

    show_settings(method, key, model, make_console(log))


@app.command(rich_help_panel="Look")
@takes("model", "run", "config", "log", "overrides")
def doctor(given: dict[str, Any]) -> None:
    """Report what this machine offers and what would prevent a run, as text to paste into a bug report."""
    settings, console = prepare("doctor", given)
    from raysift.jobs.commands.doctor import doctor as examine

    raise typer.Exit(0 if examine(settings, console) else 1)


@app.command(rich_help_panel="Look")
def demo(
    run: Annotated[str, typer.Option("--run", help="Folder for the results.")] = "runs/demo",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Seeds under which each training set is trained.")] = 2,
    fresh: Fresh = False,
    report: Report = None,
    log: Log = None,
) -> None:
    """Compare every method on a small synthetic world, in minutes and offline."""
    console = make_console(log, "demo")
    from raysift.jobs.commands.demo import run_demo
    from raysift.jobs.runs.run import free_name

    run_demo(free_name(run) if fresh else run, seeds, console, report is not False)


@app.command(
    rich_help_panel="Cluster",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def submit(
    context: typer.Context,
    address: Annotated[
        str | None, typer.Option("--address", help="The cluster's job server, http://HOST:8265.")
    ] = None,
    submission_id: Annotated[str | None, typer.Option("--submission-id", help="Name of the job.")] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Stream the log and return the job's exit code.")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be submitted.")] = False,
) -> None:
    """Run a command on a Ray cluster: raysift submit --address URL -- METHOD ..."""
    from raysift.jobs.commands.submit import submit_command

    raise typer.Exit(submit_command(context.args, address, submission_id, wait, dry_run))


def main() -> None:
    """Entry point of the `raysift` command."""
    sys.exit(run_guarded(lambda: app(args=spread_multiple(sys.argv[1:]), standalone_mode=True)))


if __name__ == "__main__":
    main()

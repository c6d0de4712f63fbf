"""Options shared by commands (one name, one meaning, one line of help), and the settings and console made from them."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raysift.errors import ConfigError

if TYPE_CHECKING:
    from raysift.config import CommonConfig
    from raysift.jobs.runs.console import Console

MULTIPLE = ("--pool", "--target", "--test", "--reuse", "--held-out")
OVERRIDE = re.compile(r"^([a-z_][a-z0-9_]*)(\.[a-z_][a-z0-9_]*)*=")

LOOKS = ("look", "doctor")  # commands that start no Ray


def complete_setting(context: typer.Context, incomplete: str) -> list[str]:
    """Settings that begin so, section by section, for the shell: `less.match.` after `less.ma`."""
    from raysift.jobs.commands.settings import settings_of
    from raysift.methods import METHODS

    name = str(context.info_name)
    keys = [f"{one.key}=" for one in settings_of(name if name in METHODS else "uniform")]
    depth = incomplete.count(".") + 1
    found = {".".join(key.split(".")[:depth]) + ("." if key.count(".") >= depth else "") for key in keys}
    return sorted(one for one in found if one.startswith(incomplete))


Pool = Annotated[
    list[str] | None, typer.Option("--pool", metavar="PATH...", help="Files, folders, globs or URIs of the pool.")
]
Target = Annotated[
    list[str] | None, typer.Option("--target", metavar="FILE...", help="Examples or preference pairs to select for.")
]
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help="nano, smol, a Hugging Face id or a local folder; default: nano."),
]
Adapter = Annotated[
    str | None,
    typer.Option(
        "--adapter",
        metavar="PATH",
        help="A PEFT adapter on the model: training goes on from it, evaluation uses it; default: none.",
    ),
]
BudgetOption = Annotated[
    str | None, typer.Option("--budget", metavar="BUDGET", help="5%, 2000 (rows), 1.5Mtok (tokens); default: 5%.")
]
RunName = Annotated[
    str | None, typer.Option("--run", metavar="RUN", help="Folder or URI for the results; default: runs/COMMAND.")
]
Reuse = Annotated[
    list[str] | None,
    typer.Option(
        "--reuse",
        metavar="RUN...",
        help="A run whose finished stages count here, where settings and inputs are the same.",
    ),
]
ConfigFile = Annotated[
    str | None,
    typer.Option(
        "--config", metavar="FILE", help="YAML file with settings; its paths are relative to the current folder."
    ),
]
Seed = Annotated[
    int | None, typer.Option("--seed", metavar="NUMBER", help="Every random choice follows from it; default: 0.")
]
Test = Annotated[list[str] | None, typer.Option("--test", metavar="FILE...", help="Example files to evaluate on.")]
OnBadFile = Annotated[
    str | None, typer.Option("--on-bad-file", help="stop (default), or quarantine: set the file aside.")
]
Train = Annotated[bool, typer.Option("--train", help="Fine-tune the model on the selection.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Write under the next free name instead of an existing run.")]
Report = Annotated[
    bool | None, typer.Option("--report/--no-report", help="Write report.html at the end; default: yes.")
]
PlanFile = Annotated[
    str | None,
    typer.Option("--plan", metavar="FILE", help="Follow the plan that `raysift plan` wrote: tell the drift."),
]
StopOver = Annotated[
    str | None,
    typer.Option("--stop-over", metavar="FACTOR", help="Stop when the run will take more, such as 1.5x the plan."),
]
Log = Annotated[str | None, typer.Option("--log", help="rich, plain, quiet or json; default: rich on a terminal.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead; ids are text.")]
AgainstModel = Annotated[str | None, typer.Option("--against-model", help="The model to compare with.")]
AgainstAdapter = Annotated[str | None, typer.Option("--against-adapter", help="A PEFT adapter on it.")]
Answers = Annotated[
    str | None, typer.Option("--answers", help="In place of --model: a run of `raysift evaluate`, or a Parquet file.")
]
AgainstAnswers = Annotated[str | None, typer.Option("--against-answers", help="In place of --against-model: the same.")]
JudgeModel = Annotated[str | None, typer.Option("--judge", help="Who judges; default: nano:reward.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Settings: raysift settings METHOD",
        metavar="[SECTION.KEY=VALUE]...",
        show_default=False,
        autocompletion=complete_setting,
    ),
]
PoolArgument = Annotated[
    list[str] | None,
    typer.Argument(help="The pool, as with --pool, and settings.", metavar="[PATH]... [SECTION.KEY=VALUE]..."),
]

Compared = Annotated[
    list[str] | None,
    typer.Argument(
        help="One YAML file, or finished runs; and section.key=value ...",
        metavar="FILE or RUN...",
        show_default=False,
    ),
]
Methods = Annotated[
    str | None, typer.Option("--methods", help="Methods by name: less,rose,mods. In a YAML: compare.methods.")
]
Seeds = Annotated[int | None, typer.Option("--seeds", min=1, help="Selections of each method; default: 3.")]
Form = Annotated[str, typer.Option("--format", help="table, md, csv or json.")]
Claims = Annotated[
    list[str] | None,
    typer.Option("--assert", help="Such as 'rose>uniform' (better) or 'rose>=uniform' (not worse); else exit code 7."),
]

HIDDEN_TARGET = Annotated[list[str] | None, typer.Option("--target", hidden=True)]

SHARED: dict[str, Any] = {
    "pool": Pool,
    "target": Target,
    "model": Model,
    "adapter": Adapter,
    "budget": BudgetOption,
    "run": RunName,
    "reuse": Reuse,
    "config": ConfigFile,
    "seed": Seed,
    "test": Test,
    "train": Train,
    "on_bad_file": OnBadFile,
    "fresh": Fresh,
    "report": Report,
    "log": Log,
    "plan": PlanFile,
    "stop_over": StopOver,
    "overrides": Overrides,
}


def takes(*names: str, hide_target: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds the named shared options to a command; its body receives them as one dictionary, `given`.

    With `hide_target`, help leaves out `--target`, which is then taken only to be refused with a reason.
    """

    def make_command(body: Callable[..., None]) -> Callable[..., None]:
        def command(**values: Any) -> None:
            body({name: values.pop(name) for name in names}, **values)

        _, *own = inspect.signature(body, eval_str=True).parameters.values()
        shared = [
            inspect.Parameter(
                name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=False if name in ("train", "fresh") else None,
                annotation=HIDDEN_TARGET if hide_target and name == "target" else SHARED[name],
            )
            for name in names
        ]
        parameters = sorted([*own, *shared], key=lambda one: one.default is not inspect.Parameter.empty)
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        command.__name__, command.__doc__ = body.__name__, body.__doc__
        return command

    return make_command


def make_console(log: str | None, command: str = "") -> Console:
    """Return a console in the requested voice and set library logs to match.

    A command that starts Ray says its name first: its libraries take seconds to load.
    """
    from raysift.jobs.runs.console import Console, set_up_logging

    voices = ("rich", "plain", "quiet", "json")
    voice = log or ("rich" if sys.stderr.isatty() else "plain")
    if voice not in voices:
        raise ConfigError(f"--log: '{voice}' is unknown. Allowed: {', '.join(voices)}.")
    set_up_logging(voice)  # type: ignore[arg-type]
    console = Console(voice)  # type: ignore[arg-type]
    if command and voice in ("rich", "plain"):
        console.line(command, "checking settings, pool and models ...")
    return console


def prepare(command: str, given: dict[str, Any], more: Sequence[str] = ()) -> tuple[CommonConfig, Console]:
    """Return checked settings and a console before heavy imports; `more` holds overrides that come from options."""
    from raysift.config import load_config
    from raysift.jobs.cluster.machines import gpus_in_reach

    named = dict(given)
    console = make_console(named.pop("log", None), "" if command in LOOKS else command)
    file, fresh, bad = (named.pop(name, None) for name in ("config", "fresh", "on_bad_file"))
    named["train_on_selection"] = named.pop("train", None) or None
    overrides = [*more, *(named.pop("overrides", None) or []), *([f"ingest.on_bad_file={bad}"] if bad else [])]
    settings = load_config(file, named, overrides, gpus_in_reach)
    run = settings.run if "run" in settings.model_fields_set else f"runs/{command}"
    if fresh:
        from raysift.jobs.runs.run import free_name

        run = free_name(run)
    return settings.model_copy(update={"run": run}), console


def with_paths(given: dict[str, Any], arguments: Sequence[str] | None) -> tuple[dict[str, Any], list[str]]:
    """The options with the pool's paths among the arguments, and the other arguments, which are settings."""
    overrides = [argument for argument in arguments or [] if is_override(argument)]
    paths = [argument for argument in arguments or [] if argument not in overrides] + (given["pool"] or [])
    return given | {"pool": paths or None}, overrides


def is_override(argument: str) -> bool:
    """Whether `key=value` is a setting. An existing file or folder of that name is a path, and so is `lang=en/part.jsonl`."""
    found = OVERRIDE.match(argument)
    if not found or os.path.exists(argument):
        return False
    from raysift.config import RunConfig

    return found[1] in RunConfig.model_fields


def spread_multiple(arguments: Sequence[str]) -> list[str]:
    """Rewrite `--pool a b c` as `--pool a --pool b --pool c`, up to the next option or `section.key=value`."""
    spread: list[str] = []
    option: str | None = None
    for argument in arguments:
        if argument == "--":
            return [*spread, *arguments[arguments.index("--") :]]
        if argument.startswith("-"):
            option = argument if argument in MULTIPLE else None
            if option is None:
                spread.append(argument)
        elif option and not is_override(argument):
            spread += [option, argument]
        else:
            option = None
            spread.append(argument)
    return spread

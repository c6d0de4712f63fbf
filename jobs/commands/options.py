"""The options that commands share, one name, one meaning, one line of help; and the settings and console that they become."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raysift.errors import ConfigError

if TYPE_CHECKING:
    from raysift.jobs.commands.console import Console
    from raysift.settings.config import CommonConfig

Pool = Annotated[list[str] | None, typer.Option("--pool", help="Files, folders, globs or URIs of the pool.")]
Target = Annotated[list[str] | None, typer.Option("--target", help="Examples or preference pairs to select for.")]
Model = Annotated[str | None, typer.Option("--model", help="nano, a Hugging Face id or a local folder.")]
Adapter = Annotated[str | None, typer.Option("--adapter", help="A PEFT adapter folder to start from.")]
BudgetOption = Annotated[str | None, typer.Option("--budget", help="5%, 2000 (rows), 1.5Mtok (tokens).")]
RunName = Annotated[str | None, typer.Option("--run", help="Folder or URI for the results.")]
Reuse = Annotated[
    list[str] | None,
    typer.Option("--reuse", help="A run whose finished stages count here, where settings and inputs are the same."),
]
ConfigFile = Annotated[str | None, typer.Option("--config", help="YAML file with any of the settings.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Every random choice follows from it.")]
Test = Annotated[list[str] | None, typer.Option("--test", help="Example files to evaluate on.")]
OnBadFile = Annotated[str | None, typer.Option("--on-bad-file", help="stop, or quarantine: set the file aside.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Write under the next free name instead of an existing run.")]
Log = Annotated[str | None, typer.Option("--log", help="rich, plain, quiet or json; default: rich on a terminal.")]
AgainstModel = Annotated[str | None, typer.Option("--against-model", help="The model to compare with.")]
AgainstAdapter = Annotated[str | None, typer.Option("--against-adapter", help="A PEFT adapter on it.")]
Answers = Annotated[
    str | None, typer.Option("--answers", help="In place of --model: a run of `raysift evaluate`, or a Parquet file.")
]
AgainstAnswers = Annotated[str | None, typer.Option("--against-answers", help="In place of --against-model: the same.")]
JudgeModel = Annotated[str | None, typer.Option("--judge", help="Who judges; default: nano:reward.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value ...", show_default=False)]


def make_console(log: str | None) -> Console:
    """A console in the voice asked for, and library logs to match."""
    from raysift.jobs.commands.console import Console, set_up_logging

    voices = ("rich", "plain", "quiet", "json")
    voice = log or ("rich" if sys.stderr.isatty() else "plain")
    if voice not in voices:
        raise ConfigError(f"--log: '{voice}' is unknown. Allowed: {', '.join(voices)}.")
    set_up_logging(voice)  # type: ignore[arg-type]
    return Console(voice)  # type: ignore[arg-type]


def prepare(
    file: str | None,
    given: dict[str, Any],
    overrides: Sequence[str] | None,
    on_bad_file: str | None,
    fresh: bool,
    log: str | None,
) -> tuple[CommonConfig, Console]:
    """Checked settings and a console, before anything heavy is loaded."""
    from raysift.settings.config import load_config

    console = make_console(log)
    extra = [f"ingest.on_bad_file={on_bad_file}"] if on_bad_file else []
    settings = load_config(file, given, [*(overrides or []), *extra])
    if fresh:
        from raysift.jobs.runs.run import free_name

        settings = settings.model_copy(update={"run": free_name(settings.run)})
    return settings, console

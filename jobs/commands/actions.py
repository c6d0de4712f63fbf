"""The action of each command after its settings are checked: open the run and Ray, call the recipe, print the result."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from raysift.config import CommonConfig, replayed
from raysift.jobs import stages
from raysift.jobs.cluster.session import own_session
from raysift.jobs.commands.show import show_evaluation, show_ingest
from raysift.jobs.commands.show_selection import show_selection
from raysift.jobs.recipes import run_method
from raysift.jobs.report.writing import report_at_end
from raysift.jobs.runs import checks
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.run import Run


def run_selection(
    config: CommonConfig, console: Console, plan: str | None = None, stop_over: str | None = None
) -> None:
    """Select and, if asked, train and evaluate; follow a plan if one is named."""
    from raysift.jobs.commands.plan import follow_plan

    with _session(config, console) as run:
        follow_plan(run, config, plan, stop_over)
        selected = run_method(run, config)
        show_selection(run, selected, console)
        show_evaluation(run, console)
        report_at_end(run, config.report)


def run_search(config: CommonConfig, console: Console) -> None:
    """Search for settings of a method that learns."""
    from raysift.jobs.commands.search import search_command

    search_command(config, console)


def run_rescore(
    source: str,
    target: Sequence[str],
    run: str | None,
    budget: str | None,
    overrides: Sequence[str],
    console: Console,
    reuse: Sequence[str],
) -> None:
    """Select for other targets from the gradients that a run has stored."""
    from raysift.jobs.commands.rescore import rescore, rescored_name

    with own_session(console) as start:
        made, chosen = rescore(
            *(source, target, run or rescored_name(source)),
            budget=budget,
            overrides=overrides,
            console=console,
            reuse=reuse,
            start=start,
        )
    show_selection(made, chosen, console)
    report_at_end(made, made.config(overrides=overrides).report)
    console.note(f"run: {made.folder}")


def run_ingest(config: CommonConfig, console: Console) -> None:
    """Only read the pool."""
    checks.check_pool(config)
    with _session(config, console) as run, run.replayable(replayed(config)):
        show_ingest(run, stages.ingest(run, config), console)


def run_finetune(config: CommonConfig, console: Console) -> None:
    """Train on a whole pool."""
    checks.check_pool(config)
    with _session(config, console) as run, run.replayable(replayed(config)):
        checks.check_training(config)
        trained = stages.finetune(run, config, stages.ingest(run, config))
        model, adapter = stages.trained_model(run, trained, config.model)
        console.note(f"trained: {adapter or model}")
        if config.test:
            stages.evaluate(run, config, trained)
            show_evaluation(run, console)


def run_evaluate(config: CommonConfig, console: Console) -> None:
    """Score a model as it is."""
    checks.check_evaluation(config)
    with _session(config, console) as run, run.replayable(replayed(config)):
        stages.evaluate(run, config, None)
        show_evaluation(run, console)


@contextlib.contextmanager
def _session(config: CommonConfig, console: Console) -> Iterator[Run]:
    """Yield a run whose first stage starts Ray; that session ends with the block."""
    with own_session(console) as start:
        yield Run(config.run, console, config.reuse, start)

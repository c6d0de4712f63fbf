"""`raysift plan METHOD ...`: what a run with these arguments would take, before it starts; nothing is written into its folder."""

from __future__ import annotations

from raysift.config import CommonConfig
from raysift.errors import ConfigError
from raysift.jobs.cluster.session import own_session
from raysift.jobs.planning.follow import Followed, read_factor
from raysift.jobs.planning.planning import Asked, make_plan
from raysift.jobs.planning.rendering import show_plan
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.run import Run
from raysift.planning.record import PLAN, Plan, read_plan
from raysift.storage import open_location


def plan_command(config: CommonConfig, asked: Asked, out: str, as_json: bool, console: Console) -> Plan:
    """Make the plan, write it to `out`, and print it."""
    with own_session(None if as_json else console) as start:
        plan = make_plan(
            config, asked, start, (lambda words: None) if as_json else lambda words: console.line("plan", words)
        )
    text = plan.model_dump_json(indent=2) + "\n"
    open_location(out).write(text)
    if as_json:
        print(text, end="")
        return plan
    show_plan(plan, console)
    console.note(f"plan: {out}; to follow it: raysift {plan.method} ... --plan {out} --stop-over 1.5x")
    return plan


def follow_plan(run: Run, config: CommonConfig, path: str | None, stop_over: str | float | None) -> None:
    """Let a run follow the plan in this file: it tells the drift, and stops beyond `stop_over`. The run keeps a copy."""
    factor = read_factor(stop_over)
    if path is None:
        if factor is not None:
            raise ConfigError(
                "--stop-over: over what? Name a plan with --plan FILE; `raysift plan METHOD ...` makes one."
            )
        return
    plan = read_plan(path)
    if plan.method != config.method:
        raise ConfigError(
            f"--plan: '{path}' is a plan of {plan.method}, this is {config.method}. Make one: raysift plan."
        )
    text = plan.model_dump_json(indent=2) + "\n"
    run.follow = Followed(plan, factor, run.console.note, keep=lambda: (run.folder / PLAN).write(text))

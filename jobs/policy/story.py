"""What a run of RAISE did: how its rounds went, what was picked when, and what in a row moves the policy.

    from raysift.jobs.policy.story import influences, learning_curve, picks_over_time
    picks_over_time("runs/raise", by="skill").shares.to_pandas()

All is reckoned from the logs when it is asked for; nothing is stored. `raysift show` prints it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raysift.draws import seed_for, uniform_of
from raysift.jobs.commands.console import Console
from raysift.jobs.policy.opened import MEASURES, PolicyRun, open_policy_run, round_folders
from raysift.jobs.policy.picks import PickTables, picks_over_time
from raysift.jobs.runs.run import Run, open_run
from raysift.manifest import read_manifest
from raysift.policy.features import input_names
from raysift.policy.pool import positions
from raysift.policy.saved import ROUND
from raysift.records import SOURCE
from raysift.scoring.columns import LOGPROB_ALONE, LOGPROB_GIVEN
from raysift.topk import top_k

__all__ = ["PickTables", "influences", "learning_curve", "picks_over_time", "show_policy"]

SAMPLE_ROWS = 4096
"""Rows of the pool on which influences are measured."""
STRETCHES = 6
SHOWN_ROUNDS, SHOWN_INPUTS, SHOWN_VALUES = 40, 8, 24
DOTS = 16


def learning_curve(run: str | Run) -> pa.Table:
    """A line for each round that is finished, also where the run is not."""
    lines = []
    for folder in round_folders(open_run(run) if isinstance(run, str) else run):
        account = json.loads((folder / ROUND).read_text())
        update = account.pop("update")
        account.pop("reports")
        gain = account["performance"] - account["start"]
        lines.append(account | {"gain": gain, "ratio": update.pop("last_ratio", None)} | update)
    return pa.Table.from_pylist(lines)


def influences(
    run: str | Run | PolicyRun, steps: Sequence[int] | None = None, sample_rows: int = SAMPLE_ROWS
) -> pa.Table:
    """How far each block and each input moves the scores of the pool's rows apart, at steps of the final training.

    Attributions are measured against the mean row of the pool over these steps, on the rows whose ids hash lowest. The
    line `score` has the spread of the scores themselves.
    """
    from raysift.policy.attribution import attributions, by_block, influence, inputs_of, mean_input
    from raysift.policy.standing import state_before

    opened = run if isinstance(run, PolicyRun) else open_policy_run(run)
    pool, settings = opened.pool, opened.settings
    chosen, _ = top_k(pool.ids, uniform_of(pool.ids, seed_for(0, "influence")), min(sample_rows, len(pool)))
    places = np.sort(positions(pool, chosen))
    numbers = list(steps or opened.middle_steps())
    states = [state_before(opened.episode, pool, step) for step in numbers]
    baseline, names = mean_input(pool, states, settings), input_names(pool.features.shape[1] - len(MEASURES))
    lines = []
    for step, state in zip(numbers, states, strict=True):
        inputs = inputs_of(pool, state, settings, places)
        parts = attributions(opened.network, inputs, baseline)
        total = parts.sum(axis=1)
        lines.append({"step": step, "kind": "score", "name": "score", **vars(influence(total, total))})
        for block, part in by_block(parts).items():
            lines.append({"step": step, "kind": "block", "name": block, **vars(influence(part, total))})
        for number, name in enumerate(names):
            found = influence(parts[:, number], total, inputs[:, number])
            lines.append({"step": step, "kind": "input", "name": name, **vars(found)})
    kinds = {"step": pa.int64(), "kind": pa.string(), "name": pa.string()}
    kinds |= dict.fromkeys(("spread", "share", "slope"), pa.float64())
    return pa.Table.from_pylist(lines, schema=pa.schema(kinds))


def show_policy(run: Run, console: Console, by: str | None = None) -> None:
    """Print what is there: rounds of a run that is learning still, all of it once it is finished."""
    if round_folders(run):
        show_rounds(run, console)
    if read_manifest(run.folder / "order") is None or read_manifest(run.folder / "final") is None:
        return
    opened = open_policy_run(run)
    show_picks(opened, picks_over_time(opened, by, stretches=STRETCHES), console)
    if round_folders(run):
        show_round_picks(picks_over_time(opened, by, over="rounds"), by or SOURCE, console)
    show_influences(opened, influences(opened), console)


def show_rounds(run: Run, console: Console) -> None:
    """The learning curve: each round's performance as a dot between the lowest and the highest."""
    lines = learning_curve(run).to_pylist()
    start, ends = lines[0]["start"], [line["performance"] for line in lines]
    low, high = min(start, *ends), max(start, *ends)
    every = -(-len(lines) // SHOWN_ROUNDS)
    shown = [line for line in lines if line["round"] % every == 0 or line is lines[-1]]
    heads = ["round", "performance", "lowest to highest", "report", "rows", "clipped", "entropy"]
    names = ("report", "distinct_rows", "clipped", "entropy")
    rows: list[list[Any]] = [["start", _number(start), _dot(start, low, high), _number(lines[0]["report_start"])]]
    rows[0] += [None] * 3
    for line in shown:
        cells = [_number(line[name]) for name in names]
        cells[1] = round(line["distinct_rows"])
        rows.append([str(line["round"]), _number(line["performance"]), _dot(line["performance"], low, high), *cells])
    console.table(f"Rounds ({len(lines)}, of {round(lines[0]['picks']):,} picks each)", heads, rows)


def show_picks(opened: PolicyRun, found: PickTables, console: Console) -> None:
    """The final training in stretches: first numbers, then shares with those of the pool beside them."""
    moments = found.numbers.to_pylist()
    pool = {name: float(values.mean()) for name, values in opened.difficulty_of_rows.items()}
    heads = ["steps", "performance", "loss", "repeats", "prompt tokens", "answer tokens"]
    heads += ["log p given prompt", "log p alone"]
    rows: list[list[Any]] = [
        [
            _span(line),
            _number(line["performance"]),
            _number(line["loss"]),
            _percent(line["repeats"]),
            *(_measure(name, line[name]) for name in MEASURES),
        ]
        for line in moments
    ]
    rows.append(["pool", None, None, None, *(_measure(name, pool[name]) for name in MEASURES)])
    steps, size = opened.episode.steps, opened.batch_size
    unit = "of an answer's token, mean" if opened.logprob_is_mean else "of an answer"
    console.table(f"Final training: {steps:,} steps of {size} rows (log p {unit})", heads, rows)
    lines = found.shares.to_pylist()
    for column in dict.fromkeys(line["column"] for line in lines):
        mine = [line for line in lines if line["column"] == column]
        if len({line["value"] for line in mine}) > 1:
            title = f"{_named(column)} in the final training, in stretches to a step"
            console.table(title, *_share_lines(mine, [f"to {moment['last_step']}" for moment in moments]))


def show_round_picks(found: PickTables, column: str, console: Console) -> None:
    """Shares by one column in the rounds, of many rounds in some that lie evenly."""
    count = len(found.numbers)
    shown = sorted({1 + round(k * (count - 1) / max(1, STRETCHES - 1)) for k in range(STRETCHES)})
    lines = [line for line in found.shares.to_pylist() if line["column"] == column and line["round"] in shown]
    if len({line["value"] for line in lines}) > 1:
        console.table(f"{_named(column)} in learning", *_share_lines(lines, [f"round {number}" for number in shown]))


def _named(column: str) -> str:
    return f"Picks by {column}"


def _share_lines(lines: Sequence[dict[str, Any]], heads: Sequence[str]) -> tuple[list[str], list[list[Any]]]:
    """A line a value, those that are most of the picks or of the pool."""
    by_value: dict[Any, list[dict[str, Any]]] = {}
    for line in lines:
        by_value.setdefault(line["value"], []).append(line)
    weight = {value: max(mine[0]["pool_share"], *(one["share"] for one in mine)) for value, mine in by_value.items()}
    kept = sorted(by_value, key=lambda value: -weight[value])[:SHOWN_VALUES]
    rows: list[list[Any]] = []
    for value, mine in by_value.items():
        if value in kept:
            shares = [*(one["share"] for one in mine), mine[0]["pool_share"]]
            rows.append(["(none)" if value is None else value, *map(_percent, shares)])
    rest = [mine for value, mine in by_value.items() if value not in kept]
    if rest:
        sums = [sum(one["share"] for one in part) for part in zip(*rest, strict=True)]
        rows.append([f"{len(rest):,} more", *map(_percent, [*sums, sum(mine[0]["pool_share"] for mine in rest)])])
    return ["", *heads, "pool"], rows


def show_influences(opened: PolicyRun, found: pa.Table, console: Console) -> None:
    """Blocks at each step looked at, and the inputs with the widest spread over these steps."""
    lines = found.to_pylist()
    steps = list(dict.fromkeys(line["step"] for line in lines))
    of = {(line["step"], line["kind"], line["name"]): line for line in lines}
    blocks = [line["name"] for line in lines if line["kind"] == "block" and line["step"] == steps[0]]
    inputs = [line["name"] for line in lines if line["kind"] == "input" and line["step"] == steps[0]]
    heads = ["", *(head for step in steps for head in (f"step {step}", "share"))]

    def cells(kind: str, name: str) -> list[Any]:
        mine = [of[step, kind, name] for step in steps]
        return [cell for line in mine for cell in (_number(line["spread"]), _percent(line["share"]))]

    rows = [["all scores", *cells("score", "score")], *([name, *cells("block", name)] for name in blocks)]
    title = "What moves the scores of rows apart, by block: spread at a step, share"
    if opened.draw:
        times = math.exp(of[steps[-1], "score", "score"]["spread"] / opened.settings.temperature)
        title += f" (one spread higher: drawn {times:.3g} times as often)"
    console.table(title, heads, rows)
    widest = sorted(inputs, key=lambda name: -float(np.mean([of[step, "input", name]["spread"] for step in steps])))
    tops = [
        [
            name,
            *cells("input", name),
            "more" if np.mean([of[step, "input", name]["slope"] for step in steps]) > 0 else "less",
        ]
        for name in widest[:SHOWN_INPUTS]
    ]
    console.table("The inputs that do so most", [*heads, "wanted"], tops)


def _span(line: dict[str, Any]) -> str:
    first, last = line["first_step"], line["last_step"]
    return f"{first}-{last}" if first < last else str(last)


def _dot(value: float, low: float, high: float) -> str:
    place = round((value - low) / (high - low) * (DOTS - 1)) if high > low else 0
    return "." * place + "#" + "." * (DOTS - 1 - place)


def _measure(name: str, value: float) -> str:
    return f"{value:.3f}" if name in (LOGPROB_GIVEN, LOGPROB_ALONE) else f"{value:,.1f}"


def _number(value: float | None) -> str | None:
    """Four decimals where numbers are small, so that a column can be compared."""
    return None if value is None else f"{value:.4f}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%" if abs(share) >= 0.0995 or share == 0 else f"{100 * share:.1f}%"

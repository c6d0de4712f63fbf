"""`raysift compare`: make the selections, train and test on each, and write the result.

RUN/METHOD/seed-N/   the selection, a run like any other
RUN/cells/           trainings and their test results, named by a hash of all that decides them
RUN/compare.yaml     the settings; `raysift compare RUN/compare.yaml` continues or extends the comparison
RUN/compare.json     the result, beside compare.md and compare.csv
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from raysift.errors import ClaimError, ConfigError, StaleRunError
from raysift.evaluation.standings import Measured, check_claim, claim_holds, standings
from raysift.jobs.compare.cells import Cell, plan_cells, run_cells
from raysift.jobs.compare.plan import Plan
from raysift.jobs.compare.result import SETTINGS, write_result
from raysift.jobs.compare.selections import Chosen, make_selections
from raysift.jobs.runs.replay import name_from_anywhere
from raysift.jobs.runs.run import Run
from raysift.storage import refuse_passwords


def compare(
    run: Run, plan: Plan, values: Mapping[str, Any], claims: Sequence[str] = (), every_stage: bool = True
) -> dict[str, Any]:
    """Run the whole comparison, write its result and return it; `every_stage` prints the stages of each selection."""
    checked = check_claims(plan, claims)
    if (run.made_with() or {}).get("method"):
        raise StaleRunError(f"run: {run.name} holds a selection. Give the comparison another name with --run.")
    text = yaml.safe_dump(name_from_anywhere(dict(values)), sort_keys=False, allow_unicode=True)
    refuse_passwords(text)
    with run.at_work(now=True):
        (run.folder / SETTINGS).write(text)
        return _compare(run, plan, checked, claims, every_stage)


def _compare(
    run: Run, plan: Plan, checked: Sequence[tuple[str, str, str]], claims: Sequence[str], every_stage: bool
) -> dict[str, Any]:
    clock = time.perf_counter
    began = clock()
    selections = list(make_selections(run, plan, every_stage))
    selected = clock()
    loss_on = plan.settings.loss_on or _targets(plan)
    cells = plan_cells(run, plan.shared, selections, plan.settings.training_seeds, loss_on)
    results = run_cells(run, plan.shared, cells)
    measured = measure(plan.names, selections, cells, results)
    pool_rows = max(chosen.pool_rows for chosen in selections)
    found = standings(measured, pool_rows, plan.settings.gain, plan.shared.evaluate.confidence)
    tell_null(found["methods"], selections)
    found["claims"] = [
        dict(zip(("claim", "holds", "verdict"), (text, *claim_holds(claim, measured, plan.settings.gain)), strict=True))
        for text, claim in zip(claims, checked, strict=True)
    ]
    found["seconds"] = {"selections": selected - began, "training and testing": clock() - selected}
    write_result(run.folder, found)
    return found


def tell_null(lines: Sequence[dict[str, Any]], selections: Sequence[Chosen]) -> None:
    """Add to each method by gradient the share of its rows that stand above the null, and what is said of them."""
    for line in lines:
        own = [chosen.null for chosen in selections if chosen.name == line["name"] and chosen.null]
        shares = [null.above / null.selected for null in own if null.above is not None and null.selected]
        line["above_null"] = sum(shares) / len(shares) if shares else None
        line["null"] = own[0].sentence if own else None


def check_claims(plan: Plan, claims: Sequence[str]) -> list[tuple[str, str, str]]:
    """The claims as (better, sign, worse); refuses claims about anything that is not compared."""
    return [check_claim(text, plan.names) for text in claims]


def require_claims(found: Mapping[str, Any]) -> None:
    """Raises for the first claim that does not hold."""
    for claim in found["claims"]:
        if not claim["holds"]:
            raise ClaimError(f"compare: '{claim['claim']}' does not hold. {claim['verdict']}.")


def _targets(plan: Plan) -> list[str]:
    """The shared target, or else the first target that a method sets."""
    own = [contender.config(plan.seeds[0]).target for contender in plan.contenders]
    return list(plan.shared.target) or next((list(target) for target in own if target), [])


def measure(
    names: Sequence[str], selections: Sequence[Chosen], cells: Sequence[Cell], results: Sequence[Mapping[str, Any]]
) -> dict[str, Measured]:
    """The measurements of each method. A question counts if every model answered it."""
    questions = sorted(set.intersection(*(set(result["scores"]) for result in results)))
    if not questions:
        raise ConfigError(
            "compare: no question was answered by all models; see the cells' results in the run's folder."
        )
    measured = {name: Measured() for name in names}
    for chosen in selections:
        own = measured[chosen.name]
        own.rows[chosen.seed] = chosen.ids
        own.selection_seconds.append(chosen.seconds)
        if chosen.ranked:
            own.ranked[chosen.seed] = chosen.ranked
    for cell, result in zip(cells, results, strict=True):
        own = measured[cell.name]
        own.scores.setdefault(cell.seed, []).append([result["scores"][question] for question in questions])
        own.losses += [] if result["loss"] is None else [result["loss"]]
        if cell.files:
            own.tokens.append(result["tokens"])
            own.steps.append(result["steps"])
            own.training_seconds.append(result["seconds"])
    return measured

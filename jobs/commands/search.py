"""`raysift search`: find the settings of RAISE's policy that learn best on this pool, for this model and target.

The stages before the first training are those of `raysift raise` and run once. Only the features stage runs once for every
number of classes among the trials, each in its own folder, because a later `raysift raise` with the same settings must get
the same classes.

The seed decides which settings are tried, and the rounds of each trial. Which trials ASHA stops depends on the others'
results at that time, so two searches with parallel trials may end differently.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import yaml

from raysift.config import CommonConfig, replayed
from raysift.errors import ConfigError, StageError
from raysift.jobs import stages
from raysift.jobs.cluster.session import own_session
from raysift.jobs.coverage import centers
from raysift.jobs.on_ray.fitting import with_room
from raysift.jobs.policy import features as policy_features
from raysift.jobs.policy import stages as raise_policy
from raysift.jobs.policy.setups import make_setup, need_of, place_of
from raysift.jobs.policy.trials import ROUNDS, TrialWork
from raysift.jobs.policy.tuning import fit
from raysift.jobs.report.writing import report_at_end
from raysift.jobs.runs import checks
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.models import adapter_input, find_model, without_models
from raysift.jobs.runs.reuse import is_run
from raysift.jobs.runs.run import Run, StageResult
from raysift.jobs.runs.tables import publish
from raysift.manifest import Manifest
from raysift.policy.pool import read_pool, restrict
from raysift.policy.saved import POLICY, finished_rounds, kept_round
from raysift.policy.search_settings import PLACES, SearchSettings
from raysift.policy.settings import RaiseConfig
from raysift.policy.trials import (
    ALL_ROUNDS,
    FAILED,
    OWN,
    STOPPED,
    TrialResult,
    TrialSettings,
    apply_settings,
    as_overrides,
    best_of,
    criterion,
    draw_trials,
)
from raysift.settings.roles import LEARN
from raysift.storage import Location, extend_name

STAGES = ("ingest", "validation", "likeness", "encode", "difficulty", "embed", "features", "search")
BEST, TABLE, CURVES, FITTED = "best.yaml", "trials", "curves.parquet", "fitted.safetensors"


def search_command(config: CommonConfig, console: Console) -> None:
    """Search in a separate Ray session, and show the results."""
    with own_session(console) as start:
        run = Run(config.run, console, config.reuse, start)
        manifest = find_settings(run, config)
    show_search(manifest, console)
    report_at_end(run, config.report)
    console.note(f"best settings: raysift raise --config {run.folder / BEST} --run NEW")


def find_settings(run: Run, config: CommonConfig) -> Manifest:
    """Run all stages of a search."""
    settings: RaiseConfig = getattr(config, "raise")
    wanted = config.search or SearchSettings()
    if settings.policy_from:
        raise ConfigError("search: 'raise.policy_from' is set; a policy that is taken over has no settings to search.")
    checks.check_run(run, config)
    checks.check_pool(config)
    stages.row_budget(config)
    raise_policy.check_input(config, settings)
    drawn = draw_trials(wanted, settings, config.train, config.seed)
    if len(drawn) < wanted.trials:
        run.console.note(f"search: the space has {len(drawn)} different trials, search.trials is {wanted.trials}")
    run.plan(*STAGES)
    with run.replayable(replayed(config)):
        rows = stages.ingest(run, config)
        total = stages.count_rows(config, rows)
        target = raise_policy.split_target(run, config, settings)
        raise_policy.like_pool(run, config, rows)
        encoded = raise_policy.encode(run, config, rows)
        measured = policy_features.difficulty(run, config, settings.features, rows)
        vectors = centers.embed(run, config, settings.features.embedding, rows)
        features: dict[int, tuple[Run, Manifest]] = {}
        for classes in sorted({apply_settings(point, settings, config.train)[0].policy.classes for point in drawn}):
            place = open_classes(run, classes)
            found = policy_features.features(place, config, settings.features, classes, rows, measured, vectors)
            features[classes] = place, found
        return try_settings(run, config, wanted, drawn, features, encoded, target, total)


def open_classes(run: Run, classes: int) -> Run:
    """The subrun for a number of classes; it reuses the subruns of reused searches for the same number."""
    own, *others = (extend_name(name, f"/classes-{classes}") for name in (run.name, *run.reuse))
    classed = Run(own, run.console, [name for name in others if is_run(name)], run.start)
    classed.plan(*STAGES)
    return classed


def try_settings(
    run: Run,
    config: CommonConfig,
    wanted: SearchSettings,
    drawn: Sequence[TrialSettings],
    features: dict[int, tuple[Run, Manifest]],
    encoded: Manifest,
    target: Manifest,
    total: int,
) -> Manifest:
    """The search stage: run the trials and write the results."""
    settings: RaiseConfig = getattr(config, "raise")

    def body(folder: Location) -> StageResult:
        work = share_work(config, wanted, drawn, features, encoded, target, total, folder)

        def try_all(own: CommonConfig) -> list[TrialResult]:
            here = dataclasses.replace(work, setup=dataclasses.replace(work.setup, place=place_of(own)))
            return fit(here, drawn, own.resources, run)

        need = need_of(config, work.setup)
        outcomes = with_room(run, "search", config, need, try_all, LEARN, most=len(drawn))
        best = best_of(outcomes, wanted)
        if best is None or best.folder is None:
            reasons = {outcome.reason for outcome in outcomes if outcome.reason}
            raise StageError(
                f"search: no trial of {len(outcomes)} did all {wanted.rounds} rounds. {'; '.join(sorted(reasons))}"
            )
        place, found = features[apply_settings(best.settings, settings, config.train)[0].policy.classes]
        rounds = finished_rounds(folder / ROUNDS / best.folder)[: wanted.rounds]
        (folder / POLICY).write((kept_round(rounds, settings.learning.keep) / POLICY).read_bytes())
        (folder / FITTED).write(place.files(found, "fitted")[0].read_bytes())
        (folder / BEST).write(yaml.safe_dump(best_config(config, best.settings), sort_keys=False, allow_unicode=True))
        table = pa.Table.from_pylist([describe(outcome, wanted) for outcome in ranked(outcomes, wanted)])
        pq.write_table(table, (folder / f"{TABLE}.parquet").path, filesystem=folder.fs)
        with (folder / f"{TABLE}.csv").open_output() as stream:
            pacsv.write_csv(table, stream)
        pq.write_table(curves(outcomes, wanted), (folder / CURVES).path, filesystem=folder.fs)
        states = [outcome.state(wanted.rounds) for outcome in outcomes]
        return StageResult(
            files={
                "table": [f"{TABLE}.parquet", f"{TABLE}.csv"],
                "curves": [CURVES],
                "best": [BEST],
                "policy": [POLICY],
                "fitted": [FITTED],
            },
            counts={"trials": len(outcomes)} | {state: states.count(state) for state in (ALL_ROUNDS, STOPPED, FAILED)},
            values={
                "best": describe(best, wanted) | {"overrides": as_overrides(best.settings)},
                "own": describe(outcomes[OWN], wanted),
                "trials": table.to_pylist(),
            },
        )

    decides: dict[str, Any] = {
        "search": wanted.model_copy(update={"max_failures": 0}),
        "raise": without_models(settings),
        "train": config.train,
    }
    decides |= {"seed": config.seed, "total": total, "trials": list(drawn)}
    inputs: dict[str, Any] = {"encoded": encoded.fingerprint, "target": target.fingerprint}
    inputs |= {"features": {str(classes): found.fingerprint for classes, (_, found) in features.items()}}
    inputs |= {"model": find_model(run, config).identity} | adapter_input(config.adapter)
    manifest = run.stage("search", decides, inputs, body)
    for kind in ("best", "table"):
        for file in run.files(manifest, kind):
            publish(file, run.folder / file.name)
    return manifest


def share_work(
    config: CommonConfig,
    wanted: SearchSettings,
    drawn: Sequence[TrialSettings],
    features: dict[int, tuple[Run, Manifest]],
    encoded: Manifest,
    target: Manifest,
    total: int,
    folder: Location,
) -> TrialWork:
    """The data that all trials share: the rows, and the class of each row for every number of classes."""
    settings: RaiseConfig = getattr(config, "raise")
    largest = max(apply_settings(point, settings, config.train)[1].batch_size for point in drawn)
    checked = config.model_copy(update={"train": config.train.model_copy(update={"batch_size": largest})})
    place, found = next(iter(features.values()))
    setup = make_setup(place, checked, settings, found, encoded, target, 1)
    classes = {
        number: restrict(read_pool(place.files(found, "features")[0]), setup.pool.ids).classes
        for number, (place, found) in features.items()
    }
    return TrialWork(
        setup=dataclasses.replace(setup, train=config.train),
        classes=classes,
        config=settings,
        train=config.train,
        search=wanted,
        total=total,
        seed=config.seed,
        folder=folder,
    )


def best_config(config: CommonConfig, settings: TrialSettings) -> dict[str, Any]:
    """The run's settings with the best ones put in, for `raysift raise --config`."""
    changed, train = apply_settings(settings, getattr(config, "raise"), config.train)
    return replayed(config.model_copy(update={"search": None, "raise": changed, "train": train}))


def ranked(outcomes: Sequence[TrialResult], wanted: SearchSettings) -> list[TrialResult]:
    """Trials sorted by falling number of rounds, then by falling criterion."""

    def key(outcome: TrialResult) -> tuple[int, float, int]:
        worth = criterion(outcome.performances, wanted.last_rounds) if outcome.performances else 0.0
        return -len(outcome.performances), -worth, outcome.number

    return sorted(outcomes, key=key)


def describe(outcome: TrialResult, wanted: SearchSettings) -> dict[str, Any]:
    """A trial's line in the table of trials."""
    known = bool(outcome.performances)
    reports = [found for found in outcome.reports[-wanted.last_rounds :] if found is not None]
    return {
        "trial": outcome.number,
        **{name: _cell(value) for name, value in outcome.settings.items()},
        "rounds": len(outcome.performances),
        "criterion": criterion(outcome.performances, wanted.last_rounds) if known else None,
        "best_round": max(outcome.performances) if known else None,
        "report": sum(reports) / len(reports) if reports else None,
        "seconds": sum(outcome.seconds),
        "state": outcome.state(wanted.rounds),
        "reason": outcome.reason,
    }


def curves(outcomes: Sequence[TrialResult], wanted: SearchSettings) -> pa.Table:
    """A line for each round of each trial, with the trial's settings; data for plots."""
    lines: list[dict[str, Any]] = []
    for outcome in outcomes:
        for number in range(1, len(outcome.performances) + 1):
            done = outcome.performances[:number]
            lines.append(
                {
                    "trial": outcome.number,
                    "round": number,
                    "performance": done[-1],
                    "criterion": criterion(done, wanted.last_rounds),
                    "report": outcome.reports[number - 1],
                    "seconds": outcome.seconds[number - 1],
                    **{name: _cell(value) for name, value in outcome.settings.items()},
                }
            )
    return pa.Table.from_pylist(lines)


def show_search(manifest: Manifest, console: Console) -> None:
    """Show the trials as a table, and the gain over the run's own settings."""
    lines, best, own = (manifest.values[name] for name in ("trials", "best", "own"))
    heads = ["rounds", "criterion", "report", "seconds", "state"]
    rows = [[line["trial"], _changes(line, own), *[_rounded(line[name]) for name in heads]] for line in lines]
    last = manifest.settings["search"]["last_rounds"]
    console.table(
        f"Trials (criterion: mean performance of the last {last} rounds; report: on rows no policy sees)",
        ["trial", "settings", *heads],
        rows,
    )
    for line in lines:
        if line["reason"]:
            console.note(f"search: trial {line['trial']} failed: {line['reason']}")
    if best["trial"] == own["trial"]:
        console.note("search: no settings did better than the run's own")
    elif own["state"] == ALL_ROUNDS:
        console.note(
            f"search: criterion {own['criterion']:.4f} with the run's own settings, {best['criterion']:.4f} with those of trial "
            f"{best['trial']}; the best of {len(lines)} noisy numbers looks better than it is, the report is not chosen by"
        )


def _cell(value: Any) -> Any:
    """A list as text, so that each column has one plain type."""
    return "x".join(map(str, value)) if isinstance(value, list) else value


def _changes(line: dict[str, Any], own: dict[str, Any]) -> str:
    """The settings in which a trial differs from the run's own."""
    changed = [
        f"{name}={line[name]:g}" if isinstance(line[name], float) else f"{name}={line[name]}"
        for name in PLACES
        if name in line and line[name] != own[name]
    ]
    return " ".join(changed) or "run's own"


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value

"""`raysift show RUN`: what a run is and did, as tables: its settings, stages, trainings, selection, scores and tests."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pyarrow.parquet as pq

from raysift.errors import ConfigError
from raysift.evaluation.lift import sparkline
from raysift.jobs.check import rendering as check_rendering
from raysift.jobs.check.result import read_result as read_check
from raysift.jobs.commands.show_selection import show_selection
from raysift.jobs.compare import rendering
from raysift.jobs.compare.result import is_comparison, read_result
from raysift.jobs.planning.rendering import plan_of, show_compared, size
from raysift.jobs.pool.target_check import LIKENESS
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.replay import command_of
from raysift.jobs.runs.run import Run, open_run
from raysift.jobs.runs.stage_names import WHAT_IT_DOES
from raysift.jobs.runs.tables import read_chunks
from raysift.manifest import Manifest, read_manifest
from raysift.pool.likeness import remarks
from raysift.reasons.agreement import AGREEMENT, tell_agreement
from raysift.records import ERROR
from raysift.storage import Location

TOP_REASONS = 5
BAR_WIDTH = 40
BY_STAGE = {
    "win_rate": "raysift.jobs.pairwise.win_rate:show_win_rate",
    "search": "raysift.jobs.commands.search:show_search",
}
"""Functions of a manifest and a console that show the results of a stage, imported when there is one."""


def show_run(folder: str, console: Console, by: str | None = None) -> None:
    """Print all that a finished or unfinished run holds; `by` is a column of the rows' meta by which to group picks."""
    run = open_run(folder, console)
    if is_comparison(run.folder):
        show_comparison(run, console)
        return
    if (check := read_check(run.folder)) is not None:
        check_rendering.show(check, console)
        return
    manifests = run.manifests()
    has_policy = (run.folder / "learn").exists() or any("curriculum" in manifest.files for manifest in manifests)
    if by and not has_policy and not any(manifest.stage == "choose" for manifest in manifests):
        raise ConfigError(f"show: '{folder}' holds no finished selection whose rows --by could group. Leave it out.")
    show_settings(run, console)
    console.table(
        f"Stages of {folder}",
        ["stage", "rows in", "kept", "rejected", "failed", "seconds", "rows/s", "what it did"],
        [[*_stage_line(manifest), WHAT_IT_DOES.get(manifest.stage, "")] for manifest in manifests],
    )
    show_peaks(manifests, console)
    if (plan := plan_of(run)) is not None:
        show_compared(plan, manifests, console)
    if reused := [manifest for manifest in manifests if manifest.reused_from]:
        console.table(
            "Reused", ["stage", "done by run"], [[manifest.stage, manifest.reused_from] for manifest in reused]
        )
    for manifest in manifests:
        show_stage(run, manifest, manifests, console, by)
    if has_policy:
        from raysift.jobs.policy.story import show_policy

        show_policy(run, console)
    show_evaluation(run, console)


def show_peaks(manifests: list[Manifest], console: Console) -> None:
    """Print the peak memory of each stage that had workers, and the tokens that they read."""
    lines = [
        [one.stage, peaks["workers"], size(peaks.get("host", 0)), size(peaks.get("gpu", 0)), peaks.get("tokens")]
        for one in manifests
        if (peaks := one.peaks).get("workers") and not one.reused_from
    ]
    if lines:
        console.table("Peak memory of the largest worker", ["stage", "workers", "host", "GPU", "tokens read"], lines)


def show_comparison(run: Run, console: Console) -> None:
    """Print the result of a comparison, and where its selections lie."""
    found = read_result(run.folder)
    if found is None:
        console.note("the comparison is not finished; the command that began it continues it")
    else:
        rendering.show(found, console)
    console.note(f"each selection is a run: raysift show {run.name}/METHOD/seed-N")


def show_stage(run: Run, manifest: Manifest, others: list[Manifest], console: Console, by: str | None) -> None:
    """Print what a stage found, beyond its line in the table of stages."""
    if manifest.stage == "ingest":
        show_ingest(run, manifest, console)
    if manifest.stage == "targets":
        show_targets(manifest, console)
    for name, figures in manifest.values.get(LIKENESS, {}).items():
        for remark in remarks(name, figures):
            console.note(f"{manifest.stage}: {remark}")
    if manifest.counts.get("failed"):
        show_failures(run, manifest, console)
    # The scores of `quality` are shown once: with the threshold of `good` or with the selection, if there is one.
    shown_later = manifest.stage == "quality" and any(other.stage in ("good", "choose") for other in others)
    if "histogram" in manifest.values and not shown_later:
        show_threshold(manifest, console)
    if "fates" in manifest.values:
        fates = [[fate, count] for fate, count in manifest.values["fates"].items()]
        console.table("What became of the rows", ["", "rows"], fates)
    if "epochs" in manifest.files and "mean_losses" in manifest.values:
        show_training(run, manifest, console)
    if manifest.stage in BY_STAGE:
        module, _, name = BY_STAGE[manifest.stage].partition(":")
        show: Callable[[Manifest, Console], None] = getattr(import_module(module), name)
        show(manifest, console)
    if manifest.stage == "choose":
        show_selection(run, manifest, console, whole=True, by=by)


def show_settings(run: Run, console: Console) -> None:
    """Print what the run was asked for, and a command that asks the same."""
    made_with = run.made_with()
    if made_with is None:
        return
    names = ("method", "model", "adapter", "budget", "seed", "pool", "target", "test")
    told = [[name, _words(made_with[name])] for name in names if made_with.get(name) not in (None, [])]
    console.table(f"Run {run.name}", ["", "setting"], [*told, ["command", command_of(made_with)]])


def show_training(run: Run, manifest: Manifest, console: Console) -> None:
    """Print the loss of each epoch, its curve, and where the trained weights are."""
    values, last = manifest.values, run.files(manifest, "epochs")[-1]
    rates = values["mean_learning_rates"]
    rows = [[str(i), loss, rate] for i, (loss, rate) in enumerate(zip(values["mean_losses"], rates, strict=True), 1)]
    console.table(
        f"Training {manifest.stage}: {values['steps']:,} steps", ["epoch", "mean loss", "learning rate"], rows
    )
    if curve := [loss for _, loss in values.get("losses", [])]:
        console.note(f"{manifest.stage}: loss {curve[0]:.3f} {sparkline(curve)} {curve[-1]:.3f}")
    kind = "adapter" if (last / "adapter").exists() else "model"
    console.note(f"{manifest.stage}: {kind} in {last / kind}")


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def show_ingest(run: Run, manifest: Manifest, console: Console) -> None:
    """Print why rows were not kept."""
    counts = manifest.counts
    rows = [["kept", counts["kept"]], *[[f"rejected: {r}", n] for r, n in sorted(counts["rejected"].items())]]
    rows += [["failed", counts["failed"]], ["rows in", counts["rows_in"]]]
    console.table("Ingest", ["", "rows"], rows)
    for file in counts["bad_files"]:
        console.note(f"ingest: set aside {file}")


def show_targets(manifest: Manifest, console: Console) -> None:
    """Print how many records of the target files have a gradient, why the others have none, and how far they agree."""
    counts = manifest.counts
    without = [
        [f"{kind}: {reason}", count]
        for kind, name in (("unreadable", "unreadable"), ("set aside", "set_aside"))
        for reason, count in sorted(counts.get(name, {}).items())
    ]
    if counts.get("not_drawn"):
        without.append(["not drawn (targets.limit)", counts["not_drawn"]])
    rows = [["with a gradient", counts["rows_in"] - sum(count for _, count in without)]]
    if counts.get("truncated"):
        rows.append(["with a gradient, of a part of the answer", counts["truncated"]])
    console.table("Targets", ["", "records"], [*rows, *without, ["records in", counts["rows_in"]]])
    if found := manifest.values.get(AGREEMENT):
        console.note(f"targets: {tell_agreement(found)}")


def show_failures(run: Run, manifest: Manifest, console: Console) -> None:
    """Print why rows of a stage have no answer. Messages that differ only in numbers count as one reason."""
    reasons: Counter[str] = Counter()
    for chunk in read_chunks([file for file in run.files(manifest, "answers") if _tells_errors(file)], [ERROR]):
        errors = chunk[ERROR].drop_null().to_pylist()
        reasons.update(re.sub(r"\b\d+(\.\d+)?\b", "N", error) for error in errors)
    first = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:TOP_REASONS]
    rows = [[reason, count] for reason, count in first]
    if len(reasons) > len(first):
        rows.append(
            [f"{len(reasons) - len(first):,} other reasons", reasons.total() - sum(count for _, count in first)]
        )
    if rows:
        console.table(f"Failed in {manifest.stage}", ["reason", "rows"], rows)


def show_threshold(manifest: Manifest, console: Console) -> None:
    """Print a histogram of scores, with the threshold if the stage has one."""
    bar, bins = manifest.values.get("cut", {}).get("value"), manifest.values["histogram"]
    most = max((one["count"] for one in bins), default=1)
    rows = [
        [
            f"{one['low']:.3g} to {one['high']:.3g}",
            one["count"],
            "#" * -(-one["count"] * BAR_WIDTH // most),
        ]
        for one in bins
    ]
    where = "no threshold" if bar is None else f"threshold {bar:.4g}, kept {manifest.settings['side']} it"
    console.table(f"Scores of {manifest.stage} ({where})", ["score", "rows", ""], rows)


def show_evaluation(run: Run, console: Console) -> None:
    """Print the scores of every evaluate stage of the run."""
    manifest = read_manifest(run.folder / "evaluate")
    if manifest is None:
        return
    values = manifest.values
    lines = [*values["tasks"], *([values["overall"]] if len(values["tasks"]) > 1 else []), *values["losses"]]
    names = ("task", "metric", "n", "mean", "low", "high", "failed", "cut_off")
    rows = [[line[name] for name in names] for line in lines]
    rows += [[name, "not scored", count, None, None, None, None, None] for name, count in values["not_scored"].items()]
    heads = ["task", "metric", "examples", "score", "from", "to", "failed", "cut off"]
    console.table(f"Evaluation ({manifest.settings['evaluate']['confidence']:.0%} intervals)", heads, rows)


def _tells_errors(file: Location) -> bool:
    return file.name.endswith(".parquet") and ERROR in pq.read_schema(file.path, filesystem=file.fs).names


def _stage_line(manifest: Manifest) -> list[object]:
    counts = manifest.counts
    rejected = counts.get("rejected")
    return [
        manifest.stage,
        counts.get("rows_in"),
        counts.get("kept"),
        sum(rejected.values()) if isinstance(rejected, dict) else rejected,
        counts.get("failed"),
        # A reused stage computed nothing, nor did one whose vectors were all in a store.
        None if manifest.reused_from else manifest.seconds,
        None if manifest.reused_from or manifest.values.get("vectors_computed") == 0 else manifest.rows_per_second,
    ]

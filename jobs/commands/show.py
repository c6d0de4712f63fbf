"""`raysift show RUN`: the essentials of a run as tables. Shows counts, scores and ids, never the text of a row."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysift.errors import ConfigError
from raysift.jobs.commands.console import Console
from raysift.jobs.pool.target_check import LIKENESS
from raysift.jobs.runs.run import Run, open_run
from raysift.jobs.runs.selection import SELECTED
from raysift.jobs.runs.tables import read_chunks
from raysift.manifest import Manifest, read_manifest
from raysift.pool.id_text import short_id
from raysift.pool.likeness import remarks
from raysift.records import ERROR, ID, RANK, SCORE
from raysift.storage import Location

TOP_ROWS = 5
TOP_REASONS = 5
BAR_WIDTH = 40


def show_run(folder: str, console: Console, by: str | None = None) -> None:
    """Print all that a finished or unfinished run holds; `by` is a column of the rows' meta by which to group picks."""
    run = open_run(folder, console)
    manifests = run.manifests()
    has_policy = (run.folder / "learn").exists() or any("curriculum" in manifest.files for manifest in manifests)
    if by and not has_policy:
        raise ConfigError(f"show: '{folder}' has no policy whose picks --by could tell apart. Leave it out.")
    console.table(
        f"Stages of {folder}",
        ["stage", "rows in", "kept", "rejected", "failed", "seconds", "rows/s"],
        [_stage_line(manifest) for manifest in manifests],
    )
    if reused := [manifest for manifest in manifests if manifest.reused_from]:
        console.table(
            "Reused", ["stage", "done by run"], [[manifest.stage, manifest.reused_from] for manifest in reused]
        )
    for manifest in manifests:
        if manifest.stage == "ingest":
            show_ingest(run, manifest, console)
        if manifest.stage == "targets":
            show_targets(manifest, console)
        for name, figures in manifest.values.get(LIKENESS, {}).items():
            for remark in remarks(name, figures):
                console.note(f"{manifest.stage}: {remark}")
        if manifest.counts.get("failed"):
            show_failures(run, manifest, console)
        # The scores of `quality` are shown once: with the threshold of `good`, if that stage exists.
        shown_later = manifest.stage == "quality" and any(other.stage == "good" for other in manifests)
        if "histogram" in manifest.values and not shown_later:
            show_threshold(manifest, console)
        if "fates" in manifest.values:
            fates = [[fate, count] for fate, count in manifest.values["fates"].items()]
            console.table("What became of the rows", ["", "rows"], fates)
        if manifest.stage == "win_rate":
            from raysift.jobs.pairwise.win_rate import show_win_rate

            show_win_rate(manifest, console)
        if manifest.stage == "search":
            from raysift.jobs.policy.search import show_search

            show_search(manifest, console)
        if manifest.stage == "choose":
            show_selection(run, manifest, console)
    if has_policy:
        from raysift.jobs.policy.story import show_policy

        show_policy(run, console, by)
    show_evaluation(run, console)


def show_ingest(run: Run, manifest: Manifest, console: Console) -> None:
    """Print why rows were not kept."""
    counts = manifest.counts
    rows = [["kept", counts["kept"]], *[[f"rejected: {r}", n] for r, n in sorted(counts["rejected"].items())]]
    rows += [["failed", counts["failed"]], ["rows in", counts["rows_in"]]]
    console.table("Ingest", ["", "rows"], rows)
    for file in counts["bad_files"]:
        console.note(f"ingest: set aside {file}")


def show_targets(manifest: Manifest, console: Console) -> None:
    """Print how many records of the target files have a gradient, and why the others have none."""
    counts = manifest.counts
    without = [
        [f"{kind}: {reason}", count]
        for kind, name in (("unreadable", "unreadable"), ("set aside", "set_aside"))
        for reason, count in sorted(counts.get(name, {}).items())
    ]
    rows = [["with a gradient", counts["rows_in"] - sum(count for _, count in without)]]
    if counts.get("truncated"):
        rows.append(["with a gradient, of a part of the answer", counts["truncated"]])
    console.table("Targets", ["", "records"], [*rows, *without, ["records in", counts["rows_in"]]])


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


def show_selection(run: Run, manifest: Manifest, console: Console) -> None:
    """Print the selection by source, and the first ranks."""
    by_source = manifest.values["by_source"]
    console.table(
        f"Selected {manifest.counts['kept']:,} of {manifest.counts['rows_in']:,} rows",
        ["source", "pool", "selected", "lift"],
        [[source, line["pool"], line["selected"], line["lift"]] for source, line in by_source.items()],
    )
    if asked := manifest.counts.get("tokens_asked"):
        console.note(f"tokens: {manifest.counts['tokens']:,} selected, {asked:,} asked for")
    place = run.files(manifest, "selection")[0]
    chosen = pq.read_table(place.path, filesystem=place.fs)
    told = [name for name in chosen.column_names if not pa.types.is_nested(chosen.schema.field(name).type)]
    # Skip a method's own column that repeats the rank or the score; space is short.
    again = [name for name in told if name not in (RANK, SCORE) and _repeats(chosen, name)]
    first = chosen.slice(0, TOP_ROWS).select([name for name in told if name not in again])
    console.table("First ranks", first.column_names, [list(row.values()) for row in _as_text_ids(first.to_pylist())])
    written = run.files(manifest, "selected")[0]
    console.note(f"selected rows: {run.folder / SELECTED / written.name}")


def _repeats(chosen: pa.Table, name: str) -> bool:
    def numbers(column: str) -> pa.ChunkedArray:
        return chosen[column].cast(pa.float64(), safe=False)  # ids use all 64 bits

    if not (pa.types.is_integer(chosen[name].type) or pa.types.is_floating(chosen[name].type)):
        return False
    return any(numbers(name).equals(numbers(other)) for other in (RANK, SCORE))


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


def _as_text_ids(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: short_id(value) if key == ID else value for key, value in row.items()} for row in rows]

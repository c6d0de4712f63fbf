"""From files in any layout to rows with ids, without exact duplicates, in shards of Parquet. `raysift ingest`.

Three rounds of plain Ray tasks: read every chunk, find ids that occur twice, write every shard. The driver holds one
line of counts per chunk. Chunks depend on the files alone, and of equal conversations the first in input order is kept,
so the result is the same for any number of workers. A killed ingest continues with what is not yet done.

The folder then holds `rows/` (records.KEPT_ROWS), `rejected/` (records.REJECTED: not understood, not wanted or
duplicate) and `ingest.json`, the report. Rows of a file that was set aside as a whole are in neither.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import ray
from ray.data import Dataset
from ray.data.datasource import FilenameProvider

from raysift.errors import DataError, RaysiftError, StageError, StaleRunError
from raysift.fingerprint import canonical, differences
from raysift.jobs.cluster.starting import start_ray
from raysift.jobs.on_ray.ray_tasks import run_tasks
from raysift.jobs.pool.ingest_tasks import (
    Counts,
    Origin,
    find_twins,
    finish_shard,
    plan_and_recognise,
    read_part,
)
from raysift.jobs.runs.progress import Bar
from raysift.pool.checks import FAILURES, IngestConfig
from raysift.pool.chunks import chunk_bytes_for
from raysift.pool.dedup import bucket_bounds
from raysift.pool.files import BadFile, Chunk, SourceFile, changed_files, find_files
from raysift.pool.formats import find_layout
from raysift.pool.longest import LONGEST
from raysift.settings.resources import Resources
from raysift.storage import Location

REPORT = "ingest.json"
PLAN = "plan.json"
VERSION = 3  # of the rows' content: 3 keeps the file and the position of each row


@dataclass(frozen=True)
class IngestReport:
    """The account of an ingest: rows_in = kept + rejected + failed, always."""

    rows_in: int
    kept: int
    rejected: dict[str, int]
    """Rows that were understood but not wanted, by reason (raysift.pool.checks.REASONS), including duplicates."""
    failed: int
    """Records that could not be understood."""
    failures: dict[str, int]
    """Records that could not be understood, by reason."""
    duplicates: int
    """Rows whose conversation occurs earlier in the pool; the same number as in `rejected`."""
    trimmed: int
    """Kept or rejected conversations that were cut after their last answer (trailing_user="trim")."""
    bad_files: dict[str, str]
    """Files that were set aside as a whole, and why; no other count includes their records."""
    empty_files: list[str]
    by_source: dict[str, int]
    """Kept rows of each source."""
    layouts: dict[str, str]
    """The layout of each file."""
    files: list[str]
    """Shards of kept rows, relative to the folder."""
    rejected_files: list[str]
    most_tokens: int | None = None
    """No kept row has more tokens, whatever the tokenizer; None if a killed attempt of an older version counted some."""
    seconds: float = field(default=0.0, compare=False)

    def __post_init__(self) -> None:
        total = self.kept + sum(self.rejected.values()) + self.failed
        if total != self.rows_in or self.failed != sum(self.failures.values()):
            raise StageError(f"ingest: {self.rows_in} rows came in and {total} are accounted for; this is a bug.")


def ingest_pool(
    sources: Sequence[str] | Sequence[SourceFile],
    out: Location,
    config: IngestConfig | None = None,
    resources: Resources | None = None,
    *,
    progress: Bar | None = None,
) -> IngestReport:
    """Read files, given as such or as paths, into `out`; joins a running Ray, or starts one and leaves it running.

    A file that has changed since it was found ends the ingest: its fingerprint would be that of other rows.
    """
    config = config or IngestConfig()
    files = [file for one in sources for file in ([one] if isinstance(one, SourceFile) else find_files([one]))]
    inputs = {
        "files": [f"{file.name} ({file.size} bytes)" for file in files],
        "modified": [file.modified_ns for file in files],
    }
    return _claim(out, inputs, config) or _ingest(files, out, config, resources or Resources(), progress)


def ingest_dataset(
    dataset: Dataset,
    out: Location,
    config: IngestConfig | None = None,
    resources: Resources | None = None,
    *,
    progress: Bar | None = None,
) -> IngestReport:
    """Read a Ray dataset into `out`, below which its blocks are first written in their order.

    Nothing shows whether an earlier attempt wrote the same dataset there, so give each dataset its own folder.
    """
    config = config or IngestConfig()
    if report := _claim(out, {"dataset": True}, config):
        return report
    blocks, complete = out / "input", out / "input.complete"
    if not complete.exists():
        blocks.delete()
        blocks.make_folder()
        with kept_whole(dataset):
            dataset.write_parquet(blocks.path, filesystem=blocks.fs, filename_provider=_NumberedFiles())
        complete.write("")
    files = [
        SourceFile(block, f"dataset block {number}", "dataset", block.size(), 0)
        for number, block in enumerate(blocks.files(".parquet"))
    ]
    report = _ingest(files, out, config, resources or Resources(), progress, lasting=False)
    blocks.delete()
    return report


def list_pool(sources: Sequence[str], config: IngestConfig) -> list[SourceFile]:
    """The files that an ingest would read; raises on a wrong path or format name before anything is read."""
    if config.format != "auto":
        find_layout(config.format)
    return find_files(sources)


def read_report(out: Location) -> IngestReport:
    """The report of a finished ingest."""
    return IngestReport(**json.loads((out / REPORT).read_text()))


class _Ingest:
    """The chunks of a pool with the layout of each."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.layouts: dict[str, str] = {}
        self.bad: dict[str, str] = {}
        self.empty: list[str] = []


def _ingest(
    files: list[SourceFile],
    out: Location,
    config: IngestConfig,
    resources: Resources,
    progress: Bar | None,
    lasting: bool = True,
) -> IngestReport:
    clock = time.perf_counter()
    start_ray()
    work = (out / "work").make_folder()
    for folder in ("rows", "rejected"):
        (out / folder).make_folder()
    plan = _plan(files, config, resources)

    parts = _read_all(plan, config, resources, work, progress)
    if lasting and (changed := changed_files(files)):
        work.delete()
        raise DataError(
            f"ingest: the pool changed while it was read: {_listed(changed)}. Run the same command again once nothing "
            "writes to it."
        )
    _set_bad_files_aside(plan, parts, config)
    shards, places, trimmed, problems = _shards_of(plan, parts)
    names = [name for name, _ in shards]
    buckets = list(enumerate(bucket_bounds(sum(rows for _, rows in shards))))
    if len(buckets) == 1:
        twin_counts = [(0, find_twins(*buckets[0], names, work))]  # a few milliseconds: not worth a task
    else:
        by_bucket = [(number, bucket, names, work) for number, bucket in buckets]
        twin_counts = sorted(run_tasks(find_twins, by_bucket, resources, "ingest, ids"))
    twins = [f"twins-{number:03d}.bin" for number, count in twin_counts if count]
    finished: list[Counts] = [{}] * len(shards)
    shared = (ray.put(names), ray.put(places), ray.put(twins))
    tasks = [(number, *shared, work, out) for number in range(len(shards))]
    for number, counts in run_tasks(finish_shard, tasks, resources, "ingest, shards"):
        finished[number] = counts
        _say(progress, len(parts) + sum(bool(done) for done in finished), len(parts) + len(shards))

    by_source: Counter[str] = Counter()
    for counts in finished:
        by_source.update(counts["by_source"])
    kept = sum(counts["kept"] for counts in finished)
    rows_in = sum(rows for _, rows in shards) + sum(problems.values())
    if duplicates := sum(counts["duplicates"] for counts in finished):
        problems["duplicate"] = duplicates
    failures = {reason: problems[reason] for reason in sorted(problems) if reason in FAILURES}
    report = IngestReport(
        rows_in=rows_in,
        kept=kept,
        rejected={reason: problems[reason] for reason in sorted(problems) if reason not in FAILURES},
        failed=sum(failures.values()),
        failures=failures,
        duplicates=duplicates,
        trimmed=trimmed,
        bad_files=plan.bad,
        empty_files=plan.empty,
        by_source=dict(sorted(by_source.items())),
        layouts=plan.layouts,
        files=[counts["rows"] for counts in finished if counts["rows"]],
        rejected_files=[counts["rejected"] for counts in finished if counts["rejected"]],
        most_tokens=max(counts[LONGEST] for counts in finished) if all(LONGEST in one for one in finished) else None,
        seconds=round(time.perf_counter() - clock, 3),
    )
    (out / REPORT).write(json.dumps(asdict(report), indent=2) + "\n")
    work.delete()
    return _require_rows(report, out)


def _claim(out: Location, inputs: dict[str, Any], config: IngestConfig) -> IngestReport | None:
    """The report of a finished ingest of the same inputs and settings; refuses a folder that holds a different one.

    If only the files' times differ, the files were written again, and what was made of them is deleted.
    """
    wanted = canonical({**inputs, "config": config, "version": VERSION})
    place = out / PLAN
    if place.exists():
        changed = differences(json.loads(place.read_text()), wanted)
        if not changed:
            return _require_rows(read_report(out), out) if (out / REPORT).exists() else None
        other = [line for line in changed if not line.startswith("modified:")]
        if other:
            lines = "\n".join(f"  {line[:1000]}" for line in other)
            raise StaleRunError(
                f"ingest: {out} holds an ingest of other files or settings:\n{lines}\n"
                "Give another folder, or delete this one."
            )
    for name in ("work", "rows", "rejected", "input", "input.complete", REPORT):
        (out / name).delete()
    out.make_folder()
    place.write(json.dumps(wanted, indent=2) + "\n")
    return None


def _plan(files: list[SourceFile], config: IngestConfig, resources: Resources) -> _Ingest:
    chunk_bytes = chunk_bytes_for(sum(file.size for file in files))
    planned: list[Any] = [None] * len(files)
    tasks = [(file, chunk_bytes, config) for file in files]
    for number, answer in run_tasks(plan_and_recognise, tasks, resources, "ingest, files"):
        planned[number] = answer
        if isinstance(answer, RaysiftError) and config.on_bad_file == "stop":
            raise answer
    result = _Ingest()
    for file, answer in zip(files, planned, strict=True):
        if isinstance(answer, RaysiftError):
            result.bad[file.name] = str(answer)
            continue
        plan, layout = answer
        if not plan.chunks:
            result.empty.append(file.name)
            continue
        result.chunks += plan.chunks
        result.layouts[file.name] = layout
    if not result.chunks:
        raise DataError(f"ingest: the pool holds no records: {_listed(result.bad or result.empty)}")
    return result


def _read_all(
    plan: _Ingest, config: IngestConfig, resources: Resources, work: Location, progress: Bar | None
) -> list[Counts | None]:
    """Counts of each chunk, None for the chunks of files that turned out bad."""
    parts: list[Counts | None] = [None] * len(plan.chunks)
    tasks = [(number, chunk, plan.layouts[chunk.file.name], config, work) for number, chunk in enumerate(plan.chunks)]
    for done, (number, answer) in enumerate(run_tasks(read_part, tasks, resources, "ingest, chunks"), 1):
        if isinstance(answer, RaysiftError):
            file = plan.chunks[number].file.name
            error = answer if config.on_bad_file == "quarantine" else _first_error(plan, tasks, file, answer)
            if config.on_bad_file == "stop":
                raise error
            plan.bad[file] = str(_first_error(plan, tasks, file, error)) if file not in plan.bad else plan.bad[file]
        else:
            parts[number] = answer
        _say(progress, done, 2 * len(tasks))
    return parts


def _first_error(plan: _Ingest, tasks: list[tuple[Any, ...]], file: str, found: RaysiftError) -> RaysiftError:
    """The first error in the file's order: later chunks may be cut wrongly because of it, and may fail sooner."""
    for number, chunk in enumerate(plan.chunks):
        if chunk.file.name == file:
            answer = read_part(*tasks[number])
            if isinstance(answer, RaysiftError):
                return answer
    return found


def _set_bad_files_aside(plan: _Ingest, parts: list[Counts | None], config: IngestConfig) -> None:
    """Judge each file by the share of its records that could not be understood."""
    rows: Counter[str] = Counter()
    failed: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for chunk, part in zip(plan.chunks, parts, strict=True):
        if part is not None:
            rows[chunk.file.name] += sum(n for _, n in part["shards"]) + sum(part["reasons"].values())
            failed[chunk.file.name].update({r: n for r, n in part["reasons"].items() if r in FAILURES})
    for name, reasons in failed.items():
        count = sum(reasons.values())
        if name not in plan.bad and count > config.max_failed_share * rows[name]:
            listed = ", ".join(f"{reason} {n}" for reason, n in sorted(reasons.items()))
            error = BadFile(
                name,
                f"{count} of {rows[name]} records cannot be understood ({listed}); at most a share of "
                f"{config.max_failed_share:g} may (ingest.max_failed_share).",
            )
            if config.on_bad_file == "stop":
                raise error
            plan.bad[name] = str(error)


def _shards_of(
    plan: _Ingest, parts: list[Counts | None]
) -> tuple[list[tuple[str, int]], list[Origin], int, Counter[str]]:
    shards: list[tuple[str, int]] = []
    places: list[Origin] = []
    base: Counter[str] = Counter()
    problems: Counter[str] = Counter()
    trimmed = 0
    for chunk, part in zip(plan.chunks, parts, strict=True):
        name = chunk.file.name
        if part is None or name in plan.bad:
            continue
        unit = "line" if chunk.kind == "jsonl" else "record"
        for shard in part["shards"]:
            shards.append((shard[0], shard[1]))
            places.append(Origin(name, base[name], unit))
        base[name] += part["seen"]
        problems.update(part["reasons"])
        trimmed += part["trimmed"]
    return shards, places, trimmed, problems


def _say(progress: Bar | None, done: int, total: int) -> None:
    if progress is not None:
        progress.update(done, total)


def _require_rows(report: IngestReport, out: Location) -> IngestReport:
    if report.kept:
        return report
    listed = ", ".join(f"{reason} {n}" for reason, n in (report.rejected | report.failures).items())
    raise DataError(
        f"ingest: no row is left of {report.rows_in} ({listed or _listed(report.bad_files)}). The reason of each is in "
        f"{out}/rejected."
    )


def _listed(names: Any) -> str:
    shown = [f"{name} ({names[name]})" for name in names] if isinstance(names, dict) else list(names)
    return "; ".join(shown[:10]) + (f" and {len(shown) - 10} more" if len(shown) > 10 else "")


@contextlib.contextmanager
def kept_whole(dataset: Dataset) -> Iterator[None]:
    """The dataset's own settings, captured when it was made, with order kept and no block allowed to fail."""
    context = dataset.context
    ordered, errors = context.execution_options.preserve_order, context.max_errored_blocks
    context.execution_options.preserve_order, context.max_errored_blocks = True, 0
    try:
        yield
    finally:
        context.execution_options.preserve_order, context.max_errored_blocks = ordered, errors


class _NumberedFiles(FilenameProvider):  # type: ignore[misc]
    """Names that follow the order of the blocks."""

    def get_filename_for_task(self, write_uuid: str, task_index: int) -> str:
        return f"block-{task_index:06d}-{write_uuid}.parquet"

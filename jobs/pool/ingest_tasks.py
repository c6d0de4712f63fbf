"""The Ray tasks of ingest. Each leaves files of fixed names and, last of all, a small file of counts.

1. `read_part` turns a chunk into rows and problems, in quick temporary files, and notes the rows' ids.
2. `find_twins` looks for ids that occur twice within a bucket of ids, over all shards.
3. `finish_shard` writes a shard's rows without duplicates, and what did not become a row, with its place in the file.

A shard is named `00012-000`: the chunk's number and the shard's within it; only a chunk with very many rows has several.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysift.errors import RaysiftError
from raysift.manifest import settle
from raysift.pool.checks import IngestConfig
from raysift.pool.chunks import FilePlan, plan_file
from raysift.pool.dedup import find_losers, read_parts, write_ids, write_parts
from raysift.pool.files import BadFile, Chunk, SourceFile, one_line
from raysift.pool.formats import LAYOUTS, recognise
from raysift.pool.json_text import original_text
from raysift.pool.longest import LONGEST, most_tokens
from raysift.pool.normalise import PLACED_ROWS, POSITION, Normalised, Normaliser
from raysift.pool.reading import read_chunk
from raysift.records import FILE, ID, KEPT_ROWS, MESSAGES, RAW, REASON, REJECTED, SOURCE
from raysift.storage import Location

SHARD_ROWS = 100_000
SHARD_BYTES = 256 * 2**20
PROBLEMS = pa.schema([field.with_nullable(True) for field in REJECTED if field.name != "file"])
ROW_COLUMNS_WORTH_A_DICTIONARY = [SOURCE, FILE, "messages.list.element.role"]

Counts = dict[str, Any]


@dataclass(frozen=True)
class Origin:
    """Where in a file a shard's rows come from: position p of the shard is record (or line) `base + p + 1` of the file."""

    file: str
    base: int
    unit: str

    def of(self, position: int) -> str:
        return f"{self.file}, {self.unit} {self.base + position + 1}"


def plan_and_recognise(file: SourceFile, chunk_bytes: int, config: IngestConfig) -> tuple[FilePlan, str] | RaysiftError:
    """How to read a file and the name of its layout; returns an error instead of raising it, for the driver to judge."""
    try:
        plan = plan_file(file, chunk_bytes)
        if not plan.chunks:
            return plan, ""
        return plan, recognise(plan.columns, config.format, config.columns, file.name).name
    except RaysiftError as error:
        return error
    except Exception as error:
        return _unexpected(file, error)


def read_part(number: int, chunk: Chunk, layout: str, config: IngestConfig, work: Location) -> Counts | RaysiftError:
    """Read a chunk into shards, unless an earlier attempt did; returns its counts."""
    done = work / f"part-{number:05d}.json"
    if (earlier := _counts_in(done, work)) is not None:
        return earlier
    shards = _Shards(number, work)
    reasons: Counter[str] = Counter()
    seen = trimmed = 0
    try:
        with (
            (work / f"problems-{number:05d}.arrow").open_output() as stream,
            pa.ipc.new_file(stream, PROBLEMS, options=_quick(work)) as problems,
        ):
            for used, result in _normalised(chunk, layout, config):
                shards.add(result.rows)
                if result.problems:
                    problems.write_table(_problem_table(result))
                    reasons.update(problem.reason for problem in result.problems)
                seen, trimmed = used, trimmed + result.trimmed
    except RaysiftError as error:
        return error
    counts: Counts = {"seen": seen, "reasons": dict(reasons), "trimmed": trimmed, "shards": shards.close()}
    names = [name for shard, _ in counts["shards"] for name in (f"rows-{shard}.arrow", f"ids-{shard}.bin")]
    return _note_counts(done, counts, work, [f"problems-{number:05d}.arrow", *names])


def _normalised(chunk: Chunk, layout: str, config: IngestConfig) -> Iterator[tuple[int, Normalised]]:
    """The chunk's batches as rows, with the positions used up so far. Any error here is the file's fault."""
    normalise = Normaliser(chunk.file, LAYOUTS[layout], config)
    try:
        for batch in read_chunk(chunk):
            yield batch.seen, normalise(batch)
    except RaysiftError:
        raise
    except Exception as error:
        raise _unexpected(chunk.file, error) from error


def _unexpected(file: SourceFile, error: Exception) -> BadFile:
    return BadFile(file.name, f"cannot be read: {type(error).__name__}: {one_line(error)}")


def find_twins(number: int, bucket: tuple[int, int], shards: Sequence[str], work: Location) -> int:
    """Find the duplicates among the ids of a bucket; returns their number."""
    table, starts = find_losers([work / f"ids-{shard}.bin" for shard in shards], bucket)
    write_parts(work / f"twins-{number:03d}.bin", starts, table)
    return len(table)


def finish_shard(
    number: int, shards: Sequence[str], places: Sequence[Origin], twins: Sequence[str], work: Location, out: Location
) -> Counts:
    """Write the rows of a shard that are kept, and the others with their reasons; returns the counts."""
    shard, place = shards[number], places[number]
    done = work / f"done-{shard}.json"
    if (earlier := _counts_in(done, out)) is not None:
        return earlier
    tables = [read_parts(work / name, number, number + 1) for name in twins]
    losers = np.concatenate([np.empty((0, 4), np.int64), *tables])
    losers = losers[np.argsort(losers[:, 0])]
    rows_file, rejected_file = f"rows/part-{shard}.parquet", f"rejected/part-{shard}.parquet"
    by_source: Counter[str] = Counter()
    longest = 0
    rejected = _ParquetFile(out / rejected_file, REJECTED, [SOURCE, "file", REASON])
    rows = _ParquetFile(out / rows_file, KEPT_ROWS, ROW_COLUMNS_WORTH_A_DICTIONARY)
    chunk, _, part = shard.partition("-")
    if part == "000":
        for problems in _read_quick(work / f"problems-{chunk}.arrow"):
            rejected.write(_placed(problems, place, REJECTED))
    first = 0
    for batch in _read_quick(work / f"rows-{shard}.arrow"):
        here = losers[np.searchsorted(losers[:, 0], first) : np.searchsorted(losers[:, 0], first + batch.num_rows)]
        if len(here):
            duplicates = batch.take(pa.array(here[:, 0] - first))
            rejected.write(_placed(_duplicate_table(duplicates, here, places), place, REJECTED))
            stays = np.ones(batch.num_rows, bool)
            stays[here[:, 0] - first] = False
            first += batch.num_rows
            batch = batch.filter(pa.array(stays))
        else:
            first += batch.num_rows
        rows.write(_placed(batch, place, KEPT_ROWS))
        for entry in pc.value_counts(batch[SOURCE]).to_pylist():
            by_source[entry["values"]] += entry["counts"]
        longest = max(longest, most_tokens(batch[MESSAGES]))
    counts: Counts = {
        "kept": rows.close(),
        "duplicates": len(losers),
        "by_source": dict(by_source),
        LONGEST: longest,
        "rows": rows_file if rows.count else None,
        "rejected": rejected_file if rejected.close() else None,
    }
    counts = _note_counts(done, counts, out, [name for name in (counts["rows"], counts["rejected"]) if name])
    (work / f"rows-{shard}.arrow").delete()
    return counts


def _note_counts(place: Location, counts: Counts, folder: Location, files: Sequence[str]) -> Counts:
    """Record that a task is done, once its files are on the disk."""
    place.write(json.dumps(counts | {"files": settle(folder, files)}))
    return counts


def _counts_in(place: Location, folder: Location) -> Counts | None:
    """The counts of a task, if its files are all complete; a node that loses power may leave half a file."""
    try:
        counts: Counts = json.loads(place.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    for name, size in counts.pop("files").items():
        if (folder / name).size() != size and not _is_finished(name, folder):
            return None
    return counts


def _is_finished(name: str, work: Location) -> bool:
    """Whether these are the rows of a finished shard, which are deleted by then."""
    shard = name.removeprefix("rows-").removesuffix(".arrow")
    return name.startswith("rows-") and _counts_in(work / f"done-{shard}.json", work.parent) is not None


class _Shards:
    """Writes a chunk's rows into shards of bounded size, and the ids of each."""

    def __init__(self, chunk: int, work: Location) -> None:
        self._chunk, self._work = chunk, work
        self._names: list[str] = []
        self._rows: list[int] = []
        self._writer: Any = None
        self._open()

    def add(self, rows: pa.Table) -> None:
        if not rows.num_rows:
            return
        if self._rows[-1] >= SHARD_ROWS or self._bytes >= SHARD_BYTES:
            self._finish()
            self._open()
        self._writer.write_table(rows)
        self._ids.append(rows[ID].to_numpy())
        self._positions.append(rows[POSITION].to_numpy())
        self._rows[-1] += rows.num_rows
        self._bytes += rows.nbytes

    def close(self) -> list[tuple[str, int]]:
        """Name and number of rows of each shard; there is always at least one, even without rows."""
        self._finish()
        return list(zip(self._names, self._rows, strict=True))

    def _open(self) -> None:
        self._names.append(f"{self._chunk:05d}-{len(self._names):03d}")
        self._rows.append(0)
        self._bytes = 0
        self._ids: list[Any] = [np.empty(0, np.int64)]
        self._positions: list[Any] = [np.empty(0, np.int64)]
        place = self._work / f"rows-{self._names[-1]}.arrow"
        self._stream = place.open_output()
        self._writer = pa.ipc.new_file(self._stream, PLACED_ROWS, options=_quick(self._work))

    def _finish(self) -> None:
        self._writer.close()
        self._stream.close()  # on an object store only this creates the file
        ids = self._work / f"ids-{self._names[-1]}.bin"
        write_ids(ids, np.concatenate(self._ids), np.concatenate(self._positions))


class _ParquetFile:
    """A Parquet file that is created with its first rows; each table becomes a row group."""

    def __init__(self, place: Location, schema: pa.Schema, dictionaries: list[str]) -> None:
        self._place, self._schema, self._dictionaries = place, schema, dictionaries
        self._writer: Any = None
        self.count = 0

    def write(self, table: pa.Table) -> None:
        if not table.num_rows:
            return
        if self._writer is None:
            self._stream = self._place.open_output()
            self._writer = pq.ParquetWriter(
                self._stream, self._schema, compression="zstd", use_dictionary=self._dictionaries, write_statistics=[ID]
            )
        self._writer.write_table(table.cast(self._schema))
        self.count += table.num_rows

    def close(self) -> int:
        if self._writer is not None:
            self._writer.close()
            self._stream.close()
        return self.count


def _quick(work: Location) -> pa.ipc.IpcWriteOptions:
    """Compresses temporary files only over a network: it takes a fifth of the time of a read."""
    return pa.ipc.IpcWriteOptions(compression=None if work.is_local else "lz4")


def _read_quick(place: Location) -> Any:
    with place.open_input() as stream:
        reader = pa.ipc.open_file(stream)
        for number in range(reader.num_record_batches):
            yield pa.Table.from_batches([reader.get_batch(number)])


def _problem_table(result: Normalised) -> pa.Table:
    found = result.problems
    return pa.table(
        {
            ID: pa.array(result.problem_ids, pa.int64()),
            SOURCE: result.problem_sources,
            POSITION: [problem.position for problem in found],
            REASON: [problem.reason for problem in found],
            "message": pa.array([problem.message or None for problem in found], pa.string()),
            RAW: pa.array([problem.raw for problem in found], pa.string()),
        },
        schema=PROBLEMS,
    )


def _duplicate_table(rows: pa.Table, twins: np.ndarray[Any, Any], places: Sequence[Origin]) -> pa.Table:
    raws = [row[RAW] if row[RAW] is not None else original_text(row) for row in rows.to_pylist()]
    said = [f"the same conversation as {places[shard].of(position)}" for shard, position in twins[:, 2:].tolist()]
    return pa.table(
        {
            ID: rows[ID],
            SOURCE: rows[SOURCE],
            POSITION: rows[POSITION],
            REASON: pa.repeat("duplicate", rows.num_rows),
            "message": said,
            RAW: raws,
        },
        schema=PROBLEMS,
    )


def _placed(rows: pa.Table, place: Origin, schema: pa.Schema) -> pa.Table:
    """The rows with their place in the file, counted from 1, in the schema's columns."""
    position = pa.array(rows[POSITION].to_numpy() + place.base + 1, pa.int64())
    columns = {name: rows[name] for name in rows.column_names}
    return pa.table(columns | {FILE: pa.repeat(place.file, rows.num_rows), POSITION: position}).select(schema.names)

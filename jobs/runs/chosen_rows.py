"""Copies chosen rows out of a pool's files: one pass over the pool for any number of rows, in bounded memory.

Rows are written in parts of at most PART_ROWS rows and PART_BYTES bytes; a larger row gets a part of its own. This keeps
parts far below the 2 GiB limit of a text column.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysift.errors import StageError
from raysift.jobs.runs.tables import read_chunks
from raysift.records import ID, MESSAGES, META, RAW, ROWS
from raysift.storage import Location
from raysift.topk import Ids

PART_ROWS = 100_000
PART_BYTES = 256 * 2**20
MOST_BUCKETS = 32  # open at once; on an object store each holds a few MiB that wait to be sent

_PLACE = "place in the order"


def write_rows(files: Sequence[Location], ids: Ids, folder: Location) -> list[str]:
    """Write the rows with these ids to files in the folder, in pool order; return the file names."""
    names = []
    for number, part in enumerate(_in_parts(chunk for chunk, _ in chosen_chunks(files, ids, ROWS.names))):
        place = folder / f"rows-{number:05d}.parquet"
        pq.write_table(part, place.path, filesystem=place.fs, compression="zstd")
        names.append(place.name)
    return names


def chosen_chunks(files: Sequence[Location], ids: Ids, columns: Sequence[str]) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """Yield the rows with these ids, chunk by chunk in file order, with the position of each in `ids`.

    Raises at the end unless every id occurred exactly once.
    """
    order = np.argsort(ids, kind="stable")
    rising, seen = ids[order], 0
    for chunk in read_chunks(files, columns):
        there = chunk[ID].to_numpy()
        near = np.minimum(np.searchsorted(rising, there), max(0, len(rising) - 1))
        wanted = rising[near] == there if len(rising) else np.zeros(len(there), bool)
        if wanted.any():
            seen += int(wanted.sum())
            yield chunk.filter(pa.array(wanted)), order[near[wanted]]
    if seen != len(ids):
        raise StageError(
            f"rows: {len(ids)} rows were chosen, {seen} of them are in the files. The files are of another pool."
        )


def rows_in_order(
    files: Sequence[Location],
    ids: Ids,
    columns: Sequence[str],
    work: Location,
    beside: Sequence[Location] = (),
    of_beside: Sequence[str] = (),
) -> Iterator[pa.Table]:
    """Yield the rows with these ids in the order of `ids`, part by part.

    A first pass over the files distributes the rows to buckets of neighbouring ranks (files below `work`). Then the buckets
    are sorted one by one. The files `beside` hold the same ids; their columns `of_beside` are added in the same way.
    """
    work.delete()
    work.make_folder()
    bucket_rows = PART_ROWS * max(1, -(-len(ids) // (PART_ROWS * MOST_BUCKETS)))
    buckets, sizes = _distribute(files, ids, columns, work, "rows", bucket_rows)
    others = _distribute(beside, ids, [ID, *of_beside], work, "beside", bucket_rows)[0] if of_beside else []
    for number, bucket in enumerate(buckets):
        first = number * bucket_rows
        for start, end in _spans(sizes[first : first + bucket_rows]):
            part = _read_part(bucket, first + start, first + end)
            if others:
                more = _read_part(others[number], first + start, first + end)
                for name in of_beside:
                    part = part.append_column(more.schema.field(name), more[name])
            yield part
    work.delete()


def _distribute(
    files: Sequence[Location], ids: Ids, columns: Sequence[str], work: Location, name: str, bucket_rows: int
) -> tuple[list[Location], np.ndarray]:
    """Write the rows with these ids to one file for each `bucket_rows` ranks; the files, and the bytes of each row by rank."""
    sizes = np.zeros(len(ids), np.int64)
    buckets = [work / f"{name}-{number:05d}.arrow" for number in range(max(1, -(-len(ids) // bucket_rows)))]
    with contextlib.ExitStack() as stack:
        writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}
        for chunk, ranks in chosen_chunks(files, ids, columns):
            sizes[ranks] = row_bytes(chunk)
            ranked = chunk.append_column(_PLACE, pa.array(ranks))
            for number in np.unique(ranks // bucket_rows).tolist():
                if number not in writers:
                    stream = stack.enter_context(buckets[number].open_output())
                    writers[number] = stack.enter_context(pa.ipc.new_stream(stream, ranked.schema))
                writers[number].write_table(ranked.filter(pa.array(ranks // bucket_rows == number)))
    return buckets, sizes


def row_bytes(rows: pa.Table) -> np.ndarray:
    """Bytes of text in each row."""
    total = np.zeros(len(rows), np.int64)
    for name in {META, RAW} & {*rows.column_names}:
        total += pc.fill_null(pc.binary_length(rows[name]), 0).to_numpy()
    if MESSAGES in rows.column_names:
        ends = np.cumsum(pc.list_value_length(rows[MESSAGES]).to_numpy())
        contents = pc.struct_field(pc.list_flatten(rows[MESSAGES]), "content")
        lengths = pc.fill_null(pc.binary_length(contents), 0).to_numpy()
        sums = np.concatenate([[0], np.cumsum(lengths)])
        total += np.diff(sums[np.concatenate([[0], ends])])
    return total


def _spans(sizes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Spans of neighbouring rows that fit into one part: at most PART_ROWS rows and PART_BYTES bytes, or a single row."""
    ends, start = np.cumsum(sizes), 0
    while start < len(sizes):
        before = ends[start - 1] if start else 0
        end = min(start + PART_ROWS, max(start + 1, int(np.searchsorted(ends, before + PART_BYTES, "right"))))
        yield start, end
        start = end


def _in_parts(chunks: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Split and join chunks into parts, keeping rows and order."""
    held: list[pa.Table] = []
    rows = size = 0
    for chunk in chunks:
        sizes = row_bytes(chunk)
        for start, end in _spans(sizes):
            more = int(sizes[start:end].sum())
            if held and (rows + end - start > PART_ROWS or size + more > PART_BYTES):
                yield pa.concat_tables(held)
                held, rows, size = [], 0, 0
            held.append(chunk.slice(start, end - start))
            rows, size = rows + end - start, size + more
    if held:
        yield pa.concat_tables(held)


def _read_part(bucket: Location, start: int, end: int) -> pa.Table:
    """Read the rows of a bucket with ranks from start to end (exclusive), in order."""
    found: list[pa.Table] = []
    with bucket.open_stream() as stream, pa.ipc.open_stream(stream) as reader:
        for batch in reader:
            table = pa.Table.from_batches([batch])
            places = table[_PLACE].to_numpy()
            found.append(table.filter(pa.array((places >= start) & (places < end))))
    rows = pa.concat_tables(found)
    order = np.argsort(rows[_PLACE].to_numpy())
    return rows.drop_columns([_PLACE]).take(pa.array(order)).combine_chunks()

"""From files to *chunks*: parts of them that can be read independently, in bounded memory.

JSON lines are cut by bytes, JSON arrays at the ends of elements, Parquet by row groups, Arrow files by record batches.
Compressed text, CSV and Arrow streams can only be read from the start and are one chunk each. What a text file holds is
decided by its first characters, not by its name: many a `.json` holds JSON lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import orjson
import pyarrow.parquet as pq

from raysift.pool.csv_text import csv_header
from raysift.pool.files import BadFile, Chunk, SourceFile, line_of, one_line, open_stream, read_blocks
from raysift.pool.foreign_arrow import describe_arrow
from raysift.pool.formats.problem import RecordProblem
from raysift.pool.json_arrays import ArrayScanner
from raysift.pool.parsing import Record, first_records, records_of
from raysift.pool.reading import BOM, UNREADABLE, read_chunk

SAMPLE_BYTES = 2**20
SAMPLE_RECORDS = 20


@dataclass(frozen=True)
class FilePlan:
    """The chunks of a file, none if it is empty, and the columns that its first records have."""

    file: SourceFile
    chunks: tuple[Chunk, ...]
    columns: tuple[str, ...]


def chunk_bytes_for(total_bytes: int) -> int:
    """Size of a chunk: some 32 chunks for a pool, within bounds that keep tasks worth their start and memory low.

    It follows from the pool alone: chunks, and with them shards, do not depend on the number of workers.
    """
    return min(max(total_bytes // 32, 4 * 2**20), 64 * 2**20)


def plan_file(file: SourceFile, chunk_bytes: int) -> FilePlan:
    """How to read a file; raises BadFile where not even its beginning can be read."""
    if file.fault:
        raise BadFile(file.name, file.fault)
    if file.size == 0:
        return FilePlan(file, (), ())
    try:
        if file.family == "parquet":
            plan = _plan_parquet(file, chunk_bytes)
        elif file.family == "arrow":
            plan = _plan_arrow(file)
        elif file.family == "csv":
            plan = FilePlan(file, (Chunk(file, "csv"),), csv_header(file))
        else:
            plan = _plan_text(file, chunk_bytes)
    except UNREADABLE as error:
        raise BadFile(file.name, f"cannot be read as {file.family}: {one_line(error)}") from None
    if doubled := sorted({name for name in plan.columns if plan.columns.count(name) > 1}):
        raise BadFile(file.name, f"names the columns {doubled} more than once.", 1 if file.family == "csv" else None)
    return plan


def _plan_parquet(file: SourceFile, chunk_bytes: int) -> FilePlan:
    with file.location.open_input() as stream:
        metadata = pq.ParquetFile(stream)
        columns = tuple(metadata.schema_arrow.names)
        sizes = [metadata.metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
    chunks, start, held = [], 0, 0
    for group, size in enumerate(sizes):
        if held and held + size > chunk_bytes:
            chunks.append(Chunk(file, "parquet", start, group))
            start, held = group, 0
        held += size
    if sizes:
        chunks.append(Chunk(file, "parquet", start, len(sizes)))
    return FilePlan(file, tuple(chunks), columns)


def _plan_arrow(file: SourceFile) -> FilePlan:
    columns, batches = describe_arrow(file.location)
    if batches is None:
        return FilePlan(file, (Chunk(file, "arrow_stream"),), columns)
    # Each chunk starts a process that reads it.
    step = max(1, -(-batches // 32))
    chunks = tuple(Chunk(file, "arrow", i, min(i + step, batches)) for i in range(0, batches, step))
    return FilePlan(file, chunks, columns)


def _plan_text(file: SourceFile, chunk_bytes: int) -> FilePlan:
    with open_stream(file) as stream:
        sample = stream.read(SAMPLE_BYTES)
    whole = len(sample) < SAMPLE_BYTES
    if sample[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\x00" in sample[:4]:
        raise BadFile(file.name, "is UTF-16 or UTF-32 text. Convert it to UTF-8.", 1)
    text = sample.lstrip(BOM).strip() if whole else sample.lstrip(BOM).lstrip()
    if whole and not text:
        return FilePlan(file, (), ())
    if text.startswith(b"["):
        chunks = _array_chunks(file, chunk_bytes)
        if whole and text.endswith(b"]") and not text[1:-1].strip():
            return FilePlan(file, (), ())
    elif _holds_one_object(text, whole):
        raise BadFile(
            file.name,
            "holds one object or several written over many lines; expected one record a line, or an array of records.",
            1,
        )
    else:
        ends = [-1] if file.compression else [*range(chunk_bytes, file.size, chunk_bytes), file.size]
        chunks = [Chunk(file, "jsonl", start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    found = first_records(chunks[0], SAMPLE_RECORDS)
    known = [record for record in found if not isinstance(record, RecordProblem)]
    if not known:
        why = found[0].message if found and isinstance(found[0], RecordProblem) else "there is none"
        raise BadFile(file.name, f"none of its first records is a JSON object: {why}", 1)
    return FilePlan(file, tuple(chunks), _union(known))


def _holds_one_object(text: bytes, whole: bool) -> bool:
    """Whether the first line is only the beginning of an object."""
    first = text.split(b"\n", 1)[0]
    if not first.startswith(b"{") or _is_json(first):
        return False
    return first.strip() == b"{" or (whole and _is_json(text))


def _is_json(text: bytes) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def _array_chunks(file: SourceFile, chunk_bytes: int) -> list[Chunk]:
    if file.compression:
        return [Chunk(file, "json")]
    scanner, cuts, target = ArrayScanner(), [], 0
    for block in read_blocks(file):
        commas = scanner.feed(block)
        target = max(target, (scanner.opened_at or 0) + chunk_bytes)
        while len(commas) and commas[-1] >= target:
            cuts.append(int(commas[commas.searchsorted(target)]))
            target = cuts[-1] + chunk_bytes
    closed = scanner.closed_at
    if closed is not None and any(block.strip() for block in read_blocks(file, closed + 1)):
        raise BadFile(file.name, "text after the end of the array; expected one array.", line_of(file, closed))
    starts = [(scanner.opened_at or 0) + 1, *(cut + 1 for cut in cuts)]
    ends = [*cuts, -1 if closed is None else closed]
    return [Chunk(file, "json", start, end) for start, end in zip(starts, ends, strict=True)]


def _union(records: Sequence[Record]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(key for record in records for key in record))


def read_records(
    file: SourceFile, check: Callable[[FilePlan], None] = lambda plan: None
) -> Iterator[tuple[str, Record | RecordProblem]]:
    """All records of a file one by one, each with its place (`line 3`); `check` may refuse the file by its columns."""
    plan = plan_file(file, chunk_bytes_for(file.size))
    check(plan)
    before = 0
    for chunk in plan.chunks:
        seen, unit = 0, "line" if chunk.kind == "jsonl" else "record"
        for batch in read_chunk(chunk):
            for position, record in records_of(batch, file):
                yield f"{unit} {before + position + 1}", record
            seen = batch.seen
        before += seen

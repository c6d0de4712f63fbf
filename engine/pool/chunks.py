"""From files to *chunks*: parts of them that can be read independently, in bounded memory.

JSON lines are cut by bytes, JSON arrays at the ends of elements, Parquet by row groups, Arrow files by record batches.
Compressed text, CSV and Arrow streams can only be read from the start and are one chunk each. What a text file holds is
decided by its first characters, not by its name: many a `.json` holds JSON lines.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from raysift.pool.csv_text import csv_header
from raysift.pool.files import BadFile, SourceFile, line_of, open_stream, read_blocks
from raysift.pool.json_arrays import ArrayScanner, split_elements

SAMPLE_BYTES = 2**20
SAMPLE_RECORDS = 20


@dataclass(frozen=True)
class Chunk:
    """A part of a file: bytes for text, row groups for Parquet, record batches for Arrow; end -1 is the file's end."""

    file: SourceFile
    kind: str  # jsonl, json, csv, parquet, arrow, arrow_stream
    start: int = 0
    end: int = -1


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
    if file.size == 0:
        return FilePlan(file, (), ())
    try:
        if file.family == "parquet":
            return _plan_parquet(file, chunk_bytes)
        if file.family == "arrow":
            return _plan_arrow(file)
        if file.family == "csv":
            return _plan_csv(file)
        return _plan_text(file, chunk_bytes)
    except (pa.ArrowException, OSError, EOFError) as error:
        raise BadFile(file.name, f"cannot be read as {file.family}: {_one_line(error)}") from None


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
    with file.location.open_input() as stream:
        is_file = stream.read(6) == b"ARROW1"
        stream.seek(0)
        if not is_file:
            return FilePlan(file, (Chunk(file, "arrow_stream"),), tuple(pa.ipc.open_stream(stream).schema.names))
        reader = pa.ipc.open_file(stream)
        columns, batches = tuple(reader.schema.names), reader.num_record_batches
    step = max(1, -(-batches // 32))
    chunks = tuple(Chunk(file, "arrow", i, min(i + step, batches)) for i in range(0, batches, step))
    return FilePlan(file, chunks, columns)


def _plan_csv(file: SourceFile) -> FilePlan:
    return FilePlan(file, (Chunk(file, "csv"),), csv_header(file))


def _plan_text(file: SourceFile, chunk_bytes: int) -> FilePlan:
    with open_stream(file) as stream:
        sample = stream.read(SAMPLE_BYTES)
    if sample[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\x00" in sample[:4]:
        raise BadFile(file.name, "is UTF-16 or UTF-32 text. Convert it to UTF-8.", 1)
    skip = 3 if sample.startswith(b"\xef\xbb\xbf") else 0
    text = sample[skip:].lstrip()
    if not text:
        return FilePlan(file, (), ())
    opens_array = text.startswith(b"[") and _parsed(text.split(b"\n", 1)[0]) is None
    if opens_array or _is_array_of_objects(text):
        return _plan_array(file, chunk_bytes, sample[skip:])
    if _holds_one_object(text, len(sample) == SAMPLE_BYTES):
        raise BadFile(
            file.name,
            "holds one object or several written over many lines; expected one record a line, or an array of records.",
            1,
        )
    lines = text.split(b"\n")[: SAMPLE_RECORDS + 1]
    records = [_parsed(line) for line in (lines[:-1] if len(lines) > 1 else lines)]
    columns = _union(records)
    if not any(isinstance(record, dict) for record in records):
        raise BadFile(file.name, f"none of its first records is a JSON object: {_why_not(lines[0])}", 1)
    if file.compression:
        return FilePlan(file, (Chunk(file, "jsonl"),), columns)
    ends = [*range(skip + chunk_bytes, file.size, chunk_bytes), file.size]
    starts = [skip, *ends[:-1]]
    return FilePlan(file, tuple(Chunk(file, "jsonl", s, e) for s, e in zip(starts, ends, strict=True)), columns)


def _is_array_of_objects(text: bytes) -> bool:
    """An array that stands whole on the first line: `[{...}, {...}]`."""
    record = _parsed(text.split(b"\n", 1)[0])
    return isinstance(record, list) and (not record or isinstance(record[0], dict))


def _holds_one_object(text: bytes, cut: bool) -> bool:
    """Whether the first line is only the beginning of an object."""
    first = text.split(b"\n", 1)[0]
    if not first.startswith(b"{") or _parsed(first) is not None:
        return False
    return first.strip() == b"{" or (not cut and _parsed(text) is not None)


def _plan_array(file: SourceFile, chunk_bytes: int, sample: bytes) -> FilePlan:
    texts, _ = next(split_elements([sample], depth=0))
    columns = _union([_parsed(text) for text in texts[:SAMPLE_RECORDS]])
    if len(texts) == 1 and not texts[0].strip():
        return FilePlan(file, (), ())
    if file.compression:
        return FilePlan(file, (Chunk(file, "json"),), columns)
    scanner, cuts, target = ArrayScanner(), [], 0
    for block in read_blocks(file):
        commas = scanner.feed(block)
        target = max(target, (scanner.opened_at or 0) + chunk_bytes)
        while len(commas) and commas[-1] >= target:
            cuts.append(int(commas[commas.searchsorted(target)]))
            target = cuts[-1] + chunk_bytes
    closed = scanner.closed_at
    if closed is not None and b"".join(read_blocks(file, closed + 1, closed + 1 + SAMPLE_BYTES)).strip():
        raise BadFile(file.name, "text after the end of the array; expected one array.", line_of(file, closed))
    starts = [(scanner.opened_at or 0) + 1, *(cut + 1 for cut in cuts)]
    ends = [*cuts, -1 if closed is None else closed]
    return FilePlan(file, tuple(Chunk(file, "json", s, e) for s, e in zip(starts, ends, strict=True)), columns)


def _parsed(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        # Python's own writer leaves NaN and lone surrogates in files, which orjson refuses.
        return json.loads(text.decode("utf-8", "replace"))
    except ValueError:
        return None


def _why_not(text: bytes) -> str:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        return _one_line(error)
    return f"it is a {type(value).__name__}"


def _union(records: Sequence[Any]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(key for record in records if isinstance(record, dict) for key in record))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__

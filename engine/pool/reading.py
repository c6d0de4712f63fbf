"""Reading a chunk: batches of unparsed text, of records, or of Arrow tables, each with the positions of its records.

A position counts records (lines, for JSON lines) from 0 within the chunk; whoever knows how many the chunks before it
held turns it into a place in the file.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysift.pool.csv_text import csv_rows
from raysift.pool.files import (
    BLOCK_BYTES,
    MAX_RECORD_BYTES,
    BadFile,
    Chunk,
    line_of,
    one_line,
    open_stream,
    read_blocks,
)
from raysift.pool.foreign_arrow import BrokenArrow, arrow_batches
from raysift.pool.json_arrays import BrokenArray, split_elements

BATCH_ROWS = 8192
BATCH_BYTES = 8 * 2**20
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Problem:
    """A record that is not a row, and why; `reason` is a key of raysift.pool.checks.REASONS."""

    position: int
    reason: str
    message: str
    raw: str | None = None


@dataclass(frozen=True)
class TextBatch:
    """Records as text. `ends` are offsets in the file, given where a record that does not parse spoils the file."""

    texts: list[bytes]
    positions: list[int]
    seen: int
    """Positions used up by the chunk so far, this batch included."""
    ends: list[int] | None = None
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True)
class RecordsBatch:
    """Records of a CSV file."""

    records: list[dict[str, Any]]
    positions: list[int]
    seen: int
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True)
class TableBatch:
    """Records as columns."""

    table: pa.Table
    first: int
    seen: int


ChunkBatch = TextBatch | RecordsBatch | TableBatch


def read_chunk(chunk: Chunk) -> Iterator[ChunkBatch]:
    """The records of a chunk; raises BadFile where the file cannot be read on."""
    try:
        yield from READERS[chunk.kind](chunk)
    except BrokenArray as error:
        before = 0 if chunk.file.compression else chunk.start
        raise BadFile(chunk.file.name, error.reason, line_of(chunk.file, before + error.offset)) from None
    except UNREADABLE as error:
        raise BadFile(chunk.file.name, f"cannot be read on as {chunk.kind}: {one_line(error)}") from None


def _read_lines(chunk: Chunk) -> Iterator[TextBatch]:
    texts: list[bytes] = []
    positions: list[int] = []
    problems: list[Problem] = []
    held = line = 0
    for lines in _lines(chunk):
        for text in lines:
            if text is None:
                problems.append(_too_large(line))
            elif (text := _without_bom(text)) and not text.isspace():
                texts.append(text)
                positions.append(line)
                held += len(text)
            line += 1
            if len(texts) >= BATCH_ROWS or held >= BATCH_BYTES:
                yield TextBatch(texts, positions, line, problems=problems)
                texts, positions, problems, held = [], [], [], 0
    yield TextBatch(texts, positions, line, problems=problems)


def _without_bom(text: bytes) -> bytes:
    """Files that were put together of others may have a byte order mark at any of their lines."""
    while text.startswith(BOM):
        text = text[len(BOM) :]
    return text


def _too_large(position: int) -> Problem:
    return Problem(position, "record_too_large", f"the record is longer than {MAX_RECORD_BYTES // 2**20} MiB")


def _lines(chunk: Chunk) -> Iterator[list[bytes | None]]:
    """The lines that start within the chunk; None stands for one that is too long to be held."""
    file, start, end = chunk.file, chunk.start, chunk.end
    compressed = file.compression is not None
    at_line_start = start == 0 or compressed
    position = start if at_line_start else start - 1
    skipping = not at_line_start  # the first line began in the chunk before
    too_long = False
    carry = b""
    for block in read_blocks(file, position):
        line_start = position - len(carry)
        position += len(block)
        data = carry + block
        if skipping or too_long:
            cut = data.find(b"\n")
            if cut < 0:
                carry = b""
                continue
            if too_long:
                yield [None]
            data, line_start, skipping, too_long = data[cut + 1 :], line_start + cut + 1, False, False
        if 0 <= end <= line_start:
            return
        if 0 <= end < position:
            # The last line of this chunk is the one that covers the byte before `end`.
            cut = data.find(b"\n", end - 1 - line_start)
            if cut >= 0:
                yield list(data[:cut].split(b"\n"))
                return
        *whole, carry = data.split(b"\n")
        if len(carry) > MAX_RECORD_BYTES:
            too_long, carry = True, b""
        if whole:
            yield list(whole)
    if too_long:
        yield [None]
    elif carry:
        yield [carry]


def _read_array(chunk: Chunk) -> Iterator[TextBatch]:
    compressed = chunk.file.compression is not None
    blocks = read_blocks(chunk.file) if compressed else read_blocks(chunk.file, chunk.start, chunk.end)
    texts: list[bytes] = []
    positions: list[int] = []
    ends: list[int] = []
    problems: list[Problem] = []
    held = seen = 0
    elements = split_elements(blocks, 0 if compressed else 1, closed=chunk.end >= 0, most=MAX_RECORD_BYTES)
    broken: BrokenArray | None = None
    while True:
        try:
            pieces, stops = next(elements)
        except StopIteration:
            break
        except BrokenArray as error:
            broken = error
            break
        for piece, stop in zip(pieces, stops, strict=True):
            if piece is None:
                problems.append(_too_large(seen))
            else:
                texts.append(piece.strip())
                positions.append(seen)
                ends.append(stop + (0 if compressed else chunk.start))
                held += len(piece)
            seen += 1
            if len(texts) >= BATCH_ROWS or held >= BATCH_BYTES:
                yield TextBatch(texts, positions, seen, ends, problems)
                texts, positions, ends, problems, held = [], [], [], [], 0
    yield TextBatch(texts, positions, seen, ends, problems)
    if broken:  # after the elements before it, of which one may be what is wrong
        raise broken


def _read_csv(chunk: Chunk) -> Iterator[RecordsBatch]:
    with open_stream(chunk.file) as stream:
        rows = csv_rows(stream, chunk.file, MAX_RECORD_BYTES)
        header = next(rows, [])
        records: list[dict[str, Any]] = []
        positions: list[int] = []
        problems: list[Problem] = []
        held = seen = 0
        for row in rows:
            if row:
                joined = "".join(row)
                held += len(joined)
                if len(row) != len(header):
                    message = f"{len(row)} cells in a file of {len(header)} columns"
                    problems.append(Problem(seen, "wrong_type", message, _shown(joined)))
                elif not joined.isascii() and _has_surrogates(joined):
                    problems.append(Problem(seen, "broken_utf8", "the row is not valid UTF-8", _shown(joined)))
                else:
                    records.append(dict(zip(header, row, strict=True)))
                    positions.append(seen)
                seen += 1
            if len(records) >= BATCH_ROWS or held >= BATCH_BYTES:
                yield RecordsBatch(records, positions, seen, problems)
                records, positions, problems, held = [], [], [], 0
        yield RecordsBatch(records, positions, seen, problems)


def _has_surrogates(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _shown(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _read_parquet(chunk: Chunk) -> Iterator[TableBatch]:
    with chunk.file.location.open_input() as stream:
        # Without the buffer a whole column chunk is held, and a file of one row group would be held entirely.
        reader = pq.ParquetFile(stream, buffer_size=BLOCK_BYTES, pre_buffer=False)
        groups = list(range(chunk.start, chunk.end))
        rows = sum(reader.metadata.row_group(group).num_rows for group in groups)
        size = sum(reader.metadata.row_group(group).total_byte_size for group in groups)
        batch_rows = max(16, min(BATCH_ROWS, BATCH_BYTES * 2 * rows // max(size, 1)))
        seen = 0
        for batch in reader.iter_batches(batch_size=batch_rows, row_groups=groups, use_threads=False):
            seen += batch.num_rows
            yield TableBatch(pa.Table.from_batches([batch]), seen - batch.num_rows, seen)


def _read_arrow(chunk: Chunk) -> Iterator[TableBatch]:
    seen = 0
    for batch in arrow_batches(chunk.file.location, chunk.start, chunk.end):
        for start in range(0, batch.num_rows, BATCH_ROWS):
            part = pa.Table.from_batches([batch.slice(start, BATCH_ROWS)])
            seen += part.num_rows
            yield TableBatch(part, seen - part.num_rows, seen)


UNREADABLE = (pa.ArrowException, BrokenArrow, OSError, EOFError, zlib.error)
"""What the libraries raise for files that are broken, or cannot be opened."""

READERS: dict[str, Callable[[Chunk], Iterator[ChunkBatch]]] = {
    "jsonl": _read_lines,
    "json": _read_array,
    "csv": _read_csv,
    "parquet": _read_parquet,
    "arrow": _read_arrow,
    "arrow_stream": _read_arrow,
}

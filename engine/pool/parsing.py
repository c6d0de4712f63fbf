"""From batches to records, each with its position; what cannot be read as a record comes as its problem.

Rows, pairs and examples all come this way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import orjson

from raysift.pool.files import BadFile, Chunk, SourceFile, line_of, read_blocks
from raysift.pool.formats.problem import RecordProblem, kind_of
from raysift.pool.json_text import MAX_LEVELS, levels_of
from raysift.pool.reading import ChunkBatch, Problem, RecordsBatch, TableBatch, TextBatch, read_chunk

Record = dict[str, Any]

DEEP = RecordProblem("too_deep", f"the record nests deeper than {MAX_LEVELS} levels")


def renamed(record: Record, field_of: Mapping[str, str]) -> Record:
    """The record with each column under its field's name. A column that has a renamed one's new name is left out."""
    fields = set(field_of.values())
    return {field_of.get(key, key): value for key, value in record.items() if key in field_of or key not in fields}


def first_records(chunk: Chunk, count: int) -> list[Record | RecordProblem]:
    """The first records of a chunk of text, to see what they are."""
    found: list[Record | RecordProblem] = []
    for batch in read_chunk(chunk):
        if isinstance(batch, TextBatch):
            few, ends = slice(count - len(found)), batch.ends
            head = replace(batch, texts=batch.texts[few], positions=batch.positions[few], ends=ends and ends[few])
            found += [record for _, record in records_of(head, chunk.file)]
        if len(found) >= count:
            break
    return found[:count]


def records_of(batch: ChunkBatch, file: SourceFile) -> Iterator[tuple[int, Record | RecordProblem]]:
    """The records of a batch one by one with their positions; what cannot be read comes as its problem."""
    problems: list[Problem] = []
    if isinstance(batch, TableBatch):
        records, positions = table_records(batch, problems)
    elif isinstance(batch, RecordsBatch):
        problems += batch.problems
        records, positions = batch.records, batch.positions
    else:
        problems += batch.problems
        records, _, positions = parse_batch(batch, file, problems)
    yield from zip(positions, records, strict=True)
    for problem in problems:
        yield problem.position, RecordProblem(problem.reason, problem.message)


def parse_batch(
    batch: TextBatch, file: SourceFile, problems: list[Problem]
) -> tuple[list[Record], list[bytes], list[int]]:
    """The records of a batch, their texts and positions; raises BadFile where a broken one spoils the whole file."""
    loads = orjson.loads
    try:
        records = [loads(text) for text in batch.texts]
        if all(type(record) is dict for record in records) and not any(map(_may_be_deep, batch.texts)):
            return records, batch.texts, batch.positions
    except orjson.JSONDecodeError:
        pass
    records, texts, positions = [], [], []
    for number, (text, position) in enumerate(zip(batch.texts, batch.positions, strict=True)):
        record = _record_or_problem(text)
        if isinstance(record, RecordProblem):
            if batch.ends is not None and record.reason == "not_json":
                raise _bad_element(file, text, batch.ends[number], record)
            problems.append(Problem(position, record.reason, record.message, text.decode("utf-8", "replace")))
            continue
        records.append(record)
        texts.append(text)
        positions.append(position)
    return records, texts, positions


def table_records(batch: TableBatch, problems: list[Problem]) -> tuple[list[Record], list[int]]:
    """Rows of a table as records; a row with a value that Python cannot hold becomes a problem of its own."""
    positions = list(range(batch.first, batch.first + batch.table.num_rows))
    try:
        return batch.table.to_pylist(), positions
    except Exception:  # of as many kinds as there are types: dates past the year 9999, unknown time zones, broken text
        records, good = [], []
        for row, position in enumerate(positions):
            try:
                records += batch.table.slice(row, 1).to_pylist()
                good.append(position)
            except UnicodeDecodeError:
                problems.append(Problem(position, "broken_utf8", "a text of the row is not valid UTF-8"))
            except Exception as error:
                message = f"a value of the row cannot be read ({type(error).__name__})"
                problems.append(Problem(position, "wrong_type", message))
        return records, good


def parse_record(text: bytes) -> Record:
    """The object that a text holds; what Python's own writer leaves in files (NaN) is read too."""
    try:
        record = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        record = _parse_leniently(text, error)
    if not isinstance(record, dict):
        raise RecordProblem("wrong_type", f"the record is {kind_of(record)}, expected an object")
    if _may_be_deep(text) and levels_of(record) > MAX_LEVELS:
        raise DEEP
    return record


def _record_or_problem(text: bytes) -> Record | RecordProblem:
    try:
        return parse_record(text)
    except RecordProblem as problem:
        return problem


def _may_be_deep(text: bytes) -> bool:
    return len(text) > 2 * MAX_LEVELS and text.count(b"[") + text.count(b"{") > MAX_LEVELS


def _parse_leniently(text: bytes, error: orjson.JSONDecodeError) -> Any:
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError as broken:
        message = f"byte {broken.start + 1} of the record is not valid UTF-8"
        raise RecordProblem("broken_utf8", message) from None
    try:
        record = json.loads(decoded)
    except json.JSONDecodeError:
        where = f"line {error.lineno}, column {error.colno} of the record"
        raise RecordProblem("not_json", f"{error.msg} at {where}") from None
    except RecursionError:
        raise DEEP from None
    except ValueError:  # Python converts no more digits than that
        raise RecordProblem("wrong_type", "the record holds a whole number of more than 4,300 digits") from None
    if _may_be_deep(text) and levels_of(record) > MAX_LEVELS:
        raise DEEP
    try:
        json.dumps(record, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise RecordProblem("broken_utf8", "half of a surrogate pair in an escape sequence") from None
    return record


def _bad_element(file: SourceFile, text: bytes, end: int, problem: RecordProblem) -> BadFile:
    if not text:
        where, reason = end, "a comma too many: an element of the array is missing here"
    else:
        error = _json_error(text)
        inside = len(text[: error.pos].decode("utf-8", "replace").encode()) if error else 0
        # Blanks around the element were cut off; the error is found by looking for its text before `end`.
        where, reason = _start_of(file, text, end) + inside, problem.message
    return BadFile(file.name, reason, line_of(file, where))


def _json_error(text: bytes) -> json.JSONDecodeError | None:
    try:
        json.loads(text.decode("utf-8", "replace"))
    except json.JSONDecodeError as error:
        return error
    return None


def _start_of(file: SourceFile, text: bytes, end: int) -> int:
    """Offset of an element's first character, given the offset at which the element and its blanks end."""
    if file.compression:
        return end - len(text)
    window = max(0, end - len(text) - 65536)
    found = b"".join(read_blocks(file, window, end)).rfind(text)
    return window + found if found >= 0 else end - len(text)

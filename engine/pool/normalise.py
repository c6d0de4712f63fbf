"""From batches of records, in any layout, to rows: messages with canonical roles, ids, source, meta, raw.

Two ways lead there. Parquet and Arrow columns of plain messages stay columns throughout; all else is parsed record by
record into lists, which become columns once a batch. Both end in the same checks, on columns.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raysift.pool.checks import IngestConfig, find_reasons, trim_trailing
from raysift.pool.files import SourceFile
from raysift.pool.formats.layout import Layout, carried_of
from raysift.pool.formats.problem import RecordProblem
from raysift.pool.formats.turns import Turns
from raysift.pool.given_input import INPUT
from raysift.pool.id_text import id_text
from raysift.pool.json_text import dump, dump_rows, original_text
from raysift.pool.parsing import parse_batch, renamed, table_records
from raysift.pool.reading import ChunkBatch, Problem, RecordsBatch, TableBatch
from raysift.pool.row_ids import canonical_role, row_id, row_ids
from raysift.records import ID, MESSAGE, MESSAGES, META, RAW, ROLES, ROWS, SOURCE, TOOLS, Message

POSITION = "position"
PLACED_ROWS = ROWS.append(pa.field(POSITION, pa.int64(), nullable=False))


@dataclass(frozen=True)
class Normalised:
    """A batch in which each record is either among the rows or among the problems (`id` known for rejected rows)."""

    rows: pa.Table  # PLACED_ROWS
    problems: list[Problem]
    problem_ids: list[int | None]
    problem_sources: list[str]
    trimmed: int


@dataclass(frozen=True)
class _Columns:
    """Conversations before the checks: conversation i holds the messages offsets[i] to offsets[i + 1]."""

    roles: pa.Array
    contents: pa.Array
    offsets: npt.NDArray[np.int64]
    source: pa.Array
    meta: pa.Array
    raw: pa.Array
    positions: npt.NDArray[np.int64]


class Normaliser:
    """Knows a file's layout and the settings; called with each batch of it."""

    def __init__(self, file: SourceFile, layout: Layout, config: IngestConfig) -> None:
        self.file, self.layout, self.config = file, layout, config
        self._field_of = {column: field for field, column in config.columns.items()}
        self._source_column = config.source or SOURCE
        self._source_name = config.source or file.stem

    def __call__(self, batch: ChunkBatch) -> Normalised:
        # Records are trees: there is nothing to find for the cycle collector, which takes a third of the time to look.
        collecting = gc.isenabled()
        gc.disable()
        try:
            return self._normalise(batch)
        finally:
            if collecting:
                gc.enable()

    def _normalise(self, batch: ChunkBatch) -> Normalised:
        problems: list[Problem] = []
        if isinstance(batch, TableBatch):
            try:
                columns = self._from_plain_messages(batch)
            except (pa.ArrowException, ValueError, OverflowError, KeyError):
                columns = None  # some value is of no use as a column; row by row the others are
            if columns is None:
                records, positions = table_records(batch, problems)
                columns = self._from_records(records, None, positions, problems)
        elif isinstance(batch, RecordsBatch):
            problems += batch.problems
            columns = self._from_records(batch.records, None, batch.positions, problems)
        else:
            problems += batch.problems
            records, texts, positions = parse_batch(batch, self.file, problems)
            columns = self._from_records(records, texts, positions, problems)
        return self._check(columns, problems)

    def _from_records(
        self,
        records: list[dict[str, Any]],
        texts: list[bytes] | None,
        positions: list[int],
        problems: list[Problem],
    ) -> _Columns:
        roles: list[str] = []
        contents: list[str] = []
        ends = [0]
        sources: list[str] = []
        metas: list[bytes | None] = []
        raws: list[bytes | None] = []
        placed: list[int] = []
        inputs = self.layout.inputs
        read, own, keep_raw = self.layout.read, self.layout.fields | {self._source_column}, self.config.keep_raw
        for number, record in enumerate(records):
            if self._field_of:
                record = renamed(record, self._field_of)
            try:
                conversations = read(record)
            except RecordProblem as problem:
                raw = texts[number].decode("utf-8", "replace") if texts else dump(record).decode()
                problems.append(Problem(positions[number], problem.reason, problem.message, raw))
                continue
            source = self._source_of(record)
            is_row = META in record and _is_row(record, conversations[0])
            carried = carried_of(record, own | _own_columns(record) if is_row else own)
            meta = dump(carried) if carried else None
            given = inputs(record) if inputs else ()
            if is_row and RAW in record:
                raw_text = record[RAW].encode() if keep_raw and record[RAW] else None
            else:
                raw_text = (texts[number] if texts else dump(records[number])) if keep_raw else None
            for number_here, turns in enumerate(conversations):
                for role, content in turns:
                    roles.append(role)
                    contents.append(content)
                ends.append(len(roles))
                sources.append(source)
                known = given[number_here] if given else None
                metas.append(dump({INPUT: known} | carried | {INPUT: known}) if known else meta)  # it comes first
                raws.append(raw_text)
                placed.append(positions[number])
        return _Columns(
            pa.array(roles, pa.string()),
            pa.array(contents, pa.string()),
            np.asarray(ends, np.int64),
            pa.array(sources, pa.string()),
            pa.array(metas, pa.binary()).view(pa.string()),
            pa.array(raws, pa.binary()).view(pa.string()),
            np.asarray(placed, np.int64),
        )

    def _from_plain_messages(self, batch: TableBatch) -> _Columns | None:
        """The columnar way, for a column of lists of {role, content}; None where any value needs a closer look."""
        table = batch.table
        if self._field_of:
            gone = set(self._field_of.values()) - self._field_of.keys()
            table = table.drop_columns([name for name in table.column_names if name in gone])
            table = table.rename_columns([self._field_of.get(name, name) for name in table.column_names])
        fields = [name for name in ("messages", "conversations") if name in table.column_names]
        closer = not {"system", META}.isdisjoint(table.column_names)
        if self.layout.name not in ("messages", "sharegpt") or len(fields) != 1 or closer:
            return None
        lists = pc.cast(table[fields[0]], pa.large_list(table[fields[0]].type.value_type)) if _is_list(
            table[fields[0]].type
        ) else None  # fmt: skip
        if lists is None or lists.null_count or not _is_plain(lists.type.value_type):
            return None
        lists = lists.combine_chunks()
        flat = lists.flatten()
        names = [field.name for field in flat.type]
        role_at = names.index("role") if "role" in names else names.index("from")
        roles, contents = (pc.struct_field(flat, [at]) for at in (role_at, 1 - role_at))
        if roles.null_count or contents.null_count or not _is_utf8(table, roles, contents):
            return None
        lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
        rest = table.drop_columns(fields[0])
        source = self._source_of_table(rest)
        if self._source_column in rest.column_names:
            rest = rest.drop_columns(self._source_column)
        return _Columns(
            pc.cast(roles, pa.string()),
            pc.cast(contents, pa.string()),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            source,
            dump_rows(rest),
            pa.nulls(table.num_rows, pa.string()),
            np.arange(batch.first, batch.first + table.num_rows),
        )

    def _source_of(self, record: dict[str, Any]) -> str:
        value = record.get(self._source_column)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, str) and value:
            return value
        return self._source_name if value is None or isinstance(value, str | dict | list) else str(value)

    def _source_of_table(self, table: pa.Table) -> pa.Array:
        name = pa.scalar(self._source_name, pa.string())
        if self._source_column not in table.column_names:
            return pa.repeat(name, table.num_rows)
        column = table[self._source_column].combine_chunks()
        if pa.types.is_nested(column.type):
            return pa.repeat(name, table.num_rows)
        column = pc.cast(column, pa.string())
        return pc.if_else(pc.or_kleene(pc.is_null(column), pc.equal(column, "")), name, column)

    def _check(self, columns: _Columns, problems: list[Problem]) -> Normalised:
        codes, roles = _canonical(columns.roles)
        contents, offsets, trimmed = columns.contents, columns.offsets, 0
        if self.config.trailing_user == "trim":
            keep, new_offsets = trim_trailing(codes, offsets)
            trimmed = int((np.diff(new_offsets) != np.diff(offsets)).sum())
            if trimmed:
                mask = pa.array(keep)
                codes, roles, contents, offsets = codes[keep], roles.filter(mask), contents.filter(mask), new_offsets
        reasons = find_reasons(codes, contents, offsets, self.config)
        rows = pa.table(
            {
                ID: row_ids(roles, contents, offsets),
                SOURCE: columns.source,
                MESSAGES: pa.ListArray.from_arrays(
                    pa.array(offsets, pa.int32()), pa.StructArray.from_arrays([roles, contents], fields=list(MESSAGE))
                ),
                META: columns.meta,
                RAW: columns.raw,
                POSITION: columns.positions,
            },
            schema=PLACED_ROWS,
        )
        against = np.flatnonzero(reasons != None)  # noqa: E711 (elementwise)
        ids: list[int | None] = [None] * len(problems)
        sources = [self._source_name] * len(problems)
        if len(against):
            for row, reason in zip(rows.take(pa.array(against)).to_pylist(), reasons[against], strict=True):
                raw = row[RAW] if row[RAW] is not None else original_text(row)
                problems.append(Problem(row[POSITION], reason, "", raw))
                ids.append(row[ID])
                sources.append(row[SOURCE])
            rows = rows.filter(pa.array(reasons == None))  # noqa: E711
        return Normalised(rows, problems, ids, sources, trimmed)


def _is_row(record: dict[str, Any], turns: Turns) -> bool:
    """Whether the record is a row as an export wrote it, told by the id of its conversation: that, and its raw, are no meta."""
    if not isinstance(record.get(ID), int | str) or not isinstance(record.get(RAW), str | None):
        return False
    found = row_id(Message(canonical_role(role) or role, content) for role, content in turns)
    return str(record[ID]) in (id_text(found), str(found))  # earlier versions wrote decimal numbers


def _own_columns(row: dict[str, Any]) -> set[str]:
    """The columns of an exported row that say what it holds elsewhere: its tools are those of its meta."""
    repeats = row.get(TOOLS) is None or f'"{TOOLS}"' in str(row[META])
    return {ID, RAW, TOOLS} if repeats else {ID, RAW}


def _canonical(roles: pa.Array) -> tuple[npt.NDArray[np.int8], pa.Array]:
    """Positions in ROLES (-1: unknown) and canonical names; an unknown name stays as it is."""
    if isinstance(roles, pa.ChunkedArray):
        roles = roles.combine_chunks()
    encoded = roles.dictionary_encode()
    names = encoded.dictionary.to_pylist()
    canonical = [canonical_role(name) for name in names]
    codes = np.array([ROLES.index(name) if name else -1 for name in canonical] or [-1], np.int8)
    spelt = pa.array([new or old for new, old in zip(canonical, names, strict=True)], pa.string())
    return codes[encoded.indices.to_numpy(zero_copy_only=False)], spelt.take(encoded.indices)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _is_plain(kind: pa.DataType) -> bool:
    """A struct of exactly role and content, both text."""
    if not pa.types.is_struct(kind) or kind.num_fields != 2:
        return False
    names = {field.name for field in kind}
    text = all(pa.types.is_string(field.type) or pa.types.is_large_string(field.type) for field in kind)
    return text and names in ({"role", "content"}, {"from", "value"})


def _is_utf8(table: pa.Table, *arrays: pa.Array) -> bool:
    """Readers of Parquet do not look whether text is UTF-8."""
    try:
        for array in arrays:
            array.validate(full=True)
        for column in table.columns:
            if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
                column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True

"""Tables of embeddings keyed by row id: written sorted by id, read into one float32 matrix per shard.

    id int64 | embedding fixed_size_list<float32>[d] (reads lists of any float type) | error string, optional

A row with an error has no vector: it is skipped and counted. Any other fault of a vector (missing, of a different length,
NaN) is refused with the ids concerned. Reading needs memory for the matrix and one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from raysift.errors import DataError
from raysift.kcenter.distances import Vectors
from raysift.records import ERROR, ID
from raysift.scoring.columns import EMBEDDING
from raysift.storage import Location
from raysift.topk import Ids

BATCH_ROWS = 8192

Keep = Callable[[Ids], NDArray[np.bool_]]
"""Returns, for each of some ids, whether it is wanted."""


@dataclass(frozen=True)
class RowGroup:
    """A row group of a file: the unit in which rows are assigned to shards."""

    place: Location
    number: int
    rows: int
    """Rows with a vector."""


@dataclass(frozen=True)
class EmbeddingTable:
    """A summary of some files' content, as `survey` gives it without reading the vectors."""

    pieces: tuple[RowGroup, ...]
    dimension: int
    ids: Ids
    """Ids of the rows with a vector, in rising order."""
    failed: int

    @property
    def bytes(self) -> int:
        return len(self.ids) * self.dimension * 4


def survey(files: Sequence[Location], column: str = EMBEDDING) -> EmbeddingTable:
    """Ids, failed rows and dimension over all files; reads ids and errors, and vectors only if the type lacks a length."""
    pieces: list[RowGroup] = []
    ids: list[Ids] = [np.empty(0, np.int64)]
    sizes: dict[int, Location] = {}
    failed = 0
    for place in files:
        with pq.ParquetFile(place.path, filesystem=place.fs) as file:
            _check_columns(place, file.schema_arrow, column)
            for number in range(file.num_row_groups):
                table = file.read_row_group(number, [ID, *_error_column(file.schema_arrow)], use_threads=False)
                sound = _sound(table)
                failed += len(table) - len(sound)
                if len(sound):
                    pieces.append(RowGroup(place, number, len(sound)))
                    ids.append(_ids_of(sound, place))
            if any(piece.place is place for piece in pieces):
                sizes.setdefault(_dimension(place, file, column), place)
    if not pieces:
        raise DataError(f"embeddings: none of the {failed} rows in {len(files)} files has a vector.")
    if len(sizes) > 1:
        (one, there), (other, here) = list(sizes.items())[:2]
        raise DataError(
            f"embeddings: vectors of {one} numbers in {there} and of {other} in {here}. They come of different encoders; "
            "embed all rows with one."
        )
    every = np.sort(np.concatenate(ids))
    twice = every[1:][np.diff(every) == 0]
    if len(twice):
        raise DataError(
            f"embeddings: {len(twice)} ids occur more than once ({twice[:5].tolist()} ...); keep one row of each."
        )
    return EmbeddingTable(tuple(pieces), next(iter(sizes)), every, failed)


def read_embeddings(
    pieces: Sequence[RowGroup], dimension: int, keep: Keep | None = None, column: str = EMBEDDING
) -> tuple[Ids, Vectors]:
    """Ids and vectors of the pieces, in stored order; with `keep`, only those of the wanted ids."""
    count = sum(int(keep(ids).sum()) for ids in _read_ids(pieces)) if keep else sum(piece.rows for piece in pieces)
    all_ids, vectors, done = np.empty(count, np.int64), np.empty((count, dimension), np.float32), 0
    for ids, numbers in embedding_batches(pieces, dimension, keep, column):
        end = done + len(ids)
        all_ids[done:end], vectors[done:end] = ids, numbers
        done = end
    if done != count:
        raise DataError(f"embeddings: {done} rows read where {count} had been counted; the files are being changed.")
    return all_ids, vectors


def embedding_batches(
    pieces: Sequence[RowGroup], dimension: int, keep: Keep | None = None, column: str = EMBEDDING
) -> Iterator[tuple[Ids, Vectors]]:
    """The same batch by batch, a bounded number of rows at a time."""
    for piece in pieces:
        for table in _batches(piece, column):
            ids = _ids_of(table, piece.place)
            if keep:
                wanted = keep(ids)
                table, ids = table.filter(pa.array(wanted)), ids[wanted]
            if len(ids):
                yield ids, _numbers(table[column], ids, dimension, piece.place)


def find_vectors(files: Sequence[Location], ids: ArrayLike, column: str = EMBEDDING) -> tuple[Ids, Vectors]:
    """The vectors of these ids, in their order; raises if any id has none."""
    wanted, table = np.asarray(ids, np.int64), survey(files, column)
    found, vectors = read_embeddings(table.pieces, table.dimension, lambda some: np.isin(some, wanted), column)
    order = np.argsort(found)
    place = np.minimum(np.searchsorted(found, wanted, sorter=order), max(0, len(found) - 1))
    rows = order[place] if len(found) else np.empty(0, np.int64)
    missing = wanted if not len(found) else wanted[found[rows] != wanted]
    if len(missing):
        raise DataError(
            f"embeddings: {len(missing)} of {len(wanted)} rows have no vector (ids {missing[:5].tolist()} ...)."
        )
    return wanted, vectors[rows]


def deal(pieces: Sequence[RowGroup], shards: int) -> list[list[RowGroup]]:
    """Split the pieces, in order, into `shards` runs of about equally many rows; runs may be empty."""
    middles = np.cumsum([piece.rows for piece in pieces]) - np.array([piece.rows for piece in pieces]) / 2
    total = sum(piece.rows for piece in pieces)
    number = np.minimum((middles * shards / max(1, total)).astype(int), shards - 1)
    return [[piece for piece, own in zip(pieces, number, strict=True) if own == shard] for shard in range(shards)]


def _read_ids(pieces: Sequence[RowGroup]) -> Iterator[Ids]:
    for piece in pieces:
        with pq.ParquetFile(piece.place.path, filesystem=piece.place.fs) as file:
            table = file.read_row_group(piece.number, [ID, *_error_column(file.schema_arrow)], use_threads=False)
            yield _ids_of(_sound(table), piece.place)


def _batches(piece: RowGroup, column: str) -> Iterator[pa.Table]:
    with pq.ParquetFile(piece.place.path, filesystem=piece.place.fs) as file:
        names = [ID, column, *_error_column(file.schema_arrow)]
        for batch in file.iter_batches(BATCH_ROWS, row_groups=[piece.number], columns=names, use_threads=False):
            table = _sound(pa.Table.from_batches([batch]))
            if len(table):
                yield table


def _error_column(schema: pa.Schema) -> list[str]:
    return [ERROR] if ERROR in schema.names else []


def _sound(table: pa.Table) -> pa.Table:
    return table.filter(pc.is_null(table[ERROR])) if ERROR in table.column_names else table


def _ids_of(table: pa.Table, place: Location) -> Ids:
    if table[ID].null_count:
        raise DataError(f"embeddings: {place}: {table[ID].null_count} rows have no id.")
    return np.asarray(table[ID].to_numpy(), np.int64)


def _check_columns(place: Location, schema: pa.Schema, column: str) -> None:
    missing = [name for name in (ID, column) if name not in schema.names]
    if missing:
        raise DataError(f"embeddings: {place} lacks the columns {missing} (found: {schema.names}).")
    kind = schema.field(column).type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not (lists and pa.types.is_floating(kind.value_type)):
        raise DataError(f"embeddings: {place}: column '{column}' is {kind}, expected lists of float32.")
    if not pa.types.is_integer(schema.field(ID).type):
        raise DataError(f"embeddings: {place}: column '{ID}' is {schema.field(ID).type}, expected int64.")


def _dimension(place: Location, file: pq.ParquetFile, column: str) -> int:
    """Numbers per vector, from the type or else from the first row with a vector."""
    kind = file.schema_arrow.field(column).type
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    for batch in file.iter_batches(256, columns=[column], use_threads=False):
        lengths = pc.drop_null(pc.list_value_length(batch[column]))
        if len(lengths):
            return int(lengths[0].as_py())
    raise DataError(f"embeddings: {place}: no row has a vector, and some have no error either.")


def _numbers(column: pa.ChunkedArray, ids: Ids, dimension: int, place: Location) -> Vectors:
    """The vectors of a batch as a matrix."""
    cells = column.combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(cells), -1).to_numpy(zero_copy_only=False)
    if (lengths != dimension).any():
        bad = ids[lengths != dimension]
        raise DataError(
            f"embeddings: {place}: {len(bad)} rows have no vector of {dimension} numbers and no error either "
            f"(ids {bad[:5].tolist()} ...)."
        )
    numbers = np.asarray(cells.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(len(ids), dimension)
    wrong = ~np.isfinite(numbers).all(axis=1)
    if wrong.any():
        raise DataError(
            f"embeddings: {place}: {int(wrong.sum())} vectors hold NaN, infinity or gaps (ids {ids[wrong][:5].tolist()} ...). "
            "Set these rows aside with a reason."
        )
    return numbers

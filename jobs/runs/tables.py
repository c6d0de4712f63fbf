"""Reads and checks the tables that stages write: always by id, never by position, a bounded number of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysift.actors.contract import RowActor
from raysift.errors import StageError
from raysift.records import ERROR, ID, META, SCORE, TOKENS
from raysift.storage import COPIED_BYTES, Location, in_parallel

CHUNK_ROWS = 100_000
AHEAD_BYTES = 4 * 2**20  # of the columns of a file that is read before it is due
WHOLE_BYTES = 2**20  # of a file on a store that is read whole: to send more bytes takes less time than to ask again
UNKNOWN = -1  # tokens of a row without a length


def read_chunks(files: Sequence[Location], columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield these columns of many Parquet files, a bounded number of rows at a time, in the given order of files.

    Many files are opened at once. Of small ones this reads ahead; a larger one is read when it is due.
    """
    wanted = list(dict.fromkeys(columns))
    opened = in_parallel(lambda place: _opened(place, wanted), files)
    for place, (file, batches) in zip(files, opened, strict=True):
        with file:
            due = file.iter_batches(CHUNK_ROWS, columns=wanted) if batches is None else iter(batches)
            while True:
                with place.named():
                    batch = next(due, None)
                if batch is None:
                    break
                if len(batch):
                    yield pa.Table.from_batches([batch])


def _opened(place: Location, columns: list[str]) -> tuple[pq.ParquetFile, list[pa.RecordBatch] | None]:
    """The file and, if these columns are small, all of their batches."""
    with place.named():
        stream = place.open_input()
        if not place.is_local and stream.size() <= WHOLE_BYTES:  # type: ignore[attr-defined]
            with stream:
                stream = pa.BufferReader(stream.read())
        file = pq.ParquetFile(stream, pre_buffer=True)
        if _bytes_of(file.metadata, columns) > AHEAD_BYTES:
            return file, None
        return file, list(file.iter_batches(CHUNK_ROWS, columns=columns, use_threads=False))


def _bytes_of(footer: pq.FileMetaData, columns: Sequence[str]) -> int:
    """Bytes of these columns in memory, or somewhat less where values repeat."""
    groups = (footer.row_group(number) for number in range(footer.num_row_groups))
    parts = (group.column(number) for group in groups for number in range(group.num_columns))
    return sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] in columns)


def columns_of(files: Sequence[Location], actor: type[RowActor], arguments: Mapping[str, Any]) -> list[str]:
    """The columns that an actor made with these arguments reads: id, inputs, and meta if it looks there."""
    columns = [ID, *actor.inputs]
    if actor.reads_meta(arguments) and files:
        known = pq.read_schema(files[0].path, filesystem=files[0].fs).names
        columns += [META] if META in known else []
    return columns


def with_tokens(chunks: Iterator[pa.Table], lengths_files: Sequence[Location]) -> Iterator[pa.Table]:
    """Add the token count of each row to the score chunks, joined by id."""
    ids, counts = _lengths_by_id(lengths_files)
    for chunk in chunks:
        wanted = chunk[ID].to_numpy()
        place = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
        if not (ids[place] == wanted).all():
            raise StageError("choose: some scored rows have no length; the lengths stage is of another pool.")
        tokens = pa.array(counts[place], mask=counts[place] == UNKNOWN)
        # A row of unknown length does not fit a token budget: without a score it is never chosen.
        scores = pc.if_else(tokens.is_valid(), chunk[SCORE], None)
        yield chunk.set_column(chunk.column_names.index(SCORE), SCORE, scores).append_column(TOKENS, tokens)


def _lengths_by_id(files: Sequence[Location]) -> tuple[np.ndarray, np.ndarray]:
    """All ids in rising order and the tokens of each: 16 bytes a row."""
    ids, counts = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for chunk in read_chunks(files, [ID, TOKENS]):
        ids.append(chunk[ID].to_numpy())
        counts.append(pc.fill_null(chunk[TOKENS].cast(pa.int64()), UNKNOWN).to_numpy())
    every = np.concatenate(ids)
    order = np.argsort(every, kind="stable")
    return every[order], np.concatenate(counts)[order]


def sum_tokens(lengths_files: Sequence[Location], ids: np.ndarray | None = None) -> int:
    """Total tokens of the rows with these ids, or of all rows with a known length."""
    total, wanted = 0, None if ids is None else np.sort(ids)
    for chunk in read_chunks(lengths_files, [ID, TOKENS]):
        counted = chunk if wanted is None else chunk.filter(pa.array(_is_in(chunk[ID].to_numpy(), wanted)))
        total += pc.sum(counted[TOKENS]).as_py() or 0
    return total


def _is_in(ids: np.ndarray, rising: np.ndarray) -> np.ndarray:
    """Which ids are among the rising ones; numpy's own test would sort these for every chunk."""
    if not len(rising):
        return np.zeros(len(ids), bool)
    return np.asarray(rising[np.minimum(np.searchsorted(rising, ids), len(rising) - 1)] == ids)


def count_answers(
    stage: str,
    answers: Sequence[Location],
    expected: int,
    columns: Sequence[str] = (),
    look_at: Callable[[pa.Table], None] = lambda _: None,
) -> dict[str, int]:
    """Count answered and failed rows; raise unless each expected row occurs exactly once.

    The driver holds the ids, 8 bytes a row. `look_at` is called with each chunk on the way, which also has `columns`:
    whatever else a stage counts, it counts in this one pass.
    """
    ids, failed = [np.empty(0, np.int64)], 0
    for chunk in read_chunks(answers, [ID, ERROR, *columns]):
        ids.append(chunk[ID].to_numpy())
        failed += len(chunk) - chunk[ERROR].null_count
        look_at(chunk)
    all_ids = np.sort(np.concatenate(ids))
    different = int(np.count_nonzero(np.diff(all_ids))) + bool(len(all_ids))
    if len(all_ids) != expected or different != expected:
        raise StageError(
            f"{stage}: {len(all_ids)} answers to {different} different rows, expected {expected} of each. "
            "Delete the stage's folder and run again."
        )
    return {"rows_in": expected, "kept": expected - failed, "failed": failed}


class Tally:
    """Counts in how many rows each of some boolean columns is true, for `look_at` of `count_answers`."""

    def __init__(self, *columns: str) -> None:
        self.counts = dict.fromkeys(columns, 0)

    def __call__(self, chunk: pa.Table) -> None:
        for name in self.counts:
            self.counts[name] += pc.sum(chunk[name]).as_py() or 0


def relative(files: Sequence[Location], folder: Location) -> list[str]:
    """Paths relative to the folder, as in a manifest."""
    return [file.path.removeprefix(folder.path.rstrip("/") + "/") for file in files]


def publish(source: Location, target: Location) -> None:
    """Copy a stage's table to the top of the run folder, where people look for it. An identical copy is left untouched."""
    if not _same_content(source, target):
        target.copy_from(source)


def _same_content(one: Location, other: Location) -> bool:
    if not other.exists() or one.size() != other.size():
        return False
    if one.fs == other.fs and (mark := one.mark()):
        return mark == other.mark()  # if not, the store copies it once more: less than reading both
    with one.open_input() as first, other.open_input() as second:
        while block := first.read(COPIED_BYTES):
            if second.read(COPIED_BYTES) != block:
                return False
    return True


def read_ids(files: Sequence[Location]) -> np.ndarray:
    """All ids, in file order."""
    return np.concatenate([np.empty(0, np.int64), *(chunk[ID].to_numpy() for chunk in read_chunks(files, [ID]))])


def read_numbers(files: Sequence[Location], column: str, name: str) -> pa.Table:
    """Ids and one column, renamed to the engine's name for it, in file order."""
    schema = pa.schema([(ID, pa.int64()), (name, pa.float64())])
    parts = [
        pa.table([chunk[ID], chunk[column].cast(pa.float64())], schema=schema)
        for chunk in read_chunks(files, [ID, column])
    ]
    return pa.concat_tables([schema.empty_table(), *parts]).combine_chunks()


def count_rows(files: Sequence[Location]) -> int:
    """Rows of Parquet files, from their footers alone."""
    return sum(in_parallel(lambda file: pq.read_metadata(file.path, filesystem=file.fs).num_rows, files))


def count_true(files: Sequence[Location], column: str) -> int:
    """Number of rows in which a boolean column is true."""
    tally = Tally(column)
    for chunk in read_chunks(files, [column]):
        tally(chunk)
    return tally.counts[column]

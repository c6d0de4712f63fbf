"""Reads and checks the tables that stages write: always by id, never by position, a bounded number of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysift.actors.contract import RowActor
from raysift.errors import StageError
from raysift.records import ERROR, ID, META, SCORE, TOKENS
from raysift.storage import COPIED_BYTES, Location

CHUNK_ROWS = 100_000


def read_chunks(files: Sequence[Location], columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield these columns of many Parquet files, a bounded number of rows at a time, in the given order of files."""
    for place in files:
        with pq.ParquetFile(place.path, filesystem=place.fs) as file:
            for batch in file.iter_batches(CHUNK_ROWS, columns=list(dict.fromkeys(columns))):
                if len(batch):
                    yield pa.Table.from_batches([batch])


def columns_of(files: Sequence[Location], actor: type[RowActor], arguments: Mapping[str, Any]) -> list[str]:
    """The columns that an actor made with these arguments reads: id, inputs, and meta if it looks there."""
    columns = [ID, *actor.inputs]
    if actor.reads_meta(arguments) and files:
        known = pq.read_schema(files[0].path, filesystem=files[0].fs).names
        columns += [META] if META in known else []
    return columns


def with_tokens(chunks: Iterator[pa.Table], lengths_files: Sequence[Location]) -> Iterator[pa.Table]:
    """Add the token count of each row to the score chunks, joined by id."""
    lengths = pa.concat_tables(read_chunks(lengths_files, [ID, TOKENS])).sort_by(ID)
    ids = lengths[ID].to_numpy()
    for chunk in chunks:
        wanted = chunk[ID].to_numpy()
        place = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
        if not (ids[place] == wanted).all():
            raise StageError("choose: some scored rows have no length; the lengths stage is of another pool.")
        tokens = lengths[TOKENS].take(pa.array(place))
        # A row of unknown length does not fit a token budget: without a score it is never chosen.
        scores = pc.if_else(tokens.is_valid(), chunk[SCORE], None)
        yield chunk.set_column(chunk.column_names.index(SCORE), SCORE, scores).append_column(TOKENS, tokens)


def sum_tokens(lengths_files: Sequence[Location], ids: np.ndarray | None = None) -> int:
    """Total tokens of the rows with these ids, or of all rows with a known length."""
    total = 0
    for chunk in read_chunks(lengths_files, [ID, TOKENS]):
        counted = chunk if ids is None else chunk.filter(pa.array(np.isin(chunk[ID].to_numpy(), ids)))
        total += pc.sum(counted[TOKENS]).as_py() or 0
    return total


def count_answers(stage: str, answers: Sequence[Location], expected: int) -> dict[str, int]:
    """Count answered and failed rows; raise unless each expected row occurs exactly once."""
    ids, failed = [np.empty(0, np.int64)], 0
    for chunk in read_chunks(answers, [ID, ERROR]):
        ids.append(chunk[ID].to_numpy())
        failed += len(chunk) - chunk[ERROR].null_count
    all_ids = np.concatenate(ids)
    if len(all_ids) != expected or len(np.unique(all_ids)) != expected:
        raise StageError(
            f"{stage}: {len(all_ids)} answers to {len(np.unique(all_ids))} different rows, expected {expected} of each. "
            "Delete the stage's folder and run again."
        )
    return {"rows_in": expected, "kept": expected - failed, "failed": failed}


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
    return sum(pq.read_metadata(file.path, filesystem=file.fs).num_rows for file in files)


def count_true(files: Sequence[Location], column: str) -> int:
    """Number of rows in which a boolean column is true."""
    return sum(pc.sum(chunk[column]).as_py() or 0 for chunk in read_chunks(files, [column]))

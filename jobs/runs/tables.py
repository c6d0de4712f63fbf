"""Reading and checking the tables that stages leave: always by id, never by position, a bounded number of rows at a time."""

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
    """The columns of many Parquet files, a bounded number of rows at a time, file by file in the order given."""
    for place in files:
        with pq.ParquetFile(place.path, filesystem=place.fs) as file:
            for batch in file.iter_batches(CHUNK_ROWS, columns=list(dict.fromkeys(columns))):
                if len(batch):
                    yield pa.Table.from_batches([batch])


def columns_of(files: Sequence[Location], actor: type[RowActor], arguments: Mapping[str, Any]) -> list[str]:
    """What an actor made with these arguments reads of the files: id, inputs, and meta where it looks there."""
    columns = [ID, *actor.inputs]
    if actor.reads_meta(arguments) and files:
        known = pq.read_schema(files[0].path, filesystem=files[0].fs).names
        columns += [META] if META in known else []
    return columns


def with_tokens(chunks: Iterator[pa.Table], lengths_files: Sequence[Location]) -> Iterator[pa.Table]:
    """Score chunks with the token count of each row beside it, joined by id."""
    lengths = pa.concat_tables(read_chunks(lengths_files, [ID, TOKENS])).sort_by(ID)
    ids = lengths[ID].to_numpy()
    for chunk in chunks:
        wanted = chunk[ID].to_numpy()
        place = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
        if not (ids[place] == wanted).all():
            raise StageError("choose: some scored rows have no length; the lengths stage is of another pool.")
        tokens = lengths[TOKENS].take(pa.array(place))
        # A row whose length is unknown cannot be paid for: without a score it is never chosen.
        scores = pc.if_else(tokens.is_valid(), chunk[SCORE], None)
        yield chunk.set_column(chunk.column_names.index(SCORE), SCORE, scores).append_column(TOKENS, tokens)


def sum_tokens(lengths_files: Sequence[Location], ids: np.ndarray | None = None) -> int:
    """Tokens of the rows of these ids, or of all whose length is known."""
    total = 0
    for chunk in read_chunks(lengths_files, [ID, TOKENS]):
        counted = chunk if ids is None else chunk.filter(pa.array(np.isin(chunk[ID].to_numpy(), ids)))
        total += pc.sum(counted[TOKENS]).as_py() or 0
    return total


def count_answers(stage: str, answers: Sequence[Location], expected: int) -> dict[str, int]:
    """Rows answered and failed; raises unless each of the expected rows is there exactly once."""
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
    """Paths of files below a folder, as a manifest names them."""
    return [file.path.removeprefix(folder.path.rstrip("/") + "/") for file in files]


def publish(source: Location, target: Location) -> None:
    """Put a stage's table at the top of the run folder, where people look for it; one that is there stays untouched."""
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
    """All ids, in the order of the files."""
    return np.concatenate([np.empty(0, np.int64), *(chunk[ID].to_numpy() for chunk in read_chunks(files, [ID]))])


def read_numbers(files: Sequence[Location], column: str, name: str) -> pa.Table:
    """Ids and one column, under the name that the engine knows it by, in the order of the files."""
    schema = pa.schema([(ID, pa.int64()), (name, pa.float64())])
    parts = [
        pa.table([chunk[ID], chunk[column].cast(pa.float64())], schema=schema)
        for chunk in read_chunks(files, [ID, column])
    ]
    return pa.concat_tables([schema.empty_table(), *parts]).combine_chunks()


def count_true(files: Sequence[Location], column: str) -> int:
    """Rows for which a column of truths holds."""
    return sum(pc.sum(chunk[column]).as_py() or 0 for chunk in read_chunks(files, [column]))

"""A random sample of a pool that is always the same, and the texts of its rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysift.pool.likeness import MOST_TEXTS, evenly
from raysift.records import ID, MESSAGES
from raysift.storage import Location, in_parallel

FILES_AT_ONCE = 4
MOST_FILES = 16  # of the pool, at most some 64 MiB each: a few seconds for a pool of any size

_STEP_ROWS = 8_192


def sample_rows(files: Sequence[Location], most: int = MOST_TEXTS) -> pa.Table:
    """Ids and messages of the rows with the lowest ids, which are hashes: a random sample that is always the same.

    For a pool in many files, it is drawn from MOST_FILES evenly spaced ones.
    """
    found = in_parallel(lambda place: _lowest(place, most), evenly(files, MOST_FILES), FILES_AT_ONCE)
    table = pa.concat_tables(found)
    return table.take(pa.array(np.argsort(table[ID].to_numpy(), kind="stable")[:most])).combine_chunks()


def _lowest(place: Location, most: int) -> pa.Table:
    """The rows of a file with the lowest ids, in rising order."""
    kept: pa.Table | None = None
    with place.named(), pq.ParquetFile(place.path, filesystem=place.fs) as file:
        for batch in file.iter_batches(_STEP_ROWS, columns=[ID, MESSAGES]):
            table = pa.Table.from_batches([batch])
            if kept is not None and len(kept) == most:
                below = table[ID].to_numpy() < kept[ID][-1].as_py()
                if not below.any():
                    continue
                table = table.filter(pa.array(below))
            table = table if kept is None else pa.concat_tables([kept, table])
            kept = table.take(pa.array(np.argsort(table[ID].to_numpy(), kind="stable")[:most])).combine_chunks()
        return kept if kept is not None else file.schema_arrow.empty_table().select([ID, MESSAGES])


def texts_of(rows: pa.Table) -> Iterator[str]:
    """Each conversation as one text, without its roles."""
    for messages in rows[MESSAGES].to_pylist():
        yield "\n".join(message["content"] for message in messages)

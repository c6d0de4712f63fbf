"""Exact duplicates among any number of rows, in memory that does not grow with them.

Each shard leaves a file of (id, row, position), sorted by id and cut into 256 parts by the id's first byte. Ids are
hashes, so the parts are of one size; a *bucket* is a run of parts, small enough to be held for all shards at once.
Within a bucket the first row of an id in the order (shard, row) stays and all later ones are losers. Which rows stay
follows from the order of the input alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from raysift.storage import Location

Table = npt.NDArray[np.int64]

PARTS = 256
BUCKET_ROWS = 1_000_000


def bucket_bounds(rows: int) -> list[tuple[int, int]]:
    """Runs of parts that hold some BUCKET_ROWS rows each."""
    buckets = min(PARTS, max(1, -(-rows // BUCKET_ROWS)))
    edges = [PARTS * number // buckets for number in range(buckets + 1)]
    return list(pairwise(edges))


def write_ids(place: Location, ids: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]) -> None:
    """The ids of a shard, in the order of its rows, and where each stood in the input."""
    order = np.argsort(ids, kind="stable")
    parts = (ids[order] >> 56) + PARTS // 2
    starts = np.searchsorted(parts, np.arange(PARTS + 1))
    write_parts(place, starts, np.stack([ids[order], order, positions[order]], axis=1))


def find_losers(files: Sequence[Location], bucket: tuple[int, int]) -> tuple[Table, Table]:
    """Rows of a bucket whose id an earlier row has, sorted by (shard, row), and where each shard's losers start.

    Columns: row, position, shard of the row that stays, its position. A shard is an index into `files`.
    """
    tables = [read_parts(file, *bucket) for file in files]
    shard = np.repeat(np.arange(len(files)), [len(table) for table in tables])
    found = np.concatenate(tables) if tables else np.empty((0, 3), np.int64)
    # Within a shard rows of one id are in order, and the sort is stable: the first of an id is the first of the input.
    order = np.argsort(found[:, 0], kind="stable")
    found, shard = found[order], shard[order]
    again = np.zeros(len(found), bool)
    again[1:] = found[1:, 0] == found[:-1, 0]
    first = np.maximum.accumulate(np.where(again, 0, np.arange(len(found)))) if len(found) else np.empty(0, np.int64)
    losers = np.flatnonzero(again)
    losers = losers[np.lexsort((found[losers, 1], shard[losers]))]
    stays = first[losers]
    table = np.stack([found[losers, 1], found[losers, 2], shard[stays], found[stays, 2]], axis=1)
    return table, np.searchsorted(shard[losers], np.arange(len(files) + 1))


def write_parts(place: Location, starts: npt.NDArray[np.int64], table: Table) -> None:
    """A table cut into parts that can be read one by one: their starts, then the rows."""
    with place.open_output() as stream:
        stream.write(np.array([len(starts), table.shape[1], *starts], np.int64).tobytes())
        stream.write(np.ascontiguousarray(table, np.int64).data)


def read_parts(place: Location, first: int, last: int) -> Table:
    """Parts first to last (exclusive) of a table, without reading the others."""
    with place.open_input() as stream:
        count, width = np.frombuffer(stream.read(16), np.int64)
        starts = np.frombuffer(stream.read(int(count) * 8), np.int64)
        begin, end = int(starts[first]), int(starts[last])
        stream.seek(16 + int(count) * 8 + begin * int(width) * 8)
        content = stream.read((end - begin) * int(width) * 8)
    return np.frombuffer(content, np.int64).reshape(end - begin, int(width))

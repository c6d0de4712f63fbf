"""Finds a row by its id: the line of a table, the records that were not kept, and all copies of its conversation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysift.errors import ConfigError, DataError
from raysift.jobs.explaining.record import Copy
from raysift.jobs.runs.run import Run
from raysift.jobs.runs.tables import read_chunks
from raysift.manifest import Manifest
from raysift.pool.id_text import id_ranges, id_text
from raysift.records import ERROR, FILE, ID, POSITION, RAW, REASON, SOURCE
from raysift.storage import Location

SHOWN_IDS = 10
ANSWERING = (
    *("match", "gradients", "similarity", "necessity", "generate", "difficulty"),
    *("embed", "encode", "quality", "lengths"),
)
"""Stages that answer row by row, from the last to the first."""


def find_id(run: Run, rows: Manifest, wanted: int | str) -> int:
    """The id that a number or a text means, among the rows that ingest kept or rejected."""
    ranges = id_ranges(wanted) if isinstance(wanted, str) else [(wanted, wanted)]
    if not ranges:
        raise ConfigError(
            f"explain: '{wanted}' is no row id. Ids have up to 16 digits of 0-9 and a-f, as `raysift show` prints them; "
            "some of the first ones are enough."
        )
    found: set[int] = set()
    for kind in ("rows", "rejected"):
        for chunk in read_chunks(run.files(rows, kind), [ID]):
            ids = chunk[ID].drop_null()
            for low, high in ranges:
                within = pc.and_(pc.greater_equal(ids, low), pc.less_equal(ids, high))
                found.update(ids.filter(within).to_pylist())
    if not found:
        raise DataError(
            f"explain: no row of {run.name} has the id {wanted}, kept or rejected. `raysift show {run.name}` prints some; "
            "selection.parquet holds them as numbers."
        )
    if len(found) > 1:
        listed = ", ".join(id_text(one) for one in sorted(found)[:SHOWN_IDS])
        more = f" and {len(found) - SHOWN_IDS:,} more" if len(found) > SHOWN_IDS else ""
        raise ConfigError(f"explain: {len(found):,} rows have an id like '{wanted}': {listed}{more}. Give more digits.")
    return found.pop()


def find_row(files: Sequence[Location], row_id: int, columns: Sequence[str]) -> dict[str, Any] | None:
    """The line with this id in a stage's tables, or None."""
    for chunk in read_chunks(files, [ID, *columns]):
        where = np.flatnonzero(chunk[ID].to_numpy(zero_copy_only=False) == row_id)
        if len(where):
            line: dict[str, Any] = chunk.slice(int(where[0]), 1).to_pylist()[0]
            return line
    return None


def rejected_lines(run: Run, rows: Manifest, row_id: int) -> Iterator[dict[str, Any]]:
    """Rejected records with this id; a kept row may have rejected duplicates."""
    for chunk in read_chunks(run.files(rows, "rejected"), [ID, SOURCE, FILE, POSITION, REASON, "message", RAW]):
        yield from chunk.filter(pc.equal(chunk[ID], row_id)).to_pylist()


def copies_of(kept: dict[str, Any] | None, rejected: Sequence[dict[str, Any]]) -> list[Copy]:
    """All records with the conversation, the kept one first; nothing if there is one alone."""
    found = [Copy(kept[FILE], kept[POSITION], True)] if kept else []
    found += [Copy(line[FILE], line[POSITION], False, line[REASON]) for line in rejected]
    return found if len(found) > 1 else []


def columns_in(files: Sequence[Location]) -> list[str]:
    """The columns of a stage's table besides the id."""
    return [name for name in pq.read_schema(files[0].path, filesystem=files[0].fs).names if name != ID]


def failure_of(run: Run, row_id: int, stages: Sequence[str] = ANSWERING) -> str | None:
    """The first error that a stage recorded for this row, or None."""
    for name in stages:
        manifest = run.manifest(name)
        line = find_row(run.files(manifest, "answers"), row_id, [ERROR]) if manifest else None
        if line and line[ERROR]:
            return f"{name}: {line[ERROR]}"
    return None

"""What a plan must know of the pool: its rows, and a random sample of them with their lengths."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raysift.config import CommonConfig
from raysift.errors import DataError
from raysift.jobs.runs.selection import rows_of_run
from raysift.pool.chunks import chunk_bytes_for, plan_file
from raysift.pool.files import BadFile, SourceFile, find_files
from raysift.pool.formats import LAYOUTS, recognise
from raysift.pool.normalise import Normaliser
from raysift.pool.reading import read_chunk
from raysift.records import ID

MOST_ROWS, MOST_S, SAMPLED = 200_000, 5.0, 512


@dataclass(frozen=True)
class PoolSample:
    """A pool, as far as a few seconds of reading tell; `rows` have the lowest ids, which are hashes."""

    rows: pa.Table
    rows_in: int
    kept: int
    bytes: int
    """Of its files."""
    whole: bool
    """Whether all of it was read, so that counts are exact."""
    seconds_a_row: float
    """Of reading and checking, in one process."""
    row_bytes: float
    """Of a kept row in memory."""


def sample_pool(config: CommonConfig) -> PoolSample:
    """Read the pool's files, evenly spread, for some seconds at most."""
    files = find_files([file for source in config.pool for file in rows_of_run(source)])
    began, deadline = time.perf_counter(), time.perf_counter() + MOST_S
    ids: set[int] = set()
    kept: list[pa.Table] = []
    counts: Counter[str] = Counter()
    chunks = done = 0
    problem = ""
    for number, file in enumerate(_spread(files)):
        if counts["rows"] >= MOST_ROWS or time.perf_counter() > deadline:
            break
        try:
            plan = plan_file(file, chunk_bytes_for(file.size))
            layout = recognise(plan.columns, config.ingest.format, config.ingest.columns, file.name).name
        except BadFile as error:
            problem = problem or f"{file.name}: {error}"
            continue
        normalise = Normaliser(file, LAYOUTS[layout], config.ingest)
        chunks += len(plan.chunks)
        for chunk in plan.chunks:
            if counts["rows"] >= MOST_ROWS or (number and time.perf_counter() > deadline):
                break
            for batch in read_chunk(chunk):
                _take(normalise(batch), ids, kept, counts)
            done += 1
        counts["bytes"] += file.size
    if not ids:
        raise DataError(
            f"plan: none of the {counts['rows']} rows read is kept. {problem} See `raysift look`.".replace("  ", " ")
        )
    rows = pa.concat_tables(kept)
    total = sum(file.size for file in files)
    more = (total / max(1, counts["bytes"])) * (chunks / max(1, done))
    order = np.argsort(rows[ID].to_numpy(), kind="stable")[:SAMPLED]
    return PoolSample(
        rows=rows.take(pa.array(order)).combine_chunks(),
        rows_in=round(counts["rows"] * more),
        kept=round(len(ids) * more),
        bytes=total,
        whole=more == 1,
        seconds_a_row=(time.perf_counter() - began) / max(1, counts["rows"]),
        row_bytes=counts["kept bytes"] / max(1, len(ids)),
    )


def _take(batch: Any, ids: set[int], kept: list[pa.Table], counts: Counter[str]) -> None:
    """Count a batch and keep those of its rows that may be in the sample."""
    counts["rows"] += len(batch.rows) + len(batch.problems)
    new = np.zeros(len(batch.rows), bool)
    for place, number in enumerate(batch.rows[ID].to_pylist()):
        new[place] = number not in ids
        ids.add(number)
    rows = batch.rows.filter(pa.array(new))
    counts["kept bytes"] += rows.nbytes
    order = np.argsort(rows[ID].to_numpy(), kind="stable")[:SAMPLED]
    kept.append(rows.take(pa.array(order)))


def _spread(files: Sequence[SourceFile]) -> list[SourceFile]:
    """The files in an order in which the first ones are spread over all."""
    order = sorted(range(len(files)), key=lambda place: int(f"{place:032b}"[::-1], 2))
    return [files[place] for place in order]

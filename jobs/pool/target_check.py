"""The stage that compares a target with the pool, and warns if their languages differ before anything is computed for it.

It is a warning, not an error, since selecting across languages is a valid use. It is a separate stage because its result
depends on the pool, which the target's other stages need not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysift.jobs.runs.run import Run, StageResult
from raysift.manifest import Manifest
from raysift.pool.files import SourceFile, fingerprint_files
from raysift.pool.likeness import MOST_TEXTS, compare_samples, evenly, remarks, sample_of
from raysift.records import ID, MESSAGES
from raysift.storage import Location

MOST_FILES = 16  # of the pool, at most some 64 MiB each: a few seconds for a pool of any size
LIKENESS = "likeness"

_STEP_ROWS = 8_192


def compare_with_pool(
    run: Run,
    rows: Manifest,
    files: Sequence[SourceFile],
    decides: Mapping[str, Any],
    read: Callable[[], Mapping[str, Sequence[str]]],
) -> Manifest:
    """The figures of each target, by name, among the manifest's values; notes those that a user should know.

    `read` returns each target's texts, read from `files`; `decides` holds the settings that choose them.
    """

    def body(folder: Location) -> StageResult:
        pool = sample_of(texts_of(sample_rows(run.files(rows, "rows"))))
        targets = read()
        found = {name: compare_samples(pool, sample_of(evenly(texts))) for name, texts in targets.items()}
        for name, figures in found.items():
            for remark in remarks(name, figures):
                run.console.note(f"{LIKENESS}: {remark}")
        count = sum(map(len, targets.values()))
        return StageResult(counts={"rows_in": count, "kept": count}, values={LIKENESS: found}, rows=count)

    inputs = {"rows": rows.fingerprint, "target": fingerprint_files(files)}
    return run.stage(LIKENESS, dict(decides), inputs, body)


def sample_rows(files: Sequence[Location], most: int = MOST_TEXTS) -> pa.Table:
    """Ids and messages of the rows with the lowest ids, which are hashes: a random sample that is always the same.

    For a pool in many files, it is drawn from MOST_FILES evenly spaced ones.
    """
    kept: pa.Table | None = None
    for place in evenly(files, MOST_FILES):
        with pq.ParquetFile(place.path, filesystem=place.fs) as file:
            for batch in file.iter_batches(_STEP_ROWS, columns=[ID, MESSAGES]):
                table = pa.Table.from_batches([batch])
                if kept is not None and len(kept) == most:
                    below = table[ID].to_numpy() < kept[ID][-1].as_py()
                    if not below.any():
                        continue
                    table = table.filter(pa.array(below))
                table = table if kept is None else pa.concat_tables([kept, table])
                kept = table.take(pa.array(np.argsort(table[ID].to_numpy(), kind="stable")[:most])).combine_chunks()
    assert kept is not None
    return kept


def texts_of(rows: pa.Table) -> Iterator[str]:
    """Each conversation as one text, without its roles."""
    for messages in rows[MESSAGES].to_pylist():
        yield "\n".join(message["content"] for message in messages)

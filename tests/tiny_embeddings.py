"""Embedding files as an embedder leaves them, for tests."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike

from raysift.errors import DataError
from raysift.records import ERROR, ID
from raysift.scoring.embeddings import EMBEDDING
from raysift.storage import Location

_ROW_GROUP_BYTES = 2**23


def write_embeddings(
    place: Location, ids: ArrayLike, vectors: ArrayLike, failed: Mapping[int, str] | None = None
) -> None:
    """One file, its rows in the order of their ids; `failed` gives the message of each row that has no vector."""
    good, rows, failed = np.asarray(ids, np.int64), np.asarray(vectors, np.float32), failed or {}
    if rows.ndim != 2 or good.shape != rows.shape[:1]:
        raise DataError(f"embeddings: {good.shape} ids and vectors of shape {rows.shape}; expected one vector per id.")
    every = np.concatenate([good, np.fromiter(failed, np.int64, len(failed))])
    order = np.argsort(every, kind="stable")
    if (np.diff(every[order]) == 0).any():
        raise DataError(f"embeddings: {place.name}: an id occurs more than once.")
    dimension = rows.shape[1]
    schema = pa.schema([(ID, pa.int64()), (EMBEDDING, pa.list_(pa.float32(), dimension)), (ERROR, pa.string())])
    step = max(1, _ROW_GROUP_BYTES // (4 * max(1, dimension)))
    plain = {"compression": "none", "use_dictionary": False}  # such numbers do not compress
    with pq.ParquetWriter(place.path, schema, filesystem=place.fs, **plain) as writer:
        for start in range(0, len(every), step):
            part = order[start : start + step]
            lost = part >= len(good)
            numbers = np.zeros((len(part), dimension), np.float32)
            numbers[~lost] = rows[part[~lost]]
            cells = pa.FixedSizeListArray.from_arrays(
                pa.array(numbers.reshape(-1)), type=schema.field(EMBEDDING).type, mask=pa.array(lost)
            )
            errors = pa.array(
                [failed[i] if bad else None for i, bad in zip(every[part].tolist(), lost, strict=True)], pa.string()
            )
            writer.write_table(pa.Table.from_arrays([pa.array(every[part]), cells, errors], schema=schema))

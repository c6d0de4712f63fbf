"""Groups of a pool's rows: their source, or a column of their meta, such as a skill or a category."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa

from raysift.errors import DataError
from raysift.jobs.runs.run import Run
from raysift.jobs.runs.tables import read_chunks
from raysift.manifest import Manifest
from raysift.records import ID, META, SOURCE


def labels_of(run: Run, rows: Manifest, column: str) -> tuple[np.ndarray, pa.ChunkedArray]:
    """Id and group of every row that ingest kept: text as it is, other values as JSON, null where a row has none."""
    seen: set[str] = set()

    def value(text: str | None) -> str | None:
        meta = json.loads(text) if text else {}
        seen.update(meta)
        found = meta.get(column)
        return found if found is None or isinstance(found, str) else json.dumps(found, sort_keys=True)

    by_source = column == SOURCE
    ids, values = [np.empty(0, np.int64)], [pa.array([], pa.string())]
    for chunk in read_chunks(run.files(rows, "rows"), [ID, SOURCE if by_source else META]):
        ids.append(chunk[ID].to_numpy())
        texts = chunk[1].to_pylist()
        values.append(pa.array(texts if by_source else map(value, texts), pa.string()))
    if not by_source and column not in seen:
        raise DataError(f"show: no row has '{column}' in its meta; there are: {', '.join(sorted(seen)) or 'none'}.")
    return np.concatenate(ids), pa.chunked_array(values)

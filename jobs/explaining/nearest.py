"""The nearest chosen row of a row, by the vectors that the run has embedded."""

from __future__ import annotations

import numpy as np

from raysift.errors import DataError
from raysift.jobs.explaining.finding import find_row
from raysift.jobs.explaining.record import Neighbour
from raysift.jobs.runs.run import Run
from raysift.jobs.runs.tables import read_ids
from raysift.manifest import Manifest
from raysift.records import MESSAGES
from raysift.scoring.embeddings import find_vectors, survey


def nearest_chosen(
    run: Run, rows: Manifest, row_id: int, chosen: Manifest, metric: str, text: bool
) -> Neighbour | None:
    """The other chosen row at the least distance, ties to the smaller id; None if the run has no vector of the row."""
    embedded = run.manifest("embed")
    if embedded is None:
        return None
    files = run.files(embedded, "answers")
    order = read_ids(run.files(chosen, "selection"))
    try:
        known = survey(files).ids
        _, own = find_vectors(files, [row_id])
    except DataError:  # an earlier stage set this row aside, or its embedding failed
        return None
    ids = order[np.isin(order, known) & (order != row_id)]
    if not len(ids):
        return None
    _, vectors = find_vectors(files, ids)
    away = np.linalg.norm(_scaled(vectors, metric) - _scaled(own, metric), axis=1)
    best = int(np.lexsort((ids, away))[0])
    found, rank = int(ids[best]), int(np.flatnonzero(order == ids[best])[0]) + 1
    line = find_row(run.files(rows, "rows"), found, [MESSAGES]) if text else None
    return Neighbour(found, float(away[best]), rank, line[MESSAGES] if line else None)


def _scaled(vectors: np.ndarray, metric: str) -> np.ndarray:
    """The vectors as k-center measures them."""
    wide = vectors.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.divide(wide, lengths, out=wide, where=lengths > 0) if metric == "cosine" else wide

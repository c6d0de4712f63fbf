"""The k best rows of any number of scored chunks, in bounded memory, with ties broken by the smaller row id.

The order is total (score descending, id ascending), so the result equals one full sort, whatever the chunks and their
order. NaN cannot be ordered and is refused.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysift.errors import DataError

Ids = NDArray[np.int64]
Scores = NDArray[np.float64]

_MIN_BUFFER = 65_536


def top_k(ids: ArrayLike, scores: ArrayLike, k: int) -> tuple[Ids, Scores]:
    """Ids and scores of the k best rows, best first; all of them if there are fewer."""
    best = TopK(k)
    best.add(ids, scores)
    return best.result()


class TopK:
    """Collects (id, score) chunks and keeps only the k best; `seen` counts all rows offered."""

    def __init__(self, k: int) -> None:
        if k < 1:
            raise ValueError(f"top-k: k is {k}, expected at least 1")
        self.k = k
        self.seen = 0
        self._bar = -np.inf  # score of the k-th best after the last compaction: anything below cannot come back
        self._ids: list[Ids] = []
        self._scores: list[Scores] = []
        self._held = 0

    def add(self, ids: ArrayLike, scores: ArrayLike) -> None:
        """Offers one chunk. If a score is NaN, takes nothing of it and raises DataError with the first such ids."""
        ids, scores = _checked(ids, scores)
        self.seen += len(ids)
        keep = scores >= self._bar
        self._append(ids[keep], scores[keep])

    def result(self) -> tuple[Ids, Scores]:
        """The best rows, best first; raises DataError if an id is among them twice."""
        self._compact()
        if not self._ids:
            return np.empty(0, np.int64), np.empty(0, np.float64)
        ids, scores = self._ids[0], self._scores[0]
        order = np.lexsort((ids, -scores))
        ids, scores = ids[order], scores[order]
        unique, counts = np.unique(ids, return_counts=True)
        if len(unique) < len(ids):
            twice = unique[counts > 1][:5].tolist()
            raise DataError(f"top-k: rows scored more than once: ids {twice} ... Read each score shard once.")
        return ids, scores

    def _append(self, ids: Ids, scores: Scores) -> None:
        if len(ids):
            self._ids.append(ids)
            self._scores.append(scores)
            self._held += len(ids)
        if self._held > max(4 * self.k, _MIN_BUFFER):
            self._compact()

    def _compact(self) -> None:
        if not self._ids:
            return
        ids, scores = np.concatenate(self._ids), np.concatenate(self._scores)
        if len(ids) > self.k:
            self._bar = float(np.partition(scores, len(scores) - self.k)[len(scores) - self.k])
            above, at = np.flatnonzero(scores > self._bar), np.flatnonzero(scores == self._bar)
            at = at[np.argsort(ids[at], kind="stable")[: self.k - len(above)]]
            keep = np.concatenate([above, at])
            ids, scores = ids[keep], scores[keep]
        self._ids, self._scores, self._held = [ids], [scores], len(ids)


def _checked(ids: ArrayLike, scores: ArrayLike) -> tuple[Ids, Scores]:
    id_array, score_array = np.asarray(ids), np.asarray(scores, dtype=np.float64)
    if id_array.ndim != 1 or id_array.shape != score_array.shape:
        raise DataError(f"top-k: {id_array.shape} ids and {score_array.shape} scores; expected one score per id")
    if len(id_array) and id_array.dtype.kind not in "iu":
        raise DataError(f"top-k: ids are {id_array.dtype}, expected whole numbers of 64 bits")
    id_array = id_array.astype(np.int64)  # a copy: a view would keep the caller's whole chunk alive
    bad = np.isnan(score_array)
    if bad.any():
        raise DataError(
            f"top-k: {int(bad.sum())} of {len(bad)} scores are NaN (ids {id_array[bad][:5].tolist()} ...). "
            "A row without a score must be set aside with its reason before it is ranked."
        )
    return id_array, score_array

"""Choose by rank under a budget from streamed scores: best score first, ties to the smaller id.

With a budget in tokens the chosen rows are the longest run of best rows whose tokens fit. The first row that does not
fit ends it, so a better row is never passed over for a shorter one.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from raysift.errors import DataError
from raysift.records import ID, ORDER, SCORE, TOKENS
from raysift.settings.budget import Budget
from raysift.topk import Ids, Scores, TopK


def choose_top(chunks: Iterable[pa.Table], budget: Budget, pool_rows: int) -> tuple[Ids, Scores]:
    """Ids and scores of the chosen rows, best first.

    `pool_rows` counts all rows after ingest, including those without a score, so 5 % means 5 % of the pool. Rows whose
    score is null (they failed) are never chosen.
    """
    best = _BestTokens(budget.tokens) if budget.tokens is not None else TopK(budget.rows_of(pool_rows))
    for chunk in chunks:
        scored = chunk.filter(chunk[SCORE].is_valid())
        ids, scores = scored[ID].to_numpy(), scored[SCORE].to_numpy()
        if isinstance(best, _BestTokens):
            best.add(ids, scores, scored[TOKENS].to_numpy())
        else:
            best.add(ids, scores)
    ids, scores = best.result()
    if len(ids) == 0:
        raise DataError("choose: nothing was selected: no row has a score, or the first row exceeds the token budget.")
    return ids, scores


def choose_in_order(chunks: Iterable[pa.Table], most: int | None = None) -> tuple[Ids, Scores]:
    """Ids and scores of at most `most` rows in the order set by a recipe; rows without a place are not chosen."""
    placed = [chunk.filter(chunk[ORDER].is_valid()).select([ID, SCORE, ORDER]) for chunk in chunks]
    table = pa.concat_tables(placed).sort_by(ORDER) if placed else None
    if table is None or len(table) == 0:
        raise DataError("choose: nothing was selected: no row has a place in the order.")
    first = table.slice(0, most)
    return first[ID].to_numpy(), first[SCORE].to_numpy()


class _BestTokens:
    """Keeps the best rows up to a number of tokens, plus the first one that no longer fits."""

    def __init__(self, tokens: int) -> None:
        self.budget = tokens
        self._kept: list[tuple[Ids, Scores, np.ndarray]] = []
        self._held = self._compacted = 0

    def add(self, ids: Ids, scores: Scores, tokens: np.ndarray) -> None:
        if np.isnan(scores).any():
            raise DataError(f"choose: {int(np.isnan(scores).sum())} scores are NaN; a missing score must be null.")
        self._kept.append((ids, scores.astype(np.float64), tokens))
        self._held += len(ids)
        if self._held > max(65_536, 2 * self._compacted):
            self._compact()

    def result(self) -> tuple[Ids, Scores]:
        ids, scores, tokens = self._compact()
        fits = np.cumsum(tokens) <= self.budget
        return ids[fits], scores[fits]

    def _compact(self) -> tuple[Ids, Scores, np.ndarray]:
        ids = np.concatenate([np.empty(0, np.int64), *(kept[0] for kept in self._kept)])
        scores = np.concatenate([np.empty(0), *(kept[1] for kept in self._kept)])
        tokens = np.concatenate([np.empty(0, np.int64), *(kept[2] for kept in self._kept)])
        order = np.lexsort((ids, -scores))
        ids, scores, tokens = ids[order], scores[order], tokens[order]
        # Rows that start past the budget will never fit: more rows only push them further down.
        keep = np.cumsum(tokens) - tokens < self.budget
        self._kept = [(ids[keep], scores[keep], tokens[keep])]
        self._held = self._compacted = int(keep.sum())
        return self._kept[0]

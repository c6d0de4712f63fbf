"""Rows as tokens in flat arrays, in order of id, from which training and validation take their batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysift.errors import StageError
from raysift.records import ID
from raysift.templates import IGNORED

if TYPE_CHECKING:
    from raysift.gradients.rows import TokenRow

INPUT_IDS, COUNTED = "input_ids", "counted"


def by_id(rows: pa.Table) -> pa.Table:
    """The columns id, input_ids and counted, sorted by id.

    Lists get 64-bit offsets, because 32-bit offsets end at 2^31 tokens. Arrow's own sort would need eight more bytes
    per token.
    """
    ids = rows[ID].to_numpy()
    order = np.argsort(ids, kind="stable")
    lengths = pc.list_value_length(rows[INPUT_IDS]).to_numpy()
    starts = np.concatenate([[0], np.cumsum(lengths[order], dtype=np.int64)])
    places = np.empty(len(ids), np.int64)
    places[order] = starts[:-1]
    lists = [_joined(rows[name], places, lengths) for name in (INPUT_IDS, COUNTED)]
    columns = [pa.LargeListArray.from_arrays(pa.array(starts), pa.array(values)) for values in lists]
    return pa.table([pa.array(ids[order]), *columns], names=[ID, INPUT_IDS, COUNTED])


def _joined(lists: pa.ChunkedArray, places: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The values of all lists in one array, each list at its place."""
    values = np.empty(int(lengths.sum()), lists.type.value_type.to_pandas_dtype())
    row = 0
    for chunk in lists.chunks:
        flat, start = chunk.flatten().to_numpy(zero_copy_only=False), 0
        for _ in range(len(chunk)):
            end = start + lengths[row]
            values[places[row] : places[row] + lengths[row]] = flat[start:end]
            row, start = row + 1, end
    return values


class EncodedRows:
    """The columns id, input_ids and counted of a table, five bytes per token; a row's position is its place by id."""

    def __init__(self, rows: pa.Table) -> None:
        rows = by_id(rows)
        ids, counted = rows[INPUT_IDS].combine_chunks(), rows[COUNTED].combine_chunks()
        self.ids = rows[ID].to_numpy()
        self.tokens = ids.flatten().to_numpy()
        self.counted = counted.flatten().to_numpy(zero_copy_only=False)
        self.starts = np.concatenate([[0], np.cumsum(ids.value_lengths().to_numpy())]).astype(np.int64)
        self.lengths = np.diff(self.starts)
        self.labels_per_row = np.add.reduceat(self.counted, self.starts[:-1], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.lengths)

    def positions(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """The positions of the rows with these ids."""
        wanted = np.asarray(ids, np.int64)
        found = np.searchsorted(self.ids, wanted)
        known = self.ids[np.minimum(found, len(self) - 1)] == wanted
        if not known.all():
            raise StageError(
                f"training: {np.count_nonzero(~known)} of {len(wanted)} rows of a batch are not among the {len(self)} "
                f"rows it may take from; the first has id {wanted[~known][0]}. Batches are picked from the trainable "
                "rows of the same pool."
            )
        return found

    def token_rows(self, positions: Sequence[int] | np.ndarray) -> list[TokenRow]:
        """The rows at these positions one by one, as raysift.gradients takes them."""
        from raysift.gradients.rows import TokenRow

        rows = []
        for position in positions:
            tokens, marks = self._row(position)
            labels = np.where(marks, tokens, IGNORED).astype(np.int64)
            rows.append(TokenRow(int(self.ids[position]), tokens.astype(np.int64), labels))
        return rows

    def _row(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        span = slice(self.starts[position], self.starts[position + 1])
        return self.tokens[span], self.counted[span]

"""The sums that become null columns of a target (see `null_columns.py`), beside the sum of the target itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysift.gradients.null_columns import random_signs
from raysift.gradients.rows import TokenRow


@dataclass(frozen=True)
class NullSigns:
    """Null columns of pairs: the same contributions with signs drawn by content."""

    columns: int
    keys: Mapping[int, int]
    """Content key of each pair, by its id."""

    def of(self, subtask_of: Mapping[int, str]) -> dict[int, list[int]]:
        """The signs of these pairs, by id."""
        found: dict[int, list[int]] = {}
        for name in sorted(set(subtask_of.values())):
            own = [id_ for id_, subtask in subtask_of.items() if subtask == name]
            drawn = random_signs([self.keys[id_] for id_ in own], self.columns).tolist()
            found |= dict(zip(own, drawn, strict=True))
        return found


@dataclass(frozen=True)
class NullRows:
    """Null columns of examples: rows of the pool, one list for each null column of a subtask."""

    columns: int
    rows: Mapping[str, Sequence[Sequence[TokenRow]]]

    def of(self, subtasks: Iterable[str]) -> tuple[list[TokenRow], dict[int, list[tuple[str, int]]]]:
        """The rows of these subtasks, each once and by id, and for each id its subtasks and columns."""
        columns_of: dict[int, list[tuple[str, int]]] = {}
        rows: dict[int, TokenRow] = {}
        for name in sorted(subtasks):
            for column, own in enumerate(self.rows[name]):
                for row in own:
                    rows[row.id] = row
                    columns_of.setdefault(row.id, []).append((name, column))
        return [rows[id_] for id_ in sorted(rows)], columns_of


class NullSums:
    """Plain sums by subtask and null column: their last digits say nothing, but members must come in an order of content.

    Those of signs hold the members whose sign is positive: twice them, less all, is the signed sum, for half the additions.
    """

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.signs: dict[int, list[int]] | None = None
        """Each member's sign in each column; None if the columns are of rows."""
        self.empty = 0
        """Columns that nothing was added to."""
        self._sums: dict[tuple[str, int], NDArray[np.floating]] = {}
        self._counts: dict[tuple[str, int], int] = {}

    def add_signed(self, id_: int, name: str, vector: NDArray[np.floating]) -> None:
        """Adds a member of the target itself to the columns of its subtask in which its sign is positive."""
        for column, sign in enumerate(self.signs[id_] if self.signs else ()):
            if sign > 0:
                self.add(name, column, vector)

    def add(self, name: str, column: int, vector: NDArray[np.floating]) -> None:
        """Adds a vector to one column."""
        if (name, column) in self._sums:
            self._sums[name, column] += vector
        else:
            self._sums[name, column] = vector.copy()
        self._counts[name, column] = self._counts.get((name, column), 0) + 1

    def close(self, name: str, column: int, total: NDArray[np.floating], members: int) -> NDArray[np.floating]:
        """The mean of one column, and its sum is freed; `total` is the sum of the subtask's own members."""
        vector = self._sums.pop((name, column), None)
        count = self._counts.pop((name, column), 0)
        vector = np.zeros_like(total) if vector is None else vector
        if self.signs is not None:
            vector *= 2
            vector -= total
            count = members
        self.empty += not count
        vector /= max(1, count)
        return vector

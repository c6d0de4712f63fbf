"""Targets that mean nothing, computed beside the real ones: what random signs of the same pairs, or random rows, give.

    signs   v_r = aggregate of e_ri g_i         g_i: what pair i adds to the real target; e_ri: 1 or -1 at random, half of each
    rows    v_r = aggregate of the directions of random rows of the pool, as many as the subtask has members, or twelve

Random rows take the direction that the pool's rows are matched with (Adam's, for LESS). Plain gradients of a few rows vary more
from draw to draw, and hid selections that did serve their target; see tests/benchmarks/RESULTS.md.

A run has `each` columns for every subtask: its real target first, then its null ones. Replicate r is the r-th null column of
all subtasks; it becomes one score per row exactly as the real columns do. What the real scores are held against is in
`null.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raysift.draws import seed_for, uniform_of

Kind = Literal["signs", "rows"]
SIGNS: Kind = "signs"
ROWS: Kind = "rows"

FEWEST_REPLICATES = 4
"""Null columns of all subtasks together, at least."""
FEWEST_PAIRS, FEWEST_OF_SUBTASK = 6, 2
"""With fewer pairs in all, or of a subtask, random signs are too often the target itself, or all of it turned round."""
ROWS_SHARE = 0.04
"""Random rows of all null columns together: at most this share of the pool, as each costs a pass."""
FEWEST_ROWS, MOST_ROWS = 8, 12
"""Random rows of one column: as many as the subtask has members, if these are fewer. With less there is no null; more change
nothing."""

SEED = 0
"""Of all draws. Not the run's own: a null is no choice of the selection, so runs of several seeds share what they can."""

TOO_FEW, NO_ROOM, NO_ROWS, OLD, NO_KIND, SMALL_POOL = "too_few", "no_room", "no_rows", "old", "no_kind", "small_pool"
"""Why a run has no null."""


@dataclass(frozen=True)
class NullColumns:
    """The null columns of a run's targets, as the manifest of the stage `targets` tells them."""

    kind: Kind = SIGNS
    columns: int = 0
    """Null columns of each subtask; 0 if there are none."""
    why: str = ""
    """Why there is no null: one of the words above."""
    members: tuple[int, ...] = ()
    """Pairs or examples with a gradient, by subtask."""

    @property
    def each(self) -> int:
        """Columns of a subtask, its real one included."""
        return 1 + self.columns

    @property
    def usable(self) -> bool:
        """Whether the columns say anything."""
        return self.columns > 0 and not self.why

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> NullColumns:
        """From the values of a manifest; targets made before there was a null have none."""
        told = values.get("null")
        if told is None:
            return cls(why=OLD)
        return cls(told["kind"], told["columns"], told["why"], tuple(told["members"]))


@dataclass(frozen=True)
class NullPlan:
    """What null columns to compute: of signs, drawn for each member by its key, or of rows dealt out to the columns."""

    kind: Kind
    columns: int
    keys: tuple[int, ...] = ()
    """Content key of each pair, by its number."""
    candidates: tuple[dict[str, Any], ...] = ()
    """Rows of the pool in the order of their draw; those without a token that counts are passed over."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Rows that each null column of a subtask takes."""
    most: int = 0
    """Different rows that all columns may take together."""


def replicates(subtasks: int) -> int:
    """Null columns of each of so many subtasks: four for one, one for each of four and more."""
    return -(-FEWEST_REPLICATES // subtasks)


def random_signs(keys: Sequence[int], columns: int, seed: int = SEED) -> NDArray[np.int8]:
    """(members, columns) of 1 and -1 for the members of one subtask, decided by their contents and the column alone.

    Members take turns in the order of a draw, so half of them have either sign. What they have in common cancels: else a null
    of few pairs would hold much of the target.
    """
    ids = np.array(keys, np.int64)
    signs = np.empty((len(ids), columns), np.int8)
    for column in range(columns):
        order = np.lexsort((ids, uniform_of(ids, seed_for(seed, f"null signs {column}"))))
        signs[order, column] = np.where(np.arange(len(ids)) % 2, -1, 1)
    return signs


def enough_pairs(counts: Sequence[int]) -> bool:
    """Whether random signs of so many pairs of each subtask say anything."""
    return sum(counts) >= FEWEST_PAIRS and min(counts) >= FEWEST_OF_SUBTASK


def plan_rows(counts: Mapping[str, int], columns: int, pool_rows: int) -> tuple[dict[str, int], int] | None:
    """Rows of each null column by subtask, and how many different ones in all; None where a pool is too small for a null.

    As many as a subtask has members, `MOST_ROWS` at most, scaled down if all would be more than the pool's share.
    """
    most = min(pool_rows, max(FEWEST_ROWS, int(ROWS_SHARE * pool_rows)))
    wanted = {name: min(count, MOST_ROWS) for name, count in counts.items()}
    asked = columns * sum(wanted.values())
    sizes = {name: min(count, max(1, count * most // asked)) for name, count in wanted.items()}
    if any(sizes[name] < min(count, FEWEST_ROWS) for name, count in counts.items()):
        return None
    return sizes, min(most, columns * sum(sizes.values()))


def deal(ids: Sequence[int], sizes: Mapping[str, int], columns: int) -> list[dict[str, list[int]]]:
    """The rows of each replicate and subtask: the next ones of `ids`, from the beginning again if they run out; none of none."""
    place, dealt = 0, []
    for _ in range(columns):
        own: dict[str, list[int]] = {}
        for name in sorted(sizes):
            count = min(sizes[name], len(ids))
            own[name] = [ids[(place + i) % len(ids)] for i in range(count)]
            place += count
        dealt.append(own)
    return dealt


def mixes(kind: Kind, columns: int) -> NDArray[np.float64]:
    """(pools, columns): the combinations of null columns that are null columns themselves.

    Signs are as random when they are turned round, and so are sums of independent columns over the root of their number. They
    cost no pass and fill in between the few columns. Rows share the pool's common direction, which sums would change.
    """
    single = np.eye(columns)
    if kind == ROWS:
        return single
    sums = np.array(list(product((1.0, -1.0), repeat=columns))) / np.sqrt(columns) if columns > 1 else single[:0]
    return np.concatenate([single, -single, sums])


def independent(kind: Kind, columns: int) -> int:
    """How many null pools that know nothing of each other these columns are worth."""
    return columns if kind == ROWS else 2 * columns


def split(matches: NDArray[Any], each: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Real columns (..., subtasks) and null ones (..., subtasks, each - 1) of numbers whose last axis holds all columns."""
    cells = matches.reshape(*matches.shape[:-1], matches.shape[-1] // each, each)
    return cells[..., 0], cells[..., 1:]

"""A run's scores, read twice a chunk at a time: bins, the cut, the rows around it, and a sample by id.

Of the pool nothing is held but a sample of at most some SAMPLED rows. Of the selection the ids are held, 8 bytes a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysift.draws import seed_for, uniform_of
from raysift.jobs.runs.tables import read_chunks
from raysift.records import FATE, ID, ORDER, SCORE
from raysift.report.bins import Floats, counts_between, edges_between
from raysift.storage import Location
from raysift.topk import Ids

SAMPLED = 200_000
"""Rows that stand for a larger pool where scores and texts are read together; drawn by id alone."""


@dataclass
class Scored:
    """What is known of the scores of a run."""

    rows: int = 0
    missing: int = 0
    low: float = np.inf
    high: float = -np.inf
    edges: Floats = field(default_factory=lambda: np.empty(0))
    pool: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    """Rows of the pool in each bin."""
    selected: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    cut: float | None = None
    """The lowest score of a selected row, where no other row has a higher one; None where other things decide."""
    tied_in: int = 0
    tied_out: int = 0
    fates: Counter[str] = field(default_factory=Counter)
    """Rows without a place in the order, by what became of them."""
    ids: Ids = field(default_factory=lambda: np.empty(0, np.int64))
    """A sample of the rows that have a score, and their scores."""
    scores: Floats = field(default_factory=lambda: np.empty(0))
    notable: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Lines of the table of scores, by the chip of the rows."""

    @property
    def is_whole(self) -> bool:
        """Whether the sample is all rows that have a score."""
        return len(self.ids) == self.rows - self.missing


@dataclass(frozen=True)
class Quotas:
    """How many rows of each kind are shown."""

    edge: int = 40
    bottom: int = 40
    tied: int = 10
    fate: int = 8


JUST_OUT, BOTTOM, TIED = "just out", "bottom", "tied at the cut"


def read_scored(
    files: Sequence[Location], chosen: Ids, chosen_scores: Floats, quotas: Quotas | None = None, sampled: int = SAMPLED
) -> Scored:
    """Read the tables of scores; `chosen` are the ids of the selection, in any order."""
    quotas, columns = quotas or Quotas(), shown_columns(files)
    found, taken = Scored(), np.sort(chosen)
    total = sum(pq.read_metadata(place.path, filesystem=place.fs).num_rows for place in files)
    best = Kept(quotas.edge, lambda line: (-line[SCORE], line[ID]))
    next_in_order = Kept(quotas.edge, lambda line: (line[ORDER], line[ID]))
    worst = Kept(quotas.bottom, lambda line: (line[SCORE], line[ID]))
    by_fate: dict[str, Kept] = {}
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    for chunk in read_chunks(files, columns):
        scored = chunk.filter(chunk[SCORE].is_valid())
        ids, scores = scored[ID].to_numpy(), scored[SCORE].to_numpy().astype(np.float64)
        found.rows, found.missing = found.rows + len(chunk), found.missing + len(chunk) - len(scored)
        finite = scores[np.isfinite(scores)]
        if len(finite):
            found.low, found.high = min(found.low, float(finite.min())), max(found.high, float(finite.max()))
        drawn = draw(ids, sampled, total)
        parts.append((ids[drawn], scores[drawn]))
        outside = scored.filter(pa.array(~is_in(ids, taken)))
        best.add(outside, [(SCORE, False), (ID, True)])
        worst.add(outside, [(SCORE, True), (ID, True)])
        if ORDER in columns:
            placed = outside.filter(outside[ORDER].is_valid())
            next_in_order.add(placed, [(ORDER, True)])
            _add_fates(found, chunk, by_fate, quotas.fate)
    if parts:
        found.ids, found.scores = (np.concatenate(side) for side in zip(*parts, strict=True))
    out = next_in_order if ORDER in columns else best
    found.notable = {JUST_OUT: out.lines, BOTTOM: worst.lines}
    found.notable |= {fate: kept.lines for fate, kept in sorted(by_fate.items())}
    if len(chosen) and ORDER not in columns and not (best.lines and best.lines[0][SCORE] > chosen_scores.min()):
        found.cut = float(chosen_scores.min())
    _count(found, files, taken, chosen_scores, quotas.tied)
    return found


def _add_fates(found: Scored, chunk: pa.Table, by_fate: dict[str, Kept], most: int) -> None:
    left = chunk.filter(chunk[ORDER].is_null())
    for line in left[FATE].value_counts().to_pylist():
        fate = line["values"] or "no fate told"
        found.fates[fate] += line["counts"]
        kept = by_fate.setdefault(fate, Kept(most, lambda line: line[ID]))
        kept.add(left.filter(pc.equal(left[FATE], line["values"])), [(ID, True)])


def _count(found: Scored, files: Sequence[Location], taken: Ids, chosen_scores: Floats, most: int) -> None:
    """The second reading: bins, and rows that share the score of the cut."""
    if found.low > found.high:
        return
    found.edges = edges_between(found.low, found.high)
    found.pool = np.zeros(len(found.edges) - 1, np.int64)
    found.selected = counts_between(chosen_scores, found.edges)
    tied = Kept(most, lambda line: line[ID])
    for chunk in read_chunks(files, [ID, SCORE]):
        scored = chunk.filter(chunk[SCORE].is_valid())
        scores = scored[SCORE].to_numpy().astype(np.float64)
        found.pool += counts_between(scores, found.edges)
        if found.cut is not None and (at := scores == found.cut).any():
            outside = scored.filter(pa.array(at & ~is_in(scored[ID].to_numpy(), taken)))
            found.tied_out += len(outside)
            tied.add(outside, [(ID, True)])
    if found.tied_out:
        found.tied_in = int((chosen_scores == found.cut).sum())
        found.notable[TIED] = tied.lines


class Kept:
    """The first few lines of a table in some order, whatever the chunks."""

    def __init__(self, most: int, key: Any) -> None:
        self.most, self._key = most, key
        self.lines: list[dict[str, Any]] = []

    def add(self, rows: pa.Table, order: Sequence[tuple[str, bool]]) -> None:
        """Offer rows; `order` names columns and whether they rise, and means the same as the key."""
        if not len(rows):
            return
        by = [(name, "ascending" if rises else "descending") for name, rises in order]
        first = rows.take(pc.select_k_unstable(rows, k=min(self.most, len(rows)), sort_keys=by))
        self.lines = sorted([*self.lines, *first.to_pylist()], key=self._key)[: self.most]


def shown_columns(files: Sequence[Location]) -> list[str]:
    """The columns of a table of scores that hold one value a row."""
    schema = pq.read_schema(files[0].path, filesystem=files[0].fs)
    return [field.name for field in schema if not pa.types.is_nested(field.type)]


def draw(ids: Ids, most: int, total: int, purpose: str = "report") -> np.ndarray:
    """Which rows belong to a sample of about `most` of `total`; decided by each row's id alone."""
    if total <= most:
        return np.ones(len(ids), bool)
    return uniform_of(ids, seed_for(0, purpose)) < most / total


def is_in(ids: Ids, rising: Ids) -> np.ndarray:
    """Which ids occur among some that are sorted."""
    if not len(rising):
        return np.zeros(len(ids), bool)
    return np.asarray(rising[np.minimum(np.searchsorted(rising, ids), len(rising) - 1)] == ids)


def failed_lines(
    files: Sequence[Location], column: str, most: int, told: Sequence[str] = ()
) -> Iterator[Mapping[str, Any]]:
    """The lines with the smallest ids of which `column` holds an error, or True."""
    kept = Kept(most, lambda line: line[ID])
    for place in files:
        schema = pq.read_schema(place.path, filesystem=place.fs) if place.name.endswith(".parquet") else pa.schema([])
        if column not in schema.names or ID not in schema.names or not pa.types.is_int64(schema.field(ID).type):
            continue
        for chunk in read_chunks([place], [ID, column, *told]):
            values = chunk[column]
            kept.add(chunk.filter(values if pa.types.is_boolean(values.type) else values.is_valid()), [(ID, True)])
    yield from kept.lines

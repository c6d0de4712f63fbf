"""The state of RAISE's decision process, and the log of a training, from which every state is rebuilt.

    S_t = (P(M_{t-1}), t/T) for all rows, the features of each row, and how often each row was picked before step t

The features never change and the counts follow from the picks, so the log keeps T x B row ids and T numbers, where the
paper's bookkeeping has N x 39 x T. Performance enters as the gain since the start relative to the performance at the start,
which is comparable across models and losses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysift.errors import DataError
from raysift.policy.pool import PolicyPool, positions
from raysift.policy.settings import Block
from raysift.topk import Ids

STAGE_INPUTS = 2
Numbers = NDArray[np.float64]
Counts = NDArray[np.int32]

LOG = pa.schema(
    [
        pa.field("round", pa.int32()),
        pa.field("episode", pa.int32()),
        pa.field("step", pa.int32()),  # 0: before the first step
        pa.field("picks", pa.list_(pa.int64())),
        pa.field("performance", pa.float64()),  # after the step; null if not measured
        pa.field("loss", pa.float64()),  # of the batch, before its update
        pa.field("choose_s", pa.float64()),
        pa.field("train_s", pa.float64()),
        pa.field("validate_s", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Episode:
    """The log of one training under a policy."""

    table: pa.Table
    """In the schema LOG: one line per step, and one for the start."""
    report_start: float | None = None
    """Performance before the training, on the examples that no policy sees; `report_end` is after it."""
    report_end: float | None = None

    @property
    def steps(self) -> int:
        return len(self.table) - 1

    @property
    def picks(self) -> list[Ids]:
        """Row ids of each step's batch."""
        cells = self.table["picks"].combine_chunks()
        return [np.asarray(cells[step].values.to_numpy(), np.int64) for step in range(1, len(cells))]

    @property
    def performance(self) -> Numbers:
        """Performance at the start and after each step; NaN where not measured."""
        numbers: Numbers = self.table["performance"].to_numpy().astype(np.float64)
        return numbers

    @property
    def known_performance(self) -> Numbers:
        """Performance at the start and after each step; where not measured, the last measured value."""
        found = self.performance
        last = np.maximum.accumulate(np.where(np.isnan(found), 0, np.arange(len(found))))
        return found[last]


@dataclass(frozen=True)
class State:
    """The policy's inputs before a step, besides the features."""

    stage: NDArray[np.float32]
    counts: Counts
    """How often each row of the pool was picked."""

    def availability(self, rows: NDArray[np.int64] | slice = slice(None)) -> NDArray[np.float32]:
        """log1p of the counts, for all rows or for `rows`: the scale that the policy reads."""
        return np.log1p(self.counts[rows].astype(np.float32))


def stage_inputs(start: float, performance: float, step: int, steps: int) -> NDArray[np.float32]:
    """The relative gain so far, and t/T; t starts at 1."""
    scale = abs(start) if start else 1.0
    return np.array([(performance - start) / scale, step / steps], np.float32)


def replay(episode: Episode, pool: PolicyPool) -> Iterator[tuple[State, Ids]]:
    """The state before each step, rebuilt from the log, and the positions of the rows picked in that step."""
    known, steps = episode.known_performance, episode.steps
    if len(known) == 0 or np.isnan(known[0]):
        raise DataError("policy: the log of a training lacks the performance at its start.")
    counts = np.zeros(len(pool.ids), np.int32)
    for step, picks in enumerate(episode.picks, 1):
        picked = positions(pool, picks)
        yield State(stage_inputs(known[0], known[step - 1], step, steps), counts.copy()), picked
        counts[picked] += 1


def summaries(episode: Episode, pool: PolicyPool, blocks: Sequence[Block]) -> NDArray[np.float32]:
    """The critic's input for each state: stage, mean and spread of availability, mean features of the rows picked so far."""
    features, lines = masked(pool, blocks), []
    total, taken = np.zeros(features.shape[1]), 0
    for state, picked in replay(episode, pool):
        seen = state.availability() * ("availability" in blocks)
        stage = state.stage * ("stage" in blocks)
        lines.append(np.concatenate([stage, [seen.mean(), seen.std()], total / max(1, taken)]))
        total, taken = total + features[picked].sum(axis=0), taken + len(picked)
    return np.array(lines, np.float32)


def masked(pool: PolicyPool, blocks: Sequence[Block]) -> NDArray[np.float32]:
    """The features, with left-out blocks set to zero."""
    features = pool.features
    if {"difficulty", "semantic"} <= set(blocks):
        return features
    from raysift.policy.features import DIFFICULTY

    kept = np.zeros(features.shape[1], np.float32)
    kept[:DIFFICULTY] = "difficulty" in blocks
    kept[DIFFICULTY:] = "semantic" in blocks
    return features * kept

"""Lengths of rows, the rule by which they were dealt before, and how evenly ranks work: for tests and a benchmark."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SHARED_POOL = Path(__file__).parents[1].resolve().parent / "shared/data/pool/pool_public_smoke5k.parquet"
Dealt = Sequence[Sequence[Sequence[int]]]


@dataclass(frozen=True)
class Measured:
    """Means over the steps."""

    balance: float
    """Mean work of the ranks by that of the busiest, in padded tokens."""
    best: float
    """The best balance that the longest row allows."""
    padding: float
    passes: float
    tokens_per_pass: float
    idle: float
    """Share of all ranks' time, up to the busiest one's end, in which they work on no real token."""


def drawn_lengths(rows: int, seed: int = 0) -> np.ndarray:
    """Log-normal lengths, a mean of some 200 tokens and a tail up to 2048, as real pools have."""
    return np.random.default_rng(seed).lognormal(4.9, 0.95, rows).clip(8, 2048).astype(int)


@functools.lru_cache
def pool_lengths(model: str, rows: int) -> np.ndarray:
    """Tokens of the first rows of a real pool that can be trained on."""
    from raysift.actors.effective_batches import EncodeRows, split_trainable

    talks = pq.read_table(SHARED_POOL, columns=["messages"])["messages"].slice(0, rows).to_pylist()
    table = pa.Table.from_pylist([{"id": number, "messages": talk} for number, talk in enumerate(talks)])
    encoded, _ = split_trainable(EncodeRows(model, "tulu", 2048)(table))
    return np.array([len(ids) for ids in encoded["input_ids"].to_pylist()])


def steps_of(rows: int, batch: int) -> list[np.ndarray]:
    """The whole batches of an epoch."""
    order = np.random.default_rng(0).permutation(rows)
    return [order[start : start + batch] for start in range(0, rows - batch + 1, batch)]


def by_the_longest_row(lengths: np.ndarray, limits: tuple[int, int, int], longest: int) -> Dealt:
    """The rule before: passes by the longest row of all data, rows by length, every n-th part to a rank."""
    ranks, tokens, most_rows = limits
    rows_per_pass = max(1, min(most_rows, tokens // longest))
    parts = np.array_split(
        np.argsort(lengths, kind="stable"), math.ceil(len(lengths) / (rows_per_pass * ranks)) * ranks
    )
    return [[part.tolist() for part in parts[rank::ranks]] for rank in range(ranks)]


def measure(steps: Sequence[np.ndarray], deal: Callable[[np.ndarray], Dealt]) -> Measured:
    """What a rule makes of these steps' lengths."""
    found, passes, real_tokens, padded_tokens = [], [], [], []
    for lengths in steps:
        dealt = deal(lengths)
        work = [sum(len(part) * max(lengths[row] for row in part) for part in own if part) for own in dealt]
        real, most = int(lengths.sum()), max(work)
        found.append(
            (sum(work) / len(work) / most, min(1, real / len(work) / int(lengths.max())), real / len(work) / most)
        )
        passes.append(len(dealt[0]))
        real_tokens.append(real)
        padded_tokens.append(sum(work))
    balance, best, busy = np.mean(found, axis=0)
    return Measured(
        balance=float(balance),
        best=float(best),
        padding=1 - sum(real_tokens) / sum(padded_tokens),
        passes=float(np.mean(passes)),
        tokens_per_pass=sum(real_tokens) / sum(passes) / len(dealt),
        idle=1 - float(busy),
    )

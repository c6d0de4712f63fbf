"""What faults cost: model calls after memory ran out, restarts until a row is found, and vectors on their way into a table.

    python tests/benchmarks/bench_faults.py

Counts, but for the last line, which is a ratio of times that alternate in one process.
"""

from __future__ import annotations

import random
import statistics
import time

import numpy as np
import pyarrow as pa

from raysift.actors.contract import RowActor
from raysift.jobs.on_ray.suspects import Suspects
from raysift.records import ID
from raysift.scoring.columns import EMBEDDING_SCHEMA

ROWS, ROOM, BATCHES, WIDTH = 64, 16, 3, 4096


class Small(RowActor):
    """Memory holds `ROOM` rows."""

    outputs = pa.schema([("n", pa.int64())])
    calls = 0

    def answer(self, rows):
        self.calls += 1
        if len(rows) > ROOM:
            raise RuntimeError("CUDA out of memory")
        return [{"n": 1} for _ in rows]

    def tell(self, text):
        print(f"    {text}")


def calls_after_full_memory() -> int:
    actor = Small()
    for _ in range(BATCHES):
        actor(pa.table({ID: range(ROWS)}))
    return actor.calls


def ends_until_found(rows: int, draws: int = 200) -> tuple[float, int]:
    """Mean and most processes that end until a row of a batch is named."""
    rng, found = random.Random(0), []
    for _ in range(draws):
        guilty, suspects = rng.randrange(rows), Suspects.of(rows, 10)
        while (piece := suspects.next) is not None:
            (suspects.died if piece[0] <= guilty < piece[1] else suspects.passed)()
        assert suspects.guilty == [guilty]
        found.append(suspects.ends + 2)  # one before anything is noted, one with the whole batch
    return statistics.mean(found), max(found)


class Vectors(RowActor):
    """Rows of a matrix, as lists or as they are."""

    outputs = EMBEDDING_SCHEMA

    def __init__(self, as_lists: bool) -> None:
        self.matrix = np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float32)
        self.as_lists = as_lists

    def answer(self, rows):
        vectors = self.matrix.tolist() if self.as_lists else self.matrix
        return [{"embedding": vector, "n_tokens": 1, "truncated": False} for vector in vectors]


def ratio_of_times(repeats: int = 15) -> tuple[float, float]:
    """How many times longer lists take, pair by pair; and milliseconds a row without them."""
    batch, actors, ratios, own = pa.table({ID: range(ROWS)}), (Vectors(True), Vectors(False)), [], []
    assert actors[0](batch).equals(actors[1](batch))
    for _ in range(repeats):
        seconds = []
        for actor in actors:
            clock = time.perf_counter()
            actor(batch)
            seconds.append(time.perf_counter() - clock)
        ratios.append(seconds[0] / seconds[1])
        own.append(seconds[1] / ROWS * 1000)
    return statistics.median(ratios), statistics.median(own)


if __name__ == "__main__":
    print(f"model calls for {BATCHES} batches of {ROWS} rows where memory holds {ROOM}: {calls_after_full_memory()}")
    for rows in (8, 64, 1000):
        mean, most = ends_until_found(rows)
        print(f"processes that end until one row of a batch of {rows} is named: {mean:.1f} on average, at most {most}")
    ratio, own = ratio_of_times()
    print(
        f"vectors of {WIDTH} numbers into a table: lists take {ratio:.0f} times as long as arrays ({own:.4f} ms a row)"
    )

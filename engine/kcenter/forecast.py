"""Forecasts time and memory of k-center from a short trial on this machine.

    seconds = k * rows of a shard * (seconds per product) + passes * (seconds per pass for candidates)
              + passes * rows of a shard * (seconds per row)

The trial runs the real code on random rows, for which bounds save no work, so the forecast is an upper estimate for a
machine that does nothing else.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from raysift.kcenter.picking import AIM, Picked, pick
from raysift.kcenter.shard import PASS_CENTERS, Shard

TRIAL_BYTES = 24 * 2**20
ROW_BYTES = 56  # of bookkeeping besides the vector: ids, norms, distances and their passes, places of sorted ids


@dataclass(frozen=True)
class Speed:
    """Seconds per step of the work, measured by the trial."""

    product_s: float
    """Per row and centre."""
    pass_s: float
    """Per pass: finding candidates and picking among them."""
    row_s: float
    """Per row and pass: bounds and ranks."""


def measure_speed(dimension: int, device: str = "cpu", threads: int | None = None) -> Speed:
    """Run a few passes over random rows; takes a fraction of a second."""
    rows = int(min(max(TRIAL_BYTES // (4 * dimension), 1024), 65_536))
    rng = np.random.default_rng(0)
    shard = Shard(
        np.arange(rows), rng.standard_normal((rows, dimension), np.float32), device=device, threads=threads, prune=False
    )
    picked = Picked()
    picked.add(np.array([0]), shard.vectors[:1].copy(), [0.0])
    shard.add(picked.since(0))
    products, candidates, bounds = [], [], []
    for _ in range(4):
        sent = len(picked)
        clock = time.perf_counter()
        found = shard.farthest(2 * PASS_CENTERS)
        bounds.append(time.perf_counter() - clock)
        order, squares = pick(found, PASS_CENTERS)
        candidates.append(time.perf_counter() - clock)
        picked.add(found.ids[order], found.vectors[order], np.sqrt(squares).tolist())
        clock = time.perf_counter()
        shard.add(picked.since(sent))
        products.append((time.perf_counter() - clock) / (rows * len(order)))
    shard.close()
    # The first pass warms up threads and caches.
    return Speed(min(products[1:]), min(candidates[1:]), min(bounds[1:]) / rows)


def forecast_seconds(rows: int, k: int, shards: int, speed: Speed) -> float:
    """Seconds for k centres among `rows` rows in shards that work in parallel, without the time to read vectors."""
    own, passes = rows / shards, k / AIM
    return k * own * speed.product_s + passes * (speed.pass_s + own * speed.row_s)


def forecast_bytes(rows: int, dimension: int, k: int, shards: int) -> int:
    """Bytes that one shard holds: its rows and the centres."""
    return -(-rows // shards) * (4 * dimension + ROW_BYTES) + 4 * k * dimension

"""k-center for pools larger than memory: greedy over the union of *core-sets*, found by greedy in each part.

Rows fall into parts by a hash of their id (Malkomes et al. 2015; Ceccarello et al. 2019), so that the result depends on
neither files nor workers. One part at a time is in memory, twice: to find its core-set, and to measure how far its
farthest row is from the chosen centres. The result is marked as an approximation. If each of p parts sends k rows, the
radius is at most 4 times the smallest possible one; with fewer rows there is no such guarantee. The radius is always
measured on the whole pool and compared with a lower bound: k picks and the farthest row are k + 1 rows, and if they are
r apart, two of them share a centre, so no k centres do better than r / 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysift.draws import seed_for, uniform_of
from raysift.kcenter.picking import Centers, Picked, greedy, seed_first
from raysift.kcenter.shard import NewCenters, Shard
from raysift.topk import Ids


def part_of(ids: Ids, parts: int, seed: int) -> NDArray[np.int64]:
    """The number of each id's part, from 0."""
    return (uniform_of(ids, seed_for(seed, "core-sets")) * parts).astype(np.int64)


def core_set(
    ids: ArrayLike, vectors: ArrayLike, count: int, seed: int, initial: Picked, options: dict[str, Any]
) -> Picked:
    """At most `count` rows that, with the initial centres, cover a part; `options` are those of Shard."""
    shard = Shard(ids, vectors, **options)
    found = initial.copy()
    if len(shard.ids):
        _cover(shard, count, seed, found)
    shard.close()
    return found.without_initial()


def cover_union(
    core_sets: Sequence[Picked], k: int, seed: int, initial: Picked, options: dict[str, Any]
) -> tuple[Centers, Picked]:
    """Greedy over all core-sets: its result and picks. The radius is that of the union, not of the pool."""
    ids = np.array([row for found in core_sets for row in found.ids], np.int64)
    found = [vector for part in core_sets for vector in part.vectors]
    # If there are none, every row lies on one of the initial centres.
    vectors = np.stack(found) if found else np.empty((0, len(initial.vectors[0])), np.float32)
    # Vectors of the parts are already converted to the metric.
    shard = Shard(ids, vectors, **{**options, "metric": "euclidean"})
    picked = initial.copy()
    centers = _cover(shard, k, seed, picked)
    shard.close()
    return centers, picked


def farthest_row(ids: ArrayLike, vectors: ArrayLike, centers: NewCenters, options: dict[str, Any]) -> float:
    """Largest distance of any row of a part to its nearest centre."""
    shard = Shard(ids, vectors, **options)
    found = shard.step(centers, 1)
    shard.close()
    return math.sqrt(found.squares.max(initial=0.0))


def with_radius(centers: Centers, radius: float) -> Centers:
    """The result for the whole pool, given the radius measured there."""
    apart = min([radius, *centers.radii.tolist()])
    return replace(centers, final_radius=radius, lower_bound=apart / 2, exact=False)


def _cover(shard: Shard, k: int, seed: int, picked: Picked) -> Centers:
    if not len(picked):
        seed_first(picked, [shard.first(seed)])
    return greedy(lambda batch, wanted: [shard.step(batch, wanted)], k, picked)

"""Joins by row id: which ids occur in another array, and the value of each."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raysift.topk import Ids


def is_among(ids: Ids, wanted: Ids) -> NDArray[np.bool_]:
    """Which ids occur in `wanted`."""
    return np.asarray(pc.is_in(pa.array(ids), value_set=pa.array(wanted, pa.int64())).to_numpy(zero_copy_only=False))


def look_up(ids: Ids, known: Ids, values: pa.ChunkedArray | pa.Array) -> pa.Array:
    """The value that belongs to each id, null for an id that is not among the known ones."""
    taken = values.take(pc.index_in(pa.array(ids, pa.int64()), value_set=pa.array(known, pa.int64())))
    return taken.combine_chunks() if isinstance(taken, pa.ChunkedArray) else taken

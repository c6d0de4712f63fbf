"""The pool as a policy sees it: ids, constant features and classes, sorted by id.

    id int64 | class int32 | features fixed_size_list<float32>[4 + k]

The changing inputs, the stage and how often a row was picked, are rebuilt where needed; states are never stored. Reading
needs memory for the whole table: about 160 bytes per row with 36 features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from raysift.errors import DataError
from raysift.ids import is_among
from raysift.records import ID
from raysift.storage import Location
from raysift.topk import Ids

CLASS = "class"
FEATURES = "features"
_ROW_GROUP_ROWS = 131_072


@dataclass(frozen=True)
class PolicyPool:
    """Rows by rising id; refuses data that a policy could not score."""

    ids: Ids
    features: NDArray[np.float32]
    """(rows, 4 + k): difficulty, then semantic."""
    classes: NDArray[np.int32]

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or not len(self.ids) == len(self.features) == len(self.classes):
            raise DataError(
                f"policy pool: {len(self.ids)} ids, features of shape {self.features.shape} and {len(self.classes)} "
                "classes; expected one line of features and one class per id."
            )
        falling = np.flatnonzero(np.diff(self.ids) <= 0)
        if len(falling):
            raise DataError(
                f"policy pool: {len(falling)} ids are not above the one before them (first: {int(self.ids[falling[0] + 1])} "
                f"after {int(self.ids[falling[0]])}); expected rising ids, each once. Compute the features again."
            )
        wrong = ~np.isfinite(self.features).all(axis=1)
        if wrong.any():
            raise DataError(
                f"policy pool: {int(wrong.sum())} rows have features that are NaN or infinite (ids "
                f"{self.ids[wrong][:5].tolist()} ...). Compute the features again."
            )
        if len(self.classes) and int(self.classes.min()) < 0:
            raise DataError(f"policy pool: the class {int(self.classes.min())} is below 0. Compute the features again.")

    def __len__(self) -> int:
        return len(self.ids)


def positions(pool: PolicyPool, ids: ArrayLike) -> NDArray[np.int64]:
    """The position of each id in the pool, in the given order; refuses ids that the pool lacks."""
    wanted = np.asarray(ids, np.int64)
    places = np.searchsorted(pool.ids, wanted)
    found = np.minimum(places, len(pool.ids) - 1)
    missing = wanted[pool.ids[found] != wanted] if len(pool.ids) else wanted
    if missing.size:
        raise DataError(
            f"policy pool: {missing.size} of {wanted.size} ids are not among its {len(pool.ids)} rows (ids "
            f"{missing.reshape(-1)[:5].tolist()} ...). They belong to another pool, or have no features."
        )
    return places.astype(np.int64, copy=False)


def restrict(pool: PolicyPool, ids: Ids) -> PolicyPool:
    """The rows of the pool whose ids are among `ids`."""
    kept = is_among(pool.ids, ids)
    return PolicyPool(pool.ids[kept], pool.features[kept], pool.classes[kept])


def write_pool(place: Location, pool: PolicyPool) -> None:
    """Write one file in the layout above; uncompressed, because such numbers do not compress."""
    width = pool.features.shape[1]
    schema = pa.schema([(ID, pa.int64()), (CLASS, pa.int32()), (FEATURES, pa.list_(pa.float32(), width))])
    plain = {"compression": "none", "use_dictionary": False}
    with pq.ParquetWriter(place.path, schema, filesystem=place.fs, **plain) as writer:
        for start in range(0, len(pool), _ROW_GROUP_ROWS):
            part = slice(start, start + _ROW_GROUP_ROWS)
            numbers = np.ascontiguousarray(pool.features[part], np.float32)
            cells = pa.FixedSizeListArray.from_arrays(pa.array(numbers.reshape(-1)), width)
            columns = [pa.array(pool.ids[part], pa.int64()), pa.array(pool.classes[part], pa.int32()), cells]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def read_pool(place: Location) -> PolicyPool:
    """Read the pool of a `features.parquet`."""
    with pq.ParquetFile(place.path, filesystem=place.fs) as file:
        width = _check_columns(place, file.schema_arrow)
        rows = file.metadata.num_rows
        ids, classes = np.empty(rows, np.int64), np.empty(rows, np.int32)
        features, done = np.empty((rows, width), np.float32), 0
        for batch in file.iter_batches(_ROW_GROUP_ROWS, columns=[ID, CLASS, FEATURES]):
            gaps = sum(column.null_count for column in batch.columns)
            cells = batch.column(FEATURES).flatten()
            if gaps or cells.null_count:
                raise DataError(f"policy pool: {place} has {gaps + cells.null_count} gaps. Compute the features again.")
            part = slice(done, done + len(batch))
            ids[part], classes[part] = batch.column(ID).to_numpy(), pc.cast(batch.column(CLASS), pa.int32()).to_numpy()
            features[part] = np.asarray(cells.to_numpy(), np.float32).reshape(len(batch), width)
            done = part.stop
    return PolicyPool(ids, features, classes)


def _check_columns(place: Location, schema: pa.Schema) -> int:
    """Check the columns; returns the number of features per row."""
    missing = [name for name in (ID, CLASS, FEATURES) if name not in schema.names]
    if missing:
        raise DataError(
            f"policy pool: {place} lacks the columns {missing} (found: {schema.names}). Give the features.parquet of a run."
        )
    kind = schema.field(FEATURES).type
    if not (pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type)):
        raise DataError(f"policy pool: {place}: column '{FEATURES}' is {kind}, expected lists of float32 of one size.")
    return int(kind.list_size)

"""A pool is written and read back, and what a policy could not score is refused."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysift.errors import DataError
from raysift.policy import pool as module
from raysift.policy.pool import PolicyPool, positions, read_pool, write_pool
from raysift.storage import open_location


def some_pool(rows=50, k=3):
    rng = np.random.default_rng(0)
    ids = np.sort(rng.choice(10**12, rows, replace=False)) - 5 * 10**11
    return PolicyPool(ids, rng.standard_normal((rows, 4 + k)).astype(np.float32), rng.integers(0, 3, rows, np.int32))


@pytest.mark.parametrize("group", [7, 1000])
def test_a_pool_is_read_as_it_was_written(tmp_path, monkeypatch, group):
    monkeypatch.setattr(module, "_ROW_GROUP_ROWS", group)
    pool, place = some_pool(), open_location(tmp_path / "features.parquet")
    write_pool(place, pool)
    found = read_pool(place)
    assert found.ids.tolist() == pool.ids.tolist()
    assert found.features.dtype == np.float32 and np.array_equal(found.features, pool.features)
    assert found.classes.dtype == np.int32 and np.array_equal(found.classes, pool.classes)
    schema = pq.read_schema(place.path)
    assert schema.names == ["id", "class", "features"]
    assert schema.field("features").type == pa.list_(pa.float32(), 7)


def test_an_empty_pool_is_one(tmp_path):
    pool, place = some_pool(0), open_location(tmp_path / "features.parquet")
    write_pool(place, pool)
    assert len(read_pool(place)) == 0
    with pytest.raises(DataError, match="1 of 1 ids are not among its 0 rows"):
        positions(pool, [3])


def test_positions_are_those_of_the_ids_in_the_order_asked():
    pool = some_pool()
    wanted = np.array([[31, 0], [49, 31]])
    assert np.array_equal(positions(pool, pool.ids[wanted]), wanted)
    assert positions(pool, []).tolist() == []
    with pytest.raises(DataError, match=r"2 of 3 ids are not among its 50 rows \(ids \[7, 1000000000000\]"):
        positions(pool, [7, pool.ids[3], 10**12])


def test_ids_that_do_not_rise_and_numbers_that_are_none_are_refused():
    pool = some_pool(4)
    twice, broken = np.array([1, 2, 2, 3]), pool.features.copy()
    broken[2, 1] = np.nan
    with pytest.raises(DataError, match=r"1 ids are not above the one before them \(first: 2 after 2"):
        PolicyPool(twice, pool.features, pool.classes)
    with pytest.raises(DataError, match="1 rows have features that are NaN or infinite"):
        PolicyPool(pool.ids, broken, pool.classes)
    with pytest.raises(DataError, match="expected one line of features and one class per id"):
        PolicyPool(pool.ids[:3], pool.features, pool.classes)
    with pytest.raises(DataError, match="class -1 is below 0"):
        PolicyPool(pool.ids, pool.features, pool.classes - 1 - pool.classes.min())


def test_a_file_of_another_kind_is_refused(tmp_path):
    place = open_location(tmp_path / "x.parquet")
    pq.write_table(pa.table({"id": [1], "class": [0]}), place.path)
    with pytest.raises(DataError, match=r"lacks the columns \['features'\]"):
        read_pool(place)
    pq.write_table(pa.table({"id": [1], "class": [0], "features": [[1.0]]}), place.path)
    with pytest.raises(DataError, match="expected lists of float32 of one size"):
        read_pool(place)
    cells = pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2))
    pq.write_table(pa.table({"id": [1, 2], "class": [0, 1], "features": cells}), place.path)
    with pytest.raises(DataError, match="has 1 gaps"):
        read_pool(place)

"""What is written is read by id; what is no vector is refused with its id or, where it carries an error, skipped and counted."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysift.errors import DataError
from raysift.scoring import embeddings
from raysift.scoring.embeddings import deal, find_vectors, read_embeddings, survey
from raysift.storage import open_location

from ... import tiny_embeddings  # noqa: TID252
from ...tiny_embeddings import write_embeddings  # noqa: TID252


@pytest.fixture
def folder(tmp_path):
    return open_location(tmp_path)


def random_rows(count, dimension, seed=0):
    rng = np.random.default_rng(seed)
    return rng.permutation(10 * count)[:count] - count, np.float32(rng.standard_normal((count, dimension)))


def write_table(place, ids, cells, kind, errors=None):
    columns = {"id": pa.array(ids, pa.int64()), "embedding": pa.array(cells, kind)}
    if errors is not None:
        columns["error"] = pa.array(errors, pa.string())
    pq.write_table(pa.table(columns), place.path, row_group_size=3)
    return place


def test_a_file_holds_its_rows_by_id_and_gives_them_back(folder, monkeypatch):
    monkeypatch.setattr(tiny_embeddings, "_ROW_GROUP_BYTES", 4 * 5 * 100)
    monkeypatch.setattr(embeddings, "BATCH_ROWS", 7)
    ids, vectors = random_rows(250, 5)
    write_embeddings(folder / "e.parquet", ids, vectors, {10**6: "no text", -(10**6): "cut"})
    table = survey([folder / "e.parquet"])
    assert (table.dimension, table.failed, len(table.pieces)) == (5, 2, 3)
    assert table.ids.tolist() == sorted(ids.tolist())
    found, read = read_embeddings(table.pieces, table.dimension)
    order = np.argsort(ids)
    assert found.tolist() == ids[order].tolist()
    assert (read == vectors[order]).all()
    stored = pq.read_table((folder / "e.parquet").path)
    assert stored["id"].to_pylist() == sorted([*ids.tolist(), 10**6, -(10**6)])
    assert stored["error"].to_pylist()[0] == "cut"
    assert stored["embedding"].null_count == 2


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float32()),
        pa.list_(pa.float32(), 2),
        pa.large_list(pa.float32()),
        pa.list_(pa.float64()),
        pa.list_(pa.float16()),
    ],
    ids=str,
)
def test_lists_of_any_kind_are_read_and_failed_rows_skipped(folder, kind):
    cells = [[0.5, 1], None, [2, 3], None, [4, 5]]
    if kind.value_type == pa.float16():
        cells = [None if cell is None else np.array(cell, np.float16) for cell in cells]
    place = write_table(folder / "e.parquet", [5, 4, 3, 2, 1], cells, kind, [None, "no text", None, "no text", None])
    table = survey([place])
    assert (table.dimension, table.failed) == (2, 2)
    ids, vectors = read_embeddings(table.pieces, table.dimension)
    assert ids.tolist() == [5, 3, 1]
    assert vectors.dtype == np.float32
    assert vectors.tolist() == [[0.5, 1], [2, 3], [4, 5]]


def test_a_table_without_errors_is_read_whole(folder):
    place = write_table(folder / "e.parquet", [1, 2], [[1.0], [2.0]], pa.list_(pa.float32()))
    assert survey([place]).failed == 0


def test_only_wanted_ids_take_memory(folder):
    ids, vectors = random_rows(100, 3)
    write_embeddings(folder / "e.parquet", ids, vectors)
    table = survey([folder / "e.parquet"])
    found, read = read_embeddings(table.pieces, 3, lambda some: some % 2 == 0)
    assert set(found.tolist()) == {i for i in ids.tolist() if i % 2 == 0}
    assert read.shape == (len(found), 3)


def test_vectors_are_found_by_id_in_the_order_asked_for(folder):
    ids, vectors = random_rows(90, 4)
    for number, part in enumerate(np.array_split(np.arange(90), 3)):
        write_embeddings(folder / f"{number}.parquet", ids[part], vectors[part])
    files = folder.files(".parquet")
    asked = np.random.default_rng(1).permutation(90)[:20]
    found, read = find_vectors(files, ids[asked])
    assert (found == ids[asked]).all()
    assert (read == vectors[asked]).all()
    with pytest.raises(DataError, match=r"1 of 2 rows have no vector \(ids \[999999\]"):
        find_vectors(files, [int(ids[0]), 999_999])


@pytest.mark.parametrize("shards", [1, 2, 7, 40])
def test_pieces_are_dealt_once_each_and_evenly(folder, shards, monkeypatch):
    monkeypatch.setattr(tiny_embeddings, "_ROW_GROUP_BYTES", 4 * 10)
    ids, vectors = random_rows(300, 1)
    write_embeddings(folder / "e.parquet", ids, vectors)
    pieces = survey([folder / "e.parquet"]).pieces
    dealt = deal(pieces, shards)
    assert len(dealt) == shards
    assert [piece for part in dealt for piece in part] == list(pieces)
    sizes = [sum(piece.rows for piece in part) for part in dealt]
    assert max(sizes) - min(sizes) <= 10


LIST = pa.list_(pa.float32())
BAD = {
    r"2 rows have no vector of 2 numbers and no error either \(ids \[2, 3\]": ([[1, 2], None, [1]], LIST, [None] * 3),
    r"1 vectors hold NaN, infinity or gaps \(ids \[2\]": ([[1, 2], [np.nan, 1], [1, 1]], LIST, [None] * 3),
    r"2 vectors hold NaN, infinity or gaps \(ids \[1, 3\]": ([[1, None], [1, 1], [1, np.inf]], LIST, [None] * 3),
    "none of the 3 rows in 1 files has a vector": ([None] * 3, LIST, ["lost"] * 3),
    "no row has a vector, and some have no error either": ([None] * 3, LIST, ["lost", None, "lost"]),
    "column 'embedding' is .*int64.*, expected lists of float32": ([[1], [2], [3]], pa.list_(pa.int64()), [None] * 3),
}


@pytest.mark.parametrize("message", BAD)
def test_a_row_that_is_neither_sound_nor_failed_is_refused_with_its_id(folder, message):
    cells, kind, errors = BAD[message]
    place = write_table(folder / "e.parquet", [1, 2, 3], cells, kind, errors)
    with pytest.raises(DataError, match=message):
        table = survey([place])
        read_embeddings(table.pieces, table.dimension)


def test_files_that_do_not_belong_together_are_refused(folder):
    for name, dimension in (("a", 2), ("b", 3)):
        write_embeddings(folder / f"{name}.parquet", [ord(name)], np.zeros((1, dimension)))
    with pytest.raises(DataError, match=r"vectors of 2 numbers in .*a\.parquet and of 3 in .*b\.parquet"):
        survey(folder.files(".parquet"))
    with pytest.raises(DataError, match=r"1 ids occur more than once \(\[97\]"):
        survey([folder / "a.parquet", folder / "a.parquet"])
    pq.write_table(pa.table({"id": [1], "vector": [[1.0]]}), (folder / "c.parquet").path)
    with pytest.raises(DataError, match=r"c\.parquet lacks the columns \['embedding'\] \(found: \['id', 'vector'\]\)"):
        survey([folder / "c.parquet"])
    with pytest.raises(DataError, match="an id occurs more than once"):
        write_embeddings(folder / "d.parquet", [1, 1], np.zeros((2, 2)))
    with pytest.raises(DataError, match="expected one vector per id"):
        write_embeddings(folder / "d.parquet", [1], np.zeros((2, 2)))

"""Token files: the same rows as in memory, the same bytes for the same rows, and one copy for a machine."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from raysift.actors import token_files
from raysift.actors.encoded_rows import EncodedRows
from raysift.actors.token_files import MappedRows, TokenFiles, forget_copies, write_part
from raysift.errors import StageError
from raysift.storage import Location, open_location

KIND = pa.schema([("id", pa.int64()), ("input_ids", pa.list_(pa.int32())), ("counted", pa.list_(pa.bool_()))])


def rows_of(count=60, seed=0):
    rng = np.random.default_rng(seed)
    ids = rng.choice(10**15, count, replace=False) - 5 * 10**14
    lines = []
    for row in ids.tolist():
        length = int(rng.integers(2, 12))
        tokens = rng.integers(0, 2**17, length).tolist()
        lines.append({"id": row, "input_ids": tokens, "counted": [False, *(rng.random(length - 2) < 0.5), True]})
    return pa.Table.from_pylist(lines, schema=KIND)


def files_of(folder, table, parts):
    place, whole = open_location(folder), table.sort_by("id")
    bounds = np.linspace(0, len(whole), parts + 1).astype(int)
    return TokenFiles(
        tuple(
            write_part(place, number, whole.slice(start, stop - start))
            for number, (start, stop) in enumerate(pairwise(bounds.tolist()))
        )
    )


@pytest.mark.parametrize("parts", [1, 3, 70])
def test_mapped_rows_are_those_in_memory(tmp_path, parts):
    table = rows_of()
    files, plain = files_of(tmp_path, table, parts), EncodedRows(table)
    mapped = files.open()
    assert isinstance(mapped, MappedRows) and len(mapped) == len(plain)
    for name in ("ids", "lengths", "labels_per_row"):
        assert getattr(mapped, name).tolist() == getattr(plain, name).tolist()
    assert files.ids().tolist() == plain.ids.tolist() and files.longest == plain.lengths.max()
    order = np.random.default_rng(1).permutation(len(plain))
    assert np.array_equal(mapped.positions(plain.ids[order]), order)
    for one, other in zip(mapped.token_rows(order), plain.token_rows(order), strict=True):
        assert one.id == other.id and one.input_ids.tolist() == other.input_ids.tolist()
        assert one.labels.tolist() == other.labels.tolist() and one.labels.dtype == other.labels.dtype


def test_the_same_rows_give_the_same_file_and_other_rows_another(tmp_path):
    table = rows_of()
    one, again, other = (
        write_part(open_location(tmp_path), 0, rows)
        for rows in (table, table.take(np.random.default_rng(2).permutation(60)), table.slice(1))
    )
    assert one.path == again.path != other.path


@dataclasses.dataclass
class Counted:
    opened: int = 0


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A folder that counts as another machine's, and how often a file of it was opened to be fetched."""
    monkeypatch.setattr(token_files.tempfile, "gettempdir", lambda: str(tmp_path))
    (tmp_path / "store").mkdir()
    calls, usual = Counted(), token_files._fetched
    store = Location(pafs.SubTreeFileSystem(str(tmp_path / "store"), pafs.LocalFileSystem()), "")
    opened = Location.open_input

    def counted(self):
        calls.opened += self.fs.type_name == "subtree"
        return opened(self)

    monkeypatch.setattr(Location, "open_input", counted)
    assert usual is token_files._fetched
    return store, calls


def test_a_machine_fetches_a_file_once_and_forgets_it_when_told(remote, tmp_path):
    store, calls = remote
    table = rows_of()
    files = TokenFiles((dataclasses.replace(write_part(open_location(tmp_path / "store"), 0, table), fs=store.fs),))
    files = TokenFiles((dataclasses.replace(files.parts[0], path=files.parts[0].name),))
    first, second = files.open(), files.open()
    assert calls.opened == 1, "the second process maps the copy of the first"
    assert first.token_rows([5])[0].input_ids.tolist() == second.token_rows([5])[0].input_ids.tolist()
    forget_copies([files.parts[0].name])
    assert not token_files.cache_folder().exists()
    assert len(first.token_rows(range(60))) == 60, "a map outlives its file"


def test_a_copy_that_broke_off_is_refused_and_leaves_nothing(remote, tmp_path):
    store, _ = remote
    place = write_part(open_location(tmp_path / "store"), 0, rows_of())
    content = place.read_bytes()
    place.write(content[:-40])
    with pytest.raises(StageError, match="is not what was written"):
        TokenFiles((Location(store.fs, place.name),)).open()
    assert [file.name for file in token_files.cache_folder().iterdir()] == [f"{place.name}.lock"]
    place.write(b"something else altogether, of another length")
    with pytest.raises(StageError, match="no token file of this version"):
        TokenFiles((place,)).open()

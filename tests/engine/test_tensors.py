"""Tensors in files: what is written is read back, and equal content has equal bytes."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from raysift.errors import DataError
from raysift.gradients.moments import Moments, save_moments
from raysift.policy.network import Acquisition
from raysift.policy.saved import load_policy, save_policy
from raysift.policy.settings import PolicySettings
from raysift.storage import open_location
from raysift.tensors import load_tensors, map_tensor, save_tensors, writing_rows

METADATA = {name: f"value of {name}" for name in "zyxwabcd"}


def test_what_is_written_is_read_back_whatever_its_shape_and_layout(tmp_path):
    tensors = {
        "matrix": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "number": np.array(3.0),
        "empty": np.empty((0, 4), np.int32),
    }
    place = open_location(tmp_path / "a.safetensors")
    for metadata in (METADATA, {}):
        save_tensors(place, tensors, metadata)
        found, told = load_tensors(place, "test")
        assert told == metadata
        assert found.keys() == tensors.keys()
        for name, value in tensors.items():
            assert (found[name].shape, found[name].dtype) == (value.shape, value.dtype)
            np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize("kind", ["tensors", "moments", "policy"])
def test_equal_content_has_equal_bytes(tmp_path, kind):
    """Of eight entries the library alone puts the metadata into the same order twice in 40,320 times."""
    names = ["z.lora_A", "a.lora_B"]
    numbers = {name: np.arange(6.0, dtype=np.float32) for name in names}
    contents = set()
    for number in range(8):
        place = open_location(tmp_path / f"{number}.safetensors")
        if kind == "tensors":
            save_tensors(place, dict(reversed(numbers.items())) if number % 2 else numbers, METADATA)
        elif kind == "moments":
            save_moments(place, Moments(numbers, numbers, step=3))
        else:
            save_policy(place, Acquisition(4, (8,), seed=0), PolicySettings(hidden=[8]))
            assert list(load_policy(place)[1].hidden) == [8]
        contents.add(place.read_bytes())
    assert len(contents) == 1


@pytest.mark.parametrize("content", [b"", b"\x00" * 20, b"\xff" * 4])
def test_what_is_no_such_file_is_named(tmp_path, content):
    place = open_location(tmp_path / "damaged.safetensors")
    place.write(content)
    with pytest.raises(DataError, match=r"weights: .*damaged\.safetensors is no safetensors file or is damaged"):
        load_tensors(place, "weights")


def test_a_matrix_written_row_by_row_is_the_file_of_the_whole_matrix_and_can_be_mapped(tmp_path):
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    whole, rows = (open_location(tmp_path / name) for name in ("whole.safetensors", "rows.safetensors"))
    for metadata in (METADATA, {}):
        save_tensors(whole, {"m": matrix}, metadata)
        with writing_rows(rows, "m", matrix.shape, metadata) as write:
            for row in matrix.astype(np.float64):
                assert not metadata or not rows.exists()
                write(row)
        assert rows.read_bytes() == whole.read_bytes()
    mapped = map_tensor(rows.path, "m")
    assert isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(mapped, matrix)
    with pytest.raises(DataError, match="no float32 tensor 'other'"):
        map_tensor(rows.path, "other")


def test_a_matrix_that_lacks_rows_or_whose_writing_ends_early_leaves_no_file(tmp_path):
    place, writing = open_location(tmp_path / "rows.safetensors"), partial(writing_rows, name="m", metadata={})
    with pytest.raises(DataError, match=r"1 of 2 rows of .* were not written"), writing(place, shape=(2, 4)) as write:
        write(np.zeros(4))
    with pytest.raises(DataError, match=r"has shape \(3,\), expected \(4,\)"), writing(place, shape=(1, 4)) as write:
        write(np.zeros(3))
    with pytest.raises(KeyError), writing(place, shape=(1, 4)) as write:
        write(np.zeros(4))
        raise KeyError
    assert not place.exists()

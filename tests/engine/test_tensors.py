"""Tensors in files: what is written is read back, and equal content has equal bytes."""

from __future__ import annotations

import numpy as np
import pytest

from raysift.errors import DataError
from raysift.gradients.moments import Moments, save_moments
from raysift.policy.network import Acquisition
from raysift.policy.saved import load_policy, save_policy
from raysift.policy.settings import PolicySettings
from raysift.storage import open_location
from raysift.tensors import load_tensors, save_tensors

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

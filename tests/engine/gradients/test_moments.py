"""Moments survive a round trip by name, in order, with the step; another file is refused."""

from __future__ import annotations

import numpy as np
import pytest

from raysift.errors import DataError
from raysift.gradients.moments import Made, Moments, load_moments, open_moments, save_moments
from raysift.storage import open_location
from raysift.tensors import save_tensors, write_floats


def some_moments() -> Moments:
    draw = np.random.default_rng(0).standard_normal
    names = ["z.lora_A", "a.lora_B", "m.lora_A"]  # registration order is not the alphabet's
    return Moments(
        {name: draw((2, 3)).astype(np.float32) for name in names},
        {name: draw((2, 3)).astype(np.float32) ** 2 for name in names},
        step=17,
        epsilon=1e-6,
    )


def test_a_round_trip_keeps_names_order_values_and_step(tmp_path):
    place, moments = open_location(tmp_path / "moments.safetensors"), some_moments()
    save_moments(place, moments)
    again = load_moments(place)
    assert again.names == moments.names
    assert (again.step, again.beta1, again.beta2, again.epsilon) == (17, 0.9, 0.999, 1e-6)
    for name in moments.names:
        np.testing.assert_array_equal(again.exp_avg[name], moments.exp_avg[name])
        np.testing.assert_array_equal(again.exp_avg_sq[name], moments.exp_avg_sq[name])


def test_tensors_are_named_so_that_any_safetensors_reader_finds_them(tmp_path):
    from safetensors.numpy import load_file

    save_moments(open_location(tmp_path / "m.safetensors"), some_moments())
    assert set(load_file(tmp_path / "m.safetensors")) == {
        f"{kind}.{name}" for kind in ("exp_avg", "exp_avg_sq") for name in ("z.lora_A", "a.lora_B", "m.lora_A")
    }


def test_absent_damaged_and_foreign_files_are_told_apart(tmp_path):
    from safetensors.numpy import save_file

    with pytest.raises(DataError, match="there is no"):
        load_moments(open_location(tmp_path / "none.safetensors"))
    (tmp_path / "half.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(DataError, match="damaged"):
        load_moments(open_location(tmp_path / "half.safetensors"))
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match="format None"):
        load_moments(open_location(tmp_path / "model.safetensors"))


def test_moments_of_different_parameters_are_not_written(tmp_path):
    moments = some_moments()
    crooked = Moments(moments.exp_avg, dict(reversed(moments.exp_avg_sq.items())), 1)
    with pytest.raises(DataError, match="same parameters"):
        save_moments(open_location(tmp_path / "m.safetensors"), crooked)


def test_moments_made_one_by_one_give_the_same_file_and_are_read_one_by_one(tmp_path):
    whole, place = some_moments(), open_location(tmp_path / "made.safetensors")
    asked = []

    def making(arrays):
        return Made(dict.fromkeys(whole.names, (2, 3)), lambda name: asked.append(name) or arrays[name])

    save_moments(open_location(tmp_path / "whole.safetensors"), whole)
    made = Moments(making(whole.exp_avg), making(whole.exp_avg_sq), whole.step, epsilon=whole.epsilon)
    save_moments(place, made)
    assert (tmp_path / "made.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert sorted(asked) == sorted([*whole.names, *whole.names]), "each is made once"
    save_moments(None, made)
    assert len(asked) == 4 * len(whole.names), "without a place all are asked for, as ranks that do not write must"
    with open_moments(place) as found:
        assert (found.names, found.step, found.epsilon) == (whole.names, whole.step, whole.epsilon)
        for name in whole.names:
            np.testing.assert_array_equal(found.exp_avg[name], whole.exp_avg[name])
            np.testing.assert_array_equal(found.exp_avg_sq[name], whole.exp_avg_sq[name])


def test_floats_written_one_by_one_are_the_file_of_arrays_written_at_once(tmp_path):
    draw = np.random.default_rng(0).standard_normal
    tensors = {"b.x": draw((3, 2)).astype(np.float32), "a": np.float32(draw()), "b": np.zeros((0, 4), np.float32)}
    save_tensors(open_location(tmp_path / "once"), tensors, {"kind": "test"})
    shapes = {name: np.shape(value) for name, value in tensors.items()}
    write_floats(open_location(tmp_path / "streamed"), shapes, tensors.__getitem__, {"kind": "test"})
    assert (tmp_path / "streamed").read_bytes() == (tmp_path / "once").read_bytes()

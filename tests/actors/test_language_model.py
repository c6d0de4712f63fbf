"""How a run's settings reach the loading of a model, and what is missing there is named."""

from __future__ import annotations

import importlib.util
import shutil

import pytest

from raysift.actors.language_model import load_language_model, load_tokenizer, portable_name
from raysift.errors import ConfigError, ModelError
from raysift.jobs.gradients.stages import gradient_loading
from raysift.nano import nano_path
from raysift.settings.config import make_config


def test_four_bits_without_the_package_says_what_to_install(tiny, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'raysift\[4bit\]'"):
        load_language_model(tiny, device="cpu", quantization="4bit")


def test_the_setting_of_a_run_reaches_training_and_gradients():
    settings = {"method": "rose", "pool": "pool.jsonl", "model": "owner/name"}
    config = make_config(settings | {"train": {"quantization": "4bit"}})
    assert gradient_loading(config, config.rose)["quantization"] == "4bit"
    apart = make_config(settings | {"rose": {"warmup": {"quantization": "4bit"}}})
    assert apart.train.quantization == "none" and gradient_loading(apart, apart.rose)["quantization"] == "4bit"
    with pytest.raises(ConfigError, match=r"train\.quantization.*set method to lora"):
        make_config(settings | {"train": {"method": "full", "quantization": "4bit"}})


@pytest.mark.parametrize("damage", ["half", "no pickle"])
def test_damaged_weights_are_an_error_of_the_model(tmp_path, damage):
    place = tmp_path / "m"
    shutil.copytree(nano_path("encoder"), place)
    weights = place / "model.safetensors"
    if damage == "half":
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    else:
        weights.rename(place / "pytorch_model.bin").write_bytes(b"no pickle")
    with pytest.raises(ModelError, match=r"cannot load the language model of .*/m' from the folder"):
        load_language_model(str(place), device="cpu")


def test_a_damaged_tokenizer_is_an_error_of_the_model(tmp_path):
    shutil.copytree(nano_path("encoder"), tmp_path / "m")
    (tmp_path / "m/tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ModelError, match="cannot load the tokenizer"):
        load_tokenizer(str(tmp_path / "m"))


def test_nano_stays_nano_beside_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nano").mkdir()
    (tmp_path / "m").mkdir()
    assert (portable_name("nano"), portable_name("m")) == ("nano", str(tmp_path / "m"))

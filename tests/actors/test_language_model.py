"""How a run's settings reach the loading of a model, and what is missing there is named."""

from __future__ import annotations

import importlib.util

import pytest

from raysift.actors.language_model import load_language_model
from raysift.errors import ConfigError, ModelError
from raysift.jobs.gradients.stages import loading
from raysift.settings.config import make_config


def test_four_bits_without_the_package_says_what_to_install(tiny, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'raysift\[4bit\]'"):
        load_language_model(tiny, device="cpu", quantization="4bit")


def test_the_setting_of_a_run_reaches_training_and_gradients():
    settings = {"method": "rose", "pool": "pool.jsonl", "model": "owner/name"}
    config = make_config(settings | {"train": {"quantization": "4bit"}})
    assert loading(config, config.rose)["quantization"] == "4bit"
    apart = make_config(settings | {"rose": {"warmup": {"quantization": "4bit"}}})
    assert apart.train.quantization == "none" and loading(apart, apart.rose)["quantization"] == "4bit"
    with pytest.raises(ConfigError, match=r"train\.quantization.*set method to lora"):
        make_config(settings | {"train": {"method": "full", "quantization": "4bit"}})

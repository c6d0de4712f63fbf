"""A model that scores, embeds or answers has one number type for all workers, and the type identifies what it says."""

import json

import pytest

from raysift.jobs.runs.models import computing, find_model, number_type
from raysift.jobs.runs.run import Run, named_values
from raysift.settings import hardware
from raysift.settings.config import make_config


@pytest.fixture(params=[True, False], ids=["bf16 in hardware", "no bf16"])
def fast(request, monkeypatch):
    monkeypatch.setattr(hardware, "multiplies_bf16", lambda: request.param)
    return request.param


@pytest.mark.parametrize("stored", ["bfloat16", "float32", None])
def test_the_weights_and_the_hardware_decide(tmp_path, fast, stored):
    (tmp_path / "config.json").write_text(json.dumps({"dtype": stored} if stored else {}))
    wanted = "bf16" if fast and stored == "bfloat16" else "fp32"
    assert number_type(make_config({"method": "less"}), str(tmp_path)) == wanted
    assert number_type(make_config({"method": "less", "dtype": "bf16"}), str(tmp_path)) == "bf16"


def test_the_type_is_part_of_what_identifies_an_answer(tmp_path):
    run = Run(tmp_path / "run")
    as_it_is, rounded = (make_config({"method": "less", **given}) for given in ({}, {"dtype": "bf16"}))
    model = find_model(run, as_it_is)
    assert computing(as_it_is, model)["dtype"] == "fp32"
    assert computing(as_it_is, model) != computing(rounded, model)
    assert model.identity == find_model(run, rounded).identity  # the model is the same


def test_all_types_of_a_stage_are_found_for_the_screen():
    assert set(named_values({"train": {"dtype": "fp32"}, "model": {"dtype": "bf16", "content": "x"}}, "dtype")) == {
        "fp32",
        "bf16",
    }

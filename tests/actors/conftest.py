"""A tiny model with rows to train it on, and GPUs that are not there."""

from __future__ import annotations

import pyarrow as pa
import pytest

from raysift.actors import language_model
from raysift.actors.effective_batches import EncodeRows, split_trainable

from ..tiny_models import tiny_llama  # noqa: TID252
from ..tiny_tunes import conversations  # noqa: TID252


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def rows(tiny) -> pa.Table:
    return split_trainable(EncodeRows(tiny, "auto", 64)(conversations()))[0]


@pytest.fixture
def pretended(monkeypatch):
    """A map layer by layer as for two GPUs, with the CPU in place of both."""
    from peft import PeftModel
    from transformers import PreTrainedModel

    layers = ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head")
    monkeypatch.setattr(language_model, "spread_over_gpus", lambda: dict.fromkeys(layers, "cpu"))
    monkeypatch.setattr(language_model, "_refuse_offloaded", lambda *_: None)
    for kind in (PreTrainedModel, PeftModel):
        monkeypatch.setattr(kind, "to", lambda *_: pytest.fail("a model that is spread must not be moved"))

"""A language model and its tokenizer, loaded once and shared by the actors of one process."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from raysift.actors.language_model import load_language_model, load_tokenizer
from raysift.errors import DataError, ModelError
from raysift.storage import Location
from raysift.templates import encode_conversation, resolve_template

NO_LIMIT = 2**31


class LoadedModel(NamedTuple):
    """A loaded model and its tokenizer; every actor accepts it in place of a model's name."""

    model: Any
    tokenizer: Any


def load(
    model: str | LoadedModel,
    adapter: str | Location | None = None,
    dtype: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    trust_remote_code: bool = False,
    quantization: str = "none",
) -> LoadedModel:
    """The named model, ready to answer; a model that is already loaded is returned unchanged."""
    if isinstance(model, LoadedModel):
        if adapter is not None:
            raise ModelError("model: an adapter cannot be put on a model that is loaded already; load both together.")
        return model
    use_threads(threads)
    tokenizer = load_tokenizer(model, trust_remote_code)
    found = load_language_model(model, adapter, dtype, device, trust_remote_code, quantization)
    return LoadedModel(found, tokenizer)


def use_threads(threads: int | None) -> None:
    """Let torch compute on so many threads in this process; None changes nothing."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def budget_on(model: Any, budgets: Mapping[str, int]) -> int:
    """The batch size for the model's device; a device that `budgets` does not name gets that of a GPU."""
    return budgets.get(model.device.type, budgets["cuda"])


def longest_input(model: Any, max_length: int | None) -> int:
    """Tokens that fit: `max_length`, but at most as many as the model has positions."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    positions = getattr(config, "max_position_embeddings", None) or NO_LIMIT
    return min(positions, max_length or NO_LIMIT)


def takes(model: Any, argument: str) -> bool:
    """Whether the model's forward, also that of a base under a PEFT adapter, has an argument of this name."""
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    return argument in inspect.signature(bare.forward).parameters


def end_tokens(loaded: LoadedModel, template: str) -> frozenset[int]:
    """Tokens that end an answer: the tokenizer's, the model's, and the one that ends a turn in training.

    The configuration of a base model tuned with a chat template often lacks the last of these.
    """
    model, tokenizer = loaded
    ends = {tokenizer.eos_token_id}
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends.update(own if isinstance(own, list | tuple) else [own])
    resolve_template(tokenizer, template)
    try:
        turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        encoded = encode_conversation(tokenizer, turn, NO_LIMIT, template)
    except DataError:  # a template that refuses so short a conversation may still accept real ones
        return frozenset(ends - {None})
    learnt = [label for label in encoded.labels if label >= 0]
    special = set(tokenizer.all_special_ids)
    special |= {number for number, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
    if learnt and learnt[-1] in special:
        ends.add(learnt[-1])
    return frozenset(ends - {None})

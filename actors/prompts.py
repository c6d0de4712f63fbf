"""The work before and after the model: encode prompts as tokens, and decode generated tokens into answers.

All backends share it, so that prompts, limits, ends of answers and failures are the same on all of them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from raysift.actors.contract import Failed, Row
from raysift.actors.language_model import load_tokenizer, resolve_model, source_of
from raysift.actors.loaded import LoadedModel, end_tokens, longest_input
from raysift.errors import DataError, ModelError
from raysift.records import ChatMessage
from raysift.scoring.questions import split_exchange
from raysift.templates import encode_prompt

ANSWER = "answer"
NEW_TOKENS = "n_new_tokens"
FINISHED = "finished"


class ModelCard(NamedTuple):
    """A model's configuration and generation defaults, read without its weights."""

    config: Any
    generation_config: Any


class Prompts(NamedTuple):
    """Turns messages into prompt tokens, and answer tokens into the columns of an answer."""

    tokenizer: Any
    template: str
    ends: frozenset[int]
    longest_prompt: int
    max_new_tokens: int
    vocabulary: int | None = None
    """How many tokens the model has embeddings for. A tokenizer may know more. Fed such a token, a model on a GPU
    crashes, and vLLM answers from whatever is in memory there."""

    def encode(self, messages: Sequence[ChatMessage]) -> list[int] | Failed:
        """The prompt's tokens, or why it cannot be asked; the failure's message holds no text of the row."""
        try:
            prompt = encode_prompt(self.tokenizer, messages, self.template)
        except DataError as error:
            return Failed(str(error), of_the_row=True)
        if not prompt:
            return Failed("the prompt has no tokens", of_the_row=True)
        if len(prompt) > self.longest_prompt:
            return Failed(
                f"the prompt has {len(prompt)} tokens; with max_new_tokens={self.max_new_tokens} there is room for "
                f"{max(0, self.longest_prompt)}",
                of_the_row=self.longest_prompt > 0,
            )
        if self.vocabulary is not None and max(prompt) >= self.vocabulary:
            return Failed(f"the prompt has token {max(prompt)}; the model knows those below {self.vocabulary}")
        return prompt

    def encode_question(self, messages: Sequence[ChatMessage]) -> list[int] | Failed:
        """The prompt's tokens for a whole conversation without its last answer, or why it cannot be asked."""
        try:
            return self.encode(question_of(messages))
        except DataError as error:
            return Failed(str(error), of_the_row=True)

    def decode(self, tokens: Sequence[int], finished: bool) -> Row:
        """Columns of an answer; `tokens` exclude the token that ended it."""
        text = self.tokenizer.decode(list(tokens), skip_special_tokens=True).strip()
        return {ANSWER: text, NEW_TOKENS: len(tokens) + finished, FINISHED: finished}

    def read(self, generated: Sequence[int]) -> Row:
        """Columns of an answer from all generated tokens, the last of which may be an end token."""
        tokens = list(generated)
        finished = bool(tokens) and tokens[-1] in self.ends
        return self.decode(tokens[:-1] if finished else tokens, finished)


def question_of(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """A conversation without the assistant's last turn; one that ends with another turn is unchanged."""
    return split_exchange(messages, answer="").before


def row_seed(seed: int, row: int) -> int:
    """A 64-bit seed for the draws of one row, the same on every machine and in every batch."""
    digest = hashlib.blake2b(f"{seed}\x00{row}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def load_prompts(
    model: str, template: str, max_new_tokens: int, max_length: int | None = None, trust_remote_code: bool = False
) -> Prompts:
    """Make `Prompts` for a model whose weights are in another process."""
    tokenizer, card = load_tokenizer(model, trust_remote_code), load_card(model, trust_remote_code)
    ends = end_tokens(LoadedModel(card, tokenizer), template)
    longest_prompt = longest_input(card, max_length) - max_new_tokens
    return Prompts(tokenizer, template, ends, longest_prompt, max_new_tokens, vocabulary_size(card))


def vocabulary_size(model: Any) -> int | None:
    """How many tokens a model has embeddings for, according to its configuration; None if that does not say."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    return getattr(config, "vocab_size", None)


def read_config(model: str, trust_remote_code: bool = False) -> dict[str, Any]:
    """The content of the model's `config.json`."""
    try:
        with open(os.path.join(resolve_model(model, "tokenizer"), "config.json"), encoding="utf-8") as file:
            return dict(json.load(file))
    except (OSError, ValueError):  # on the hub, or damaged
        return dict(load_card(model, trust_remote_code).config.to_dict())


def stored_type(model: str, trust_remote_code: bool = False) -> str:
    """`bf16` if the model's weights are stored in half precision, `fp32` if in float32 or if its files do not say."""
    card = read_config(model, trust_remote_code)
    parts = (card, card.get("text_config") or {})
    named = (str(part[key]) for part in parts for key in ("dtype", "torch_dtype") if part.get(key))
    return "bf16" if next(named, "float32").removeprefix("torch.") in ("bfloat16", "float16") else "fp32"


def load_card(model: str, trust_remote_code: bool = False) -> ModelCard:
    """A model's configuration and generation defaults, as loading the model would find them."""
    from transformers import AutoConfig, GenerationConfig

    source, revision = source_of(model, "tokenizer")
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"model: cannot read the configuration of '{model}': {type(error).__name__}: {error}. Give a folder that "
            "transformers can load, download the model first, or use 'nano'."
        ) from error
    try:
        defaults = GenerationConfig.from_pretrained(source, revision=revision)
    except OSError:  # not every model ships them; transformers then takes the end tokens from the model's configuration
        defaults = GenerationConfig.from_model_config(config)
    return ModelCard(config, defaults)

"""Rows as vectors: pooled last states of an encoder, a sentence-transformers model or a causal language model.

MoDS takes the first token's state of bert-base-uncased over the instruction field, at most 96 tokens, not normalised:
`pooling=cls text=first_paragraph max_tokens=96 normalise=false`. The cache of its code has a fixed name, so a second
data set gets the vectors of the first, and a last batch of one row ends it with an error. Here vectors are keyed by
row id.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from raysift.actors.contract import Failed, Row, RowActor
from raysift.actors.language_model import resolve_model, source_of
from raysift.actors.loaded import budget_on, takes
from raysift.actors.text_models import BATCH_TOKENS, TextTokens, load_text_model, pad_texts, text_limit
from raysift.errors import ModelError
from raysift.pool.given_input import conversation_of
from raysift.records import MESSAGES
from raysift.scoring.columns import EMBEDDING, EMBEDDING_SCHEMA, INPUT_TOKENS, TRUNCATED
from raysift.scoring.questions import embedded_text
from raysift.scoring.settings import EmbeddingSettings, Pooling

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

_POOLINGS: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
    "cls": "cls",
    "mean": "mean",
    "lasttoken": "last",
}
_MODULES = ("Transformer", "Pooling", "Normalize")
UNUSED = ("pooler",)
"""Layers whose output is never read; a checkpoint may lack their weights."""


@dataclass(frozen=True)
class EncoderFiles:
    """Settings from a model's sentence-transformers files; the defaults if it has none."""

    folder: str
    pooling: Pooling = "mean"
    max_tokens: int | None = None
    lower_case: bool = False


class Embedder(RowActor):
    """Computes the vector of each row's text, as wide as the model's states. `truncated` marks texts that were cut."""

    inputs = (MESSAGES,)
    outputs = EMBEDDING_SCHEMA

    def __init__(
        self,
        settings: EmbeddingSettings | None = None,
        *,
        batch_tokens: int | None = None,
        **loading: Any,
    ) -> None:
        self.settings = settings = settings or EmbeddingSettings()
        self.files = read_encoder_files(settings.model)
        self.pooling = self.files.pooling if settings.pooling == "auto" else settings.pooling
        self.model, self.tokenizer = load_text_model("AutoModel", self.files.folder, unused=UNUSED, **loading)
        self.longest = text_limit(self.model, self.tokenizer, settings.max_tokens or self.files.max_tokens)
        self.batch_tokens = batch_tokens or budget_on(self.model, BATCH_TOKENS)
        self.extra = {"use_cache": False} if takes(self.model, "use_cache") else {}

    @classmethod
    def reads_meta(cls, arguments: Mapping[str, Any]) -> bool:
        return (arguments.get("settings") or EmbeddingSettings()).text == "first_paragraph"

    def answer(self, rows: list[Row]) -> list[Row | Failed]:
        texts = self._tokenize([embedded_text(conversation_of(row), self.settings.text) for row in rows])
        vectors = iter(self.embed([text for text in texts if text.ids]))
        return [
            _embedding_row(text, next(vectors)) if text.ids else Failed("there is no text to embed", of_the_row=True)
            for text in texts
        ]

    def embed(self, texts: Sequence[TextTokens]) -> NDArray[np.float32]:
        """The pooled states of each text, in the order given."""
        import torch

        from raysift.gradients.cpu_products import quick_products

        self.tokens_read += sum(map(len, texts))
        found: list[tuple[list[int], NDArray[np.float32]]] = []

        def embed_pass(members: list[int]) -> None:
            inputs = pad_texts([texts[i] for i in members], self.model, self.tokenizer.pad_token_id)
            states = self.model(**inputs, **self.extra).last_hidden_state.float()
            pooled = pool(states, inputs["attention_mask"], self.pooling)
            if self.settings.normalise:
                pooled = pooled / pooled.norm(dim=1, keepdim=True)
            found.append((members, pooled.cpu().numpy()))

        with torch.inference_mode(), quick_products(self.model):
            self.run_passes([len(text) for text in texts], embed_pass)
        vectors = np.empty((len(texts), found[0][1].shape[1] if found else 0), np.float32)
        for members, pooled in found:
            vectors[members] = pooled
        return vectors

    def _tokenize(self, texts: Sequence[str]) -> list[TextTokens]:
        whole = [self.settings.prefix + text for text in texts]
        encoding = self.tokenizer(
            [text.lower() for text in whole] if self.files.lower_case else whole,
            truncation=True,
            max_length=self.longest,
            return_attention_mask=False,
            return_overflowing_tokens=True,
        )
        return _first_pieces(encoding, len(texts))


def pool(states: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """One vector per text from states (texts, tokens, width); `mask` is 0 on the padding, which is on the right."""
    import torch

    if pooling == "cls":
        return states[:, 0]
    if pooling == "last":
        return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)


def read_encoder_files(model: str) -> EncoderFiles:
    """The pooling, length and case that a sentence-transformers model declares; unsupported declarations raise."""
    folder = resolve_model(model)
    modules = _read_json(folder, "modules.json")
    if modules is None:
        return EncoderFiles(folder)
    kinds = {str(module["type"]).rpartition(".")[2]: str(module["path"]) for module in modules}
    strange = sorted(set(kinds) - set(_MODULES))
    if strange:
        raise ModelError(
            f"embedding: '{model}' has a {' and a '.join(strange)} module after its encoder, which is not supported; "
            f"supported: {', '.join(_MODULES)}. Name another model, or its bare encoder with a pooling."
        )
    part = kinds.get("Transformer", "")
    if part and not os.path.isdir(folder):
        raise ModelError(
            f"embedding: '{model}' keeps its encoder in the folder '{part}'. Download it, and name that folder."
        )
    usual = _read_json(folder, os.path.join(part, "sentence_bert_config.json")) or {}
    pooling = _read_json(folder, os.path.join(kinds["Pooling"], "config.json")) if "Pooling" in kinds else None
    return EncoderFiles(
        folder=os.path.join(folder, part) if part else folder,
        pooling=_pooling_of(model, pooling or {}),
        max_tokens=usual.get("max_seq_length"),
        lower_case=bool(usual.get("do_lower_case", False)),
    )


def _pooling_of(model: str, config: dict[str, Any]) -> Pooling:
    """The pooling from either form of the file: one switch per kind or, since that library's version 5, one name."""
    chosen = sorted(name for name, on in config.items() if name.startswith("pooling_mode_") and on is True)
    named = config.get("pooling_mode")
    if isinstance(named, str):
        chosen = [named]
    if not chosen:
        return "mean"
    if len(chosen) > 1 or chosen[0] not in _POOLINGS:
        raise ModelError(
            f"embedding: '{model}' pools by {' and '.join(chosen)}; known: {', '.join(sorted(_POOLINGS))}. "
            "Set the pooling yourself, or name another model."
        )
    return _POOLINGS[chosen[0]]


def _read_json(folder: str, name: str) -> Any:
    """A JSON file of the model, from its folder or the hub; None if there is none."""
    from transformers.utils import cached_file

    source, revision = source_of(folder)
    found = cached_file(
        source,
        name,
        revision=revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if found is None:
        return None
    with open(found, encoding="utf-8") as file:
        return json.load(file)


def _first_pieces(encoding: Any, count: int) -> list[TextTokens]:
    """The first piece of each text; a tokenizer may return what it cut off as further pieces."""
    types = encoding.get("token_type_ids")
    origins = encoding.get("overflow_to_sample_mapping", range(count))
    pieces: list[TextTokens | None] = [None] * count
    for place, origin in enumerate(origins):
        first = pieces[origin]
        if first is None:
            pieces[origin] = TextTokens(encoding["input_ids"][place], types[place] if types else None)
        else:
            pieces[origin] = replace(first, truncated=True)
    return [piece for piece in pieces if piece is not None]


def _embedding_row(text: TextTokens, vector: NDArray[np.float32]) -> Row | Failed:
    if not np.isfinite(vector).all():
        return Failed("the vector is not finite, or has length 0 and cannot be normalised")
    return {EMBEDDING: vector, INPUT_TOKENS: len(text), TRUNCATED: text.truncated}

"""Loading and feeding models that read a whole text at once: sequence classifiers and encoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raysift.actors.language_model import _explained as explained
from raysift.actors.language_model import load_tokenizer, pick_device, source_of, torch_dtype
from raysift.actors.loaded import NO_LIMIT, LoadedModel, longest_input, takes, use_threads
from raysift.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

BATCH_TOKENS = {"cpu": 512, "cuda": 32768}
"""Padded tokens of a batch. On one core 8192 took 1.6 to 2 times as long as 512: wide batches fall out of its cache."""


@dataclass(frozen=True)
class TextTokens:
    """A text as the model reads it; `types` are its segment numbers where the tokenizer writes them."""

    ids: list[int]
    types: list[int] | None
    truncated: bool = False

    def __len__(self) -> int:
        return len(self.ids)


def load_text_model(
    kind: str,
    model: str,
    dtype: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    trust_remote_code: bool = False,
    unused: Sequence[str] = (),
) -> LoadedModel:
    """A model by the name of its Auto class, in eval mode, and its tokenizer.

    Weights that the checkpoint lacks are drawn at random by transformers, with no more than a warning; here they are an
    error, but for layers in `unused`, whose output nobody reads.
    """
    import transformers

    use_threads(threads)
    tokenizer = load_tokenizer(model, trust_remote_code)
    with explained(model, "model"):
        source, revision = source_of(model)
        loaded, report = getattr(transformers, kind).from_pretrained(
            source,
            revision=revision,
            dtype=torch_dtype(dtype),
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    lacking = sorted(key for key in report["missing_keys"] if not set(key.split(".")) & set(unused))
    if lacking:
        raise ModelError(
            f"model: the checkpoint of '{model}' has no weights for {', '.join(lacking[:4])}"
            f"{' ...' if len(lacking) > 4 else ''}, so what {kind} reads there would be random. "
            "Name a model that was trained for this."
        )
    return LoadedModel(loaded.to(pick_device(device)).eval(), tokenizer)


def text_limit(model: Any, tokenizer: Any, max_length: int | None) -> int:
    """Tokens that fit, special ones included.

    A model that knows distances only (DeBERTa) takes any length that is asked for; unasked, its training length holds.
    """
    usual = longest_input(model, None)
    if getattr(tokenizer, "model_max_length", NO_LIMIT) < NO_LIMIT:
        usual = min(usual, tokenizer.model_max_length)  # RoBERTa has two positions more than it can use
    if max_length is not None and not getattr(model.config, "position_biased_input", True):
        return max_length
    return min(usual, max_length or NO_LIMIT)


def pad_texts(texts: Sequence[TextTokens], model: Any, pad: int) -> dict[str, Tensor]:
    """Inputs of a forward pass: padded on the right, the padding masked."""
    import torch

    width = max(len(text) for text in texts)
    ids = [[*text.ids, *[pad] * (width - len(text))] for text in texts]
    mask = [[*[1] * len(text), *[0] * (width - len(text))] for text in texts]
    inputs = {"input_ids": ids, "attention_mask": mask}
    if all(text.types is not None for text in texts) and takes(model, "token_type_ids"):
        inputs["token_type_ids"] = [[*(text.types or []), *[0] * (width - len(text))] for text in texts]
    return {name: torch.tensor(values, device=model.device) for name, values in inputs.items()}

"""Loads and feeds models that read a whole text at once: sequence classifiers and encoders."""

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
"""Padded tokens per batch. On one core 8192 took 1.6 to 2 times as long as 512: large batches overflow its cache."""


@dataclass(frozen=True)
class TextTokens:
    """A text as the model reads it; `types` are its segment numbers, if the tokenizer gives any."""

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
    """A model of the Auto class named `kind`, in eval mode, and its tokenizer.

    transformers draws weights that the checkpoint lacks at random and only warns. Here missing weights are an error,
    except in layers named in `unused`, whose output is never read.
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
    """Tokens that fit, special tokens included.

    A model with only relative positions (DeBERTa) takes any requested length; by default its training length applies.
    """
    usual = longest_input(model, None)
    if getattr(tokenizer, "model_max_length", NO_LIMIT) < NO_LIMIT:
        usual = min(usual, tokenizer.model_max_length)  # RoBERTa has two more positions than it can use
    if max_length is not None and not getattr(model.config, "position_biased_input", True):
        return max_length
    return min(usual, max_length or NO_LIMIT)


def pad_texts(texts: Sequence[TextTokens], model: Any, pad: int) -> dict[str, Tensor]:
    """Inputs of a forward pass, padded on the right, with the padding masked."""
    import torch

    width = max(len(text) for text in texts)
    ids = [[*text.ids, *[pad] * (width - len(text))] for text in texts]
    mask = [[*[1] * len(text), *[0] * (width - len(text))] for text in texts]
    inputs = {"input_ids": ids, "attention_mask": mask}
    if all(text.types is not None for text in texts) and takes(model, "token_type_ids"):
        inputs["token_type_ids"] = [[*(text.types or []), *[0] * (width - len(text))] for text in texts]
    return {name: torch.tensor(values, device=model.device) for name, values in inputs.items()}

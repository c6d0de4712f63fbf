"""Random sequence classifiers and encoders of some thousands of parameters on disk, for tests that need them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .tiny_models import byte_tokenizer

KINDS = ("bert", "deberta", "llama", "llama-without-padding")


def pair_tokenizer() -> Any:
    """One token a byte; a pair becomes `<|begin|>question<|end|>answer<|end|>`, the answer being segment 1."""
    from tokenizers import processors

    tokenizer = byte_tokenizer(chat_template=None)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A <|end|>",
        pair="<|begin|> $A <|end|> $B:1 <|end|>:1",
        special_tokens=[(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<|begin|>", "<|end|>")],
    )
    return tokenizer


def tiny_config(kind: str, **changes: Any) -> Any:
    """BERT has places and segments; DeBERTa neither, but distances; Llama is causal."""
    from transformers import BertConfig, DebertaV2Config, LlamaConfig

    common = {
        "vocab_size": 272,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "pad_token_id": None if kind == "llama-without-padding" else 0,
    }
    if kind == "bert":
        return BertConfig(**common | {"num_labels": 1} | changes)
    if kind == "deberta":
        own = {
            "relative_attention": True,
            "position_buckets": 16,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "type_vocab_size": 0,
            "pooler_hidden_size": 32,
        }
        return DebertaV2Config(**common | own | {"num_labels": 1} | changes)
    return LlamaConfig(**common | {"num_key_value_heads": 2, "num_labels": 1} | changes)


def tiny_classifier(folder: Path, kind: str, seed: int = 0, **changes: Any) -> str:
    """Write a classifier and its tokenizer; the same seed gives the same weights."""
    return _save(folder, kind, "AutoModelForSequenceClassification", seed, changes)


def tiny_encoder(folder: Path, kind: str = "bert", seed: int = 0, **changes: Any) -> str:
    """Write an encoder and its tokenizer."""
    return _save(folder, kind, "AutoModel", seed, changes)


def _save(folder: Path, kind: str, auto: str, seed: int, changes: dict[str, Any]) -> str:
    import torch
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, auto).from_config(tiny_config(kind, **changes))
    path = Path(folder) / f"{kind}-{auto}-{seed}"
    model.save_pretrained(path)
    (byte_tokenizer() if kind.startswith("llama") else pair_tokenizer()).save_pretrained(path)
    return str(path)

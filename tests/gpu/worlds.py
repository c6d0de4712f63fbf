"""Rows, adapters and models that the checks share; the wide ones have random weights, and nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from lab import Lab, lengths

WIDE, ADAPTED = "wide", "adapted"


def nano_rows(count: int, seed: int = 0) -> pa.Table:
    """Rows of the nano world with their ids."""
    from raysift.nano.world import generate_pool
    from raysift.records import ID, MESSAGE, MESSAGES

    rows = [{ID: 7 * number + 1, MESSAGES: row["messages"]} for number, row in enumerate(generate_pool(count, seed))]
    return pa.Table.from_pylist(rows, schema=pa.schema([(ID, pa.int64()), (MESSAGES, pa.list_(MESSAGE))]))


def prepare(lab: Lab) -> None:
    """Write what several checks need: two checkpoints of an adapter over nano, and the wide model."""
    from raysift.actors.effective_batches import EncodeRows, Place, split_trainable
    from raysift.actors.trainee import train
    from raysift.storage import open_location

    rows = split_trainable(EncodeRows("nano", "auto", 128)(nano_rows(32)))[0]
    place = Place(device="cpu", threads=lab.threads)
    train(rows, open_location(lab.folder / ADAPTED), nano_config(), "nano", place)
    model = build(lab, lab.sizes.wide)
    model.save_pretrained(lab.folder / WIDE)
    nano_tokenizer().save_pretrained(lab.folder / WIDE)


def nano_config(**changes: Any) -> Any:
    """A short LoRA training in float32."""
    from raysift.settings.training import TrainConfig

    settings = {"lora_rank": 4, "learning_rate": 1e-3, "warmup_ratio": 0.1, "epochs": 2, "batch_size": 8}
    return TrainConfig.model_validate(settings | {"max_length": 128, "dtype": "fp32", "adam_epsilon": 1e-6} | changes)


def points(lab: Lab) -> list[Any]:
    """The checkpoints that `prepare` wrote."""
    from raysift.actors.checkpointed import Checkpoint
    from raysift.storage import open_location

    places = [open_location(lab.folder / ADAPTED) / f"epoch-{number}" for number in (1, 2)]
    return [Checkpoint(place.name, place / "adapter", place / "moments.safetensors", 1e-3) for place in places]


def build(lab: Lab, widths: dict[str, int]) -> Any:
    """A Llama of these widths with random bfloat16 weights, made on the device."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    special = nano_tokenizer()
    config = LlamaConfig(
        **widths,
        max_position_embeddings=8192,
        tie_word_embeddings=widths["hidden_size"] < 4096,
        pad_token_id=special.pad_token_id,
        bos_token_id=special.bos_token_id,
        eos_token_id=special.eos_token_id,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    torch.manual_seed(0)
    try:
        with torch.device(lab.device):
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def nano_tokenizer() -> Any:
    """The tokenizer that ships with the package."""
    from raysift.actors.language_model import load_tokenizer

    return load_tokenizer("nano")


def token_rows(lab: Lab, count: int, vocabulary: int, seed: int = 0) -> list[Any]:
    """Rows of random tokens with lengths as in real pools; the last two thirds of each count for the loss."""
    from raysift.gradients.rows import TokenRow
    from raysift.templates import IGNORED

    draw, rows = np.random.default_rng(seed), []
    for number, length in enumerate(lengths(count, lab.sizes.mean_tokens, lab.sizes.max_tokens, seed)):
        ids = draw.integers(5, vocabulary, length)
        labels = ids.copy()
        labels[: length // 3] = IGNORED
        rows.append(TokenRow(number, ids, labels))
    return rows


def encoded_table(rows: list[Any]) -> pa.Table:
    """Token rows as `EncodeRows` and `split_trainable` leave them."""
    from raysift.actors.effective_batches import EncodeRows
    from raysift.templates import IGNORED

    lines = [
        {
            "id": row.id,
            "input_ids": row.input_ids.tolist(),
            "counted": (row.labels != IGNORED).tolist(),
            "truncated": False,
            "doubled_special": False,
            "template": "auto",
            "error": None,
        }
        for row in rows
    ]
    return pa.Table.from_pylist(lines, schema=EncodeRows.answer_schema())


def adapted(lab: Lab, model: Any, rank: int) -> Any:
    """The model under a random LoRA adapter on its attention."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, init_lora_weights=False)
    return get_peft_model(model, settings)


def folder_of(lab: Lab, name: str) -> str:
    """A folder that `prepare` wrote; raises if it did not come so far."""
    found = Path(lab.folder / name)
    if not found.is_dir():
        raise FileNotFoundError(f"'prepare' wrote no {name}; see its message")
    return str(found)

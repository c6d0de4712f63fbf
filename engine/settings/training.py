"""Settings of a fine-tune, the recipes of the papers, and the learning rates that follow from them.

A schedule is a pure function of the step, spelled as transformers does: with W = ceil(steps x warmup_ratio) the factor
at step i (from 0) is i / W while i < W; then (steps - i) / (steps - W) for linear, half of 1 + cos(pi x (i - W) /
(steps - W)) for cosine, 1 for constant. So the first warm-up step has rate 0.

LESS and ROSE weight an epoch's checkpoint by its mean rate. They average the rates that the trainer logged *after* each
step. So do we, which gives their published weights to three digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator

from raysift.errors import ConfigError
from raysift.settings.base import Seed, Settings, Template
from raysift.settings.hardware import Dtype, usual_dtype

Section = TypeVar("Section", bound=BaseModel)


class TrainConfig(Settings):
    """Settings that decide the result of a fine-tune; rows per pass, workers and devices do not."""

    method: Literal["lora", "full"] = "lora"
    """`lora` trains an adapter over frozen weights, `full` trains every weight."""
    quantization: Literal["none", "4bit"] = "none"
    """`4bit` keeps the frozen weights in four bits (NF4) for training and gradients; answers use the full weights."""
    lora_rank: int = Field(default=16, ge=1)
    """Rank of the adapter's matrices; a higher one can learn more, and costs more per stored gradient."""
    lora_alpha: float = Field(default=32.0, gt=0)
    """The adapter's output is scaled by alpha / rank."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the adapter's inputs dropped at each step; 0 drops none."""
    lora_targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the layers that get an adapter; `all-linear` means every linear layer except the output head."""
    learning_rate: float = Field(default=2e-4, gt=0)
    """The peak rate, reached after the warm-up."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the rate falls after its peak; with `constant` it stays there."""
    warmup_ratio: float = Field(default=0.03, ge=0, le=1)
    """Share of all steps in which the rate climbs from 0 to its peak."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay, not applied to biases and norms; 0 switches it off."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """`adamw8bit` keeps AdamW's two moments in eight bits each, a quarter of their memory; each step rounds them."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay rate of the mean gradient."""
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay rate of the mean squared gradient."""
    adam_epsilon: float = Field(default=1e-8, gt=0)
    """Added to the root of the squared gradient; a large value turns Adam into plain descent with momentum."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Longer gradients are scaled down to this norm; 0 never scales."""
    epochs: int = Field(default=3, ge=1)
    """Times each row is seen."""
    max_steps: int | None = Field(default=None, ge=1)
    """Ends the training and its schedule before the epochs would."""
    batch_size: int = Field(default=32, ge=1)
    """Rows in one optimizer step, over all workers and passes. The loss is the mean over its counted tokens."""
    max_length: int = Field(default=2048, ge=2)
    """Longer conversations are cut off on the right. Rows left without an answer are listed and not trained on."""
    dtype: Dtype = "auto"
    """Compute products in bfloat16 or float32. `auto`: bfloat16 if the workers' hardware multiplies it (a GPU, or a CPU with
    AMX or AVX512-BF16), else float32. Trained weights and moments are float32 either way."""
    template: Template = "auto"
    """The tokenizer's own chat template, or one of raysift.templates."""
    seed: Seed = 0
    """Decides the adapter's first weights, the order of rows and the dropout."""

    @field_validator("quantization")
    @classmethod
    def _only_frozen_weights(cls, value: str, info: ValidationInfo) -> str:
        if value != "none" and info.data.get("method") == "full":
            raise ValueError(
                f"'{value}' holds weights that cannot be trained: set method to lora, or quantization to none"
            )
        return value


_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")

_LESS = TrainConfig(
    method="lora",
    lora_rank=128,
    lora_alpha=512,
    lora_dropout=0.1,
    lora_targets=_ATTENTION,
    learning_rate=2e-5,
    schedule="linear",
    warmup_ratio=0.03,
    epochs=4,
    batch_size=128,
    max_length=2048,
    template="tulu",
)
_MODS = TrainConfig(
    method="full",
    learning_rate=2e-5,
    schedule="cosine",
    warmup_ratio=0.03,
    epochs=3,
    batch_size=128,
    max_length=1024,
    template="alpaca",
)
_NANO = TrainConfig(
    method="lora",
    lora_rank=16,
    lora_alpha=32,
    learning_rate=3e-3,
    schedule="linear",
    warmup_ratio=0.05,
    epochs=12,
    batch_size=16,
    max_length=512,
    dtype="fp32",
)


def _changed(config: TrainConfig, **changes: Any) -> TrainConfig:
    return TrainConfig.model_validate(config.model_dump() | changes)


RECIPES: Mapping[str, TrainConfig] = {
    # LESS (Xia et al., ICML 2024), paper and code; the paper's card says cosine, its code and published weights linear.
    "less": _LESS,
    # ROSE, official code: like LESS, but with one row on each of four GPUs and no accumulation.
    "rose-official": _changed(_LESS, batch_size=4),
    # MoDS (Du et al., 2023), paper; the length is the repository's, the paper names none.
    "mods": _MODS,
    # MoDS, official code: 4 GPUs x 8 rows x 16 accumulation steps.
    "mods-official": _changed(_MODS, batch_size=512),
    # RAISE states rate, schedule, absence of warm-up and 3 epochs. Batch (16 to 128 tried), LoRA and length are ours.
    "raise": TrainConfig(
        method="lora",
        lora_rank=128,
        lora_alpha=512,
        lora_dropout=0.1,
        lora_targets=_ATTENTION,
        learning_rate=2e-5,
        schedule="cosine",
        warmup_ratio=0.0,
        epochs=3,
        batch_size=32,
        max_length=2048,
    ),
    # For the shipped 1.3M-parameter model and a few hundred rows; fewer steps have no visible effect.
    "nano": _NANO,
    # Four epochs, as in the warm-up of LESS and ROSE: each gives a checkpoint at which every row costs a backward pass.
    "nano-warmup": _changed(_NANO, epochs=4),
}


def settle_training(section: Section, on_gpu: Callable[[], bool]) -> Section:
    """A training, or settings with trainings in any section, with the hardware's number type in place of `auto`.

    It then stands in fingerprints, and is decided once: all workers of a cluster must compute alike. `on_gpu` is asked only
    if there is an `auto`.
    """
    if isinstance(section, TrainConfig):
        return section if section.dtype != "auto" else section.model_copy(update={"dtype": usual_dtype(on_gpu())})
    values = {name: getattr(section, name) for name in type(section).model_fields}
    parts = {name: settle_training(one, on_gpu) for name, one in values.items() if isinstance(one, BaseModel)}
    return section.model_copy(update=parts)


def recipe(name: str, **changes: Any) -> TrainConfig:
    """A recipe, with some of its settings changed."""
    if name not in RECIPES:
        raise ConfigError(f"finetune: unknown recipe '{name}'; known: {', '.join(sorted(RECIPES))}.")
    try:
        return _changed(RECIPES[name], **changes)
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"]))
        raise ConfigError(f"finetune: recipe '{name}', setting '{field}': {problem['msg']}.") from error


def count_steps(config: TrainConfig, rows: int) -> tuple[int, int]:
    """Optimizer steps of one epoch and of the whole training; an epoch's last batch may be smaller."""
    per_epoch = math.ceil(rows / config.batch_size)
    total = per_epoch * config.epochs
    return per_epoch, min(total, config.max_steps or total)


def learning_rates(config: TrainConfig, steps: int) -> list[float]:
    """The rate of each of `steps` optimizer steps."""
    warmup = math.ceil(steps * config.warmup_ratio)
    return [config.learning_rate * _factor(config.schedule, step, warmup, steps) for step in range(steps)]


def epoch_mean_learning_rates(config: TrainConfig, steps_per_epoch: int, steps: int) -> list[float]:
    """The mean over each epoch of the rate after each step: the checkpoint weights of LESS and ROSE."""
    rates = learning_rates(config, steps)
    warmup = math.ceil(steps * config.warmup_ratio)
    after = [*rates[1:], config.learning_rate * _factor(config.schedule, steps, warmup, steps)]
    epochs = [after[start : start + steps_per_epoch] for start in range(0, steps, steps_per_epoch)]
    return [math.fsum(epoch) / len(epoch) for epoch in epochs]


def _factor(schedule: str, step: int, warmup: int, steps: int) -> float:
    if step < warmup:
        return step / warmup
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))

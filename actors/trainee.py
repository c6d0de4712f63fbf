"""Fine-tunes a language model, in one process or as one of several ranks; no Ray here.

Tokens come as effective batches, transformers' `Trainer` makes the steps (see step_loop), and after each epoch rank 0
writes `epoch-N/` (see train_checkpoints). A training continues from the last valid folder, with any number of ranks.

The result is the same for 1 or 7 ranks, up to rounding: an effective batch's loss is the sum over its counted tokens,
of all ranks and passes, divided by their number. Dropout is seeded by (seed, step, rank), so a resumed training drops
the same units as an uninterrupted one. Whether each rank holds all trained weights or its share changes nothing.
"""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raysift.actors.effective_batches import EffectiveBatches, Place
from raysift.actors.language_model import (
    SPREAD,
    load_adapter,
    load_language_model,
    load_tokenizer,
    local_copy,
    move,
    pick_device,
)
from raysift.actors.sharded import load_sharded
from raysift.actors.step_loop import OnStep, build_keeper, build_trainer
from raysift.actors.step_loop import step_seed as step_seed
from raysift.actors.train_checkpoints import MOMENTS, EpochRecord, last_checkpoint
from raysift.errors import StageError
from raysift.gradients.moments import open_moments
from raysift.settings.training import TrainConfig
from raysift.storage import Location, open_location


def build_model(
    config: TrainConfig,
    model: str,
    start: str | Location | None,
    trust_remote_code: bool = False,
    device: str = "cpu",
    ranks: int = 1,
) -> Any:
    """The model with its trainable weights: a new adapter, or the adapter or weights of the folder `start`.

    Trained weights are float32. Frozen weights under an adapter have the type of the products, or four bits.
    Over several `ranks` each weight is divided among them.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    if config.method == "full":
        with local_copy(open_location(start)) if start is not None else contextlib.nullcontext(model) as source:
            if ranks > 1:
                return load_sharded(source, ranks, trust_remote_code)
            return load_language_model(source, dtype="fp32", device=device, trust_remote_code=trust_remote_code)
    base = load_language_model(
        model,
        dtype=config.dtype,
        device=device,
        trust_remote_code=trust_remote_code,
        quantization=config.quantization,
    )
    if start is not None:
        return load_adapter(base, start, trainable=True)
    targets = config.lora_targets if isinstance(config.lora_targets, str) else list(config.lora_targets)
    torch.manual_seed(config.seed)
    return get_peft_model(
        base,
        LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=targets,
            task_type="CAUSAL_LM",
        ),
    )


def build_placed(config: TrainConfig, model: str, start: str | Location | None, place: Place) -> Any:
    """The model with its trainable weights (see `build_model`) on the device of `place`."""
    built = build_model(config, model, start, place.trust_remote_code, loading_device(config, place))
    return move(built, place.device)


def loading_device(config: TrainConfig, place: Place) -> str:
    """The device to load on: the CPU, to be moved later, except for a base that must be loaded where it will stay."""
    if place.device == SPREAD:
        if place.world_size > 1:
            raise StageError(
                f"training: {place.world_size} ranks cannot share a model that is spread over the GPUs. Set "
                "resources.train to 1, or resources.device to auto."
            )
        return SPREAD
    if config.quantization == "none":
        return "cpu"
    device = pick_device(place.device)
    # Ray Train names each worker's GPU in this variable; accelerate, under transformers' Trainer, obeys it too.
    return os.environ.get("ACCELERATE_TORCH_DEVICE", device) if device == "cuda" else device


def train(
    rows: pa.Table,
    out: Location,
    config: TrainConfig,
    model: str,
    place: Place,
    *,
    adapter: str | Location | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    on_step: OnStep | None = None,
    callbacks: Sequence[Any] = (),
) -> None:
    """Train on encoded rows and write one folder per epoch below `out`, continuing where an earlier attempt stopped.

    `on_epoch` is called on every rank after each epoch, `on_step` on rank 0 at most once a second. All rows are held in
    memory, at five bytes per token.
    """
    from raysift.gradients.cpu_products import quick_products

    with own_settings(place):
        last = last_checkpoint(out)
        start = adapter
        if last:
            start = last[0] / ("adapter" if config.method == "lora" else "model")
        batches = EffectiveBatches(rows, config, place, last[1].step if last else 0)
        if batches.first_step >= batches.steps:
            return
        ranks = place.world_size if place.sharded else 1
        device = loading_device(config, place)
        trained = build_model(config, model, start, place.trust_remote_code, device, ranks)
        tokenizer = load_tokenizer(model, place.trust_remote_code)
        with contextlib.ExitStack() as stack:
            scratch = stack.enter_context(tempfile.TemporaryDirectory())
            moments = stack.enter_context(open_moments(last[0] / MOMENTS)) if last else None
            trainer = build_trainer(trained, batches, moments, scratch)
            keeper = build_keeper(trainer, tokenizer, out, last, on_epoch, on_step)
            for callback in (keeper, *callbacks):
                trainer.add_callback(callback)
            with quick_products(trained):
                trainer.train()


@contextlib.contextmanager
def own_settings(place: Place) -> Iterator[None]:
    """Set threads and determinism for the training; afterwards restore the caller's settings and random states."""
    import torch

    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filling: Any = torch.utils.deterministic
    filled = filling.fill_uninitialized_memory
    states = random.getstate(), np.random.get_state()
    if place.threads:
        torch.set_num_threads(place.threads)
    if pick_device(place.device) != "cpu":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        # By default torch then fills all memory that it hands out, twenty times as many calls, to show what reads it early.
        filling.fill_uninitialized_memory = False
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        filling.fill_uninitialized_memory = filled

"""Trainings: the epochs and steps of nano against the CPU; tokens a second, memory and balance at 1B widths; two cards."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from lab import Lab, Skipped
from worlds import WIDE, encoded_table, folder_of, nano_config, nano_rows, token_rows

LIMITS = {"fp32": 1e-3, "tf32": 5e-3, "bf16": 3e-2}
"""Relative distance of losses. Weights follow Adam, which divides small gradients by their size: they agree less."""


def _encoded(rows: Any) -> Any:
    from raysift.actors.effective_batches import EncodeRows, split_trainable

    return split_trainable(EncodeRows("nano", "auto", 128)(rows))[0]


def trainee(lab: Lab) -> None:
    """Losses of a fine-tune of nano by epoch, and its adapter."""
    from safetensors.numpy import load_file

    from raysift.actors.effective_batches import Place
    from raysift.actors.train_checkpoints import epoch_records
    from raysift.actors.trainee import train
    from raysift.storage import open_location

    rows, losses, weights = _encoded(nano_rows(lab.sizes.rows)), {}, {}
    kinds = chain([("reference", "fp32", "cpu")], ((kind, dtype, lab.device) for kind, dtype in lab.precisions()))
    for kind, dtype, device in kinds:
        out = lab.folder / f"trained-{kind}"
        passes = {"rows_per_pass": 1} if kind == "reference" else {}
        place = Place(device=device, threads=lab.threads, **passes)
        train(rows, open_location(out), nano_config(dtype=dtype), "nano", place)
        losses[kind] = [record.mean_loss for record in epoch_records(open_location(out))]
        found = load_file(out / "epoch-2" / "adapter" / "adapter_model.safetensors")
        weights[kind] = np.concatenate([found[name].ravel() for name in sorted(found)])
        if kind != "reference":
            lab.same(f"losses {kind}", losses[kind], losses["reference"], LIMITS[kind])
            limit = {"fp32": 1e-2, "tf32": 0.1, "bf16": 0.3}[kind]
            lab.same(f"adapter {kind}", weights[kind], weights["reference"], limit)


def steps(lab: Lab) -> None:
    """Losses of chosen batches, step by step, and the validation loss after each."""
    from raysift.actors.effective_batches import Place
    from raysift.actors.step_trainer import StepTrainer
    from raysift.actors.validator import Validator
    from raysift.policy.performance import performance

    rows, encoded = nano_rows(lab.sizes.rows), _encoded(nano_rows(lab.sizes.rows))
    curves: dict[str, Any] = {}

    def curve(dtype: str, place: Place) -> np.ndarray:
        config = nano_config(dtype=dtype)
        trainer = StepTrainer(encoded, config, 4, "nano", place)
        validator = Validator(rows.slice(0, 16), config, "nano", place)
        found: list[float] = []
        for number in range(4):
            loss = trainer.step(trainer.rows.ids[number * 4 : number * 4 + 8])
            found += [loss, performance(validator.losses(trainer.model))]
        return np.array(found)

    curves["reference"] = curve("fp32", Place(device="cpu", threads=lab.threads, rows_per_pass=1))
    for kind, dtype in lab.precisions():
        curves[kind] = curve(dtype, Place(device=lab.device, threads=lab.threads))
        lab.same(f"steps {kind}", curves[kind], curves["reference"], LIMITS[kind])


def wide_training(lab: Lab) -> None:
    """Tokens a second and peak memory of LoRA at the widths of Llama-3.2-1B; balance of eight ranks on the same lengths."""
    from raysift.actors.effective_batches import Place
    from raysift.actors.train_checkpoints import epoch_records
    from raysift.actors.trainee import train
    from raysift.settings.training import TrainConfig
    from raysift.storage import open_location

    sizes = lab.sizes
    rows = encoded_table(token_rows(lab, sizes.wide_rows, sizes.wide["vocab_size"]))
    config = TrainConfig(
        lora_rank=sizes.rank,
        lora_targets=("q_proj", "k_proj", "v_proj", "o_proj"),
        learning_rate=2e-5,
        epochs=2,
        batch_size=min(128, sizes.wide_rows // 2),
        max_length=sizes.max_tokens,
        dtype="bf16" if lab.on_card else "fp32",
    )
    place = Place(device=lab.device, threads=lab.threads, tokens_per_pass=sizes.token_budget)
    with lab.memory("training"):
        train(rows, open_location(lab.folder / "trained-wide"), config, folder_of(lab, WIDE), place)
    last = epoch_records(open_location(lab.folder / "trained-wide"))[-1]
    tokens = sum(len(ids) for ids in rows["input_ids"].to_pylist())
    lab.rate("training", tokens, last.seconds, "tokens")
    lab.expect("training: finite loss", bool(np.isfinite(last.mean_loss)), f"the loss is {last.mean_loss}")
    padded, spent = _dealt(rows, config, replace(place, world_size=8))
    lab.figures["training, 8 ranks: padding"] = round(1 - tokens / padded.sum(), 3)
    lab.figures["training, 8 ranks: balance"] = round(float(padded.sum() / (8 * spent)), 3)


def _dealt(rows: Any, config: Any, place: Any) -> tuple[np.ndarray, float]:
    """Tokens with padding that each rank takes in an epoch, and those of the slowest rank of each step, summed."""
    from raysift.actors.effective_batches import EffectiveBatches

    taken = []
    for rank in range(place.world_size):
        batches = EffectiveBatches(rows, config, replace(place, rank=rank))
        steps = [batches.passes_of(batches.rows_of_step(step)) for step in range(batches.steps_per_epoch)]
        taken.append([sum(len(part) * int(batches.lengths[part].max()) for part in own if len(part)) for own in steps])
    by_step = np.array(taken)
    return by_step.sum(1), float(by_step.max(0).sum())


def two_ranks(lab: Lab) -> None:
    """Two ranks, each with a card of its own, give the losses of one: whole models, divided ones, and steps of RAISE."""
    import torch
    import torch.multiprocessing as processes

    if lab.on_card and torch.cuda.device_count() < 2:
        raise Skipped("there is one card; two ranks cannot share it")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = (2, lab.device, str(lab.folder / "two"), port, lab.sizes.rows)
    processes.start_processes(_rank, arguments, nprocs=2, start_method="spawn" if lab.on_card else "fork")
    _share(0, 1, lab.device, str(lab.folder / "one"), lab.sizes.rows, None)
    found = [json.loads((lab.folder / name / "found.json").read_text()) for name in ("two", "one")]
    for kind in ("whole", "divided"):
        lab.same(f"losses of two ranks, {kind}", found[0][kind], found[1][kind], LIMITS["fp32"])
    lab.expect("steps of two ranks: the same bits", found[0]["steps"] == found[1]["steps"], "the losses differ")


def _rank(rank: int, size: int, device: str, out: str, port: int, count: int) -> None:
    """One of two ranks; torch's distributed variables are what Ray Train sets."""
    from checkout import use_checkout

    use_checkout()
    import torch

    from raysift.actors.peers import Group

    where = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    os.environ.update(where | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    if device != "cpu":
        torch.cuda.set_device(rank)
        os.environ["ACCELERATE_TORCH_DEVICE"] = f"cuda:{rank}"
    torch.set_num_threads(1)
    peers = Group(rank, size, f"127.0.0.1:{port}", device != "cpu", 60)
    try:
        _share(rank, size, device, out, count, peers)
    finally:
        torch.distributed.destroy_process_group()


def _share(rank: int, size: int, device: str, out: str, count: int, peers: Any) -> None:
    """A rank's share of an adapter's training, of a full one whose weights are divided, and of steps over chosen rows."""
    from raysift.actors.effective_batches import Place
    from raysift.actors.peers import ALONE
    from raysift.actors.step_trainer import StepTrainer
    from raysift.actors.train_checkpoints import epoch_records
    from raysift.actors.trainee import train
    from raysift.storage import open_location

    rows, found, folder = _encoded(nano_rows(count)), {}, Path(out)
    place = Place(rank=rank, world_size=size, device=device, threads=1)
    for kind, changed in (("whole", {}), ("divided", {"method": "full"})):
        own = replace(place, sharded=kind == "divided" and size > 1)
        train(rows, open_location(folder / kind), nano_config(**changed), "nano", own)
        found[kind] = [record.mean_loss for record in epoch_records(open_location(folder / kind))]
    trainer = StepTrainer(rows, nano_config(), 2, "nano", Place(device=device, threads=1), peers=peers or ALONE)
    found["steps"] = [trainer.step(trainer.rows.ids[:8]) for _ in range(2)]
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(found))

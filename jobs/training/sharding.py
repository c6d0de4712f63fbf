"""Whether a full fine-tune divides its weights among its workers, and what it will take, told before it starts."""

from __future__ import annotations

import ray

from raysift.actors.prompts import read_config
from raysift.config import CommonConfig
from raysift.errors import StageError
from raysift.jobs.runs.console import Console
from raysift.settings.memory import CARD_SHARE, GIB, Need, shape_of
from raysift.settings.resources import Resources
from raysift.settings.roles import TRAIN
from raysift.settings.sharding import full_training, is_divided, state_of
from raysift.settings.training import TrainConfig


def ranks_of(train: TrainConfig, model: str, resources: Resources, trust_remote_code: bool = False) -> int:
    """Workers among which the weights are divided; 1 if each has all. The resources are those of the training."""
    workers = resources.workers or 1
    if train.method != "full" or workers < 2:
        return 1
    shape = shape_of(read_config(model, trust_remote_code))
    whole = full_training(shape, train, train.max_length) if shape else None
    return workers if is_divided(resources.shard, train, workers, whole, _room(resources)) else 1


def _room(resources: Resources) -> int | None:
    """Memory of a worker's GPU; None if workers have none or it is not known."""
    from raysift.jobs.cluster.machines import card_bytes, read_cluster

    if not resources.on_gpu or not ray.is_initialized() or not read_cluster().gpus:
        return None
    card = card_bytes(resources.gpus_per_worker or 1.0)
    return int(card * CARD_SHARE) if card else None


def need_to_finetune(
    console: Console, stage: str, config: CommonConfig, model: str, longest: int | None
) -> Need | None:
    """Memory that a worker of a fine-tune needs; of a full one it is also told, and refused if no setting of passes fits."""
    from raysift.jobs.cluster.machines import for_role
    from raysift.jobs.on_ray.fitting import fit_cluster, need_to_train

    train = config.train
    if train.method != "full" or not ray.is_initialized():
        return need_to_train(config, model, longest)
    resources = for_role(config, TRAIN, model).resources
    shape = shape_of(read_config(model, config.trust_remote_code))
    if shape is None:
        return None
    ranks = ranks_of(train, model, resources, config.trust_remote_code)
    rows = min(train.max_length, longest or train.max_length)
    need = full_training(shape, train, rows, ranks, resources.gradient_checkpointing)
    found = fit_cluster(resources, need)
    if need.small or found is None:
        return need
    state = state_of(shape, train, ranks)
    pass_of = {"a pass": need.by_token * max(found.tokens, need.longest)}
    parts = ", ".join(f"{size / GIB:.1f} {name}" for name, size in (state | pass_of).items() if size)
    where = "GPU" if resources.on_gpu else "machine"
    among = f"divided among {ranks} workers" if ranks > 1 else "whole on each worker"
    account = (
        f"{stage}: a full fine-tune of {shape.parameters / 1e9:.1f}B weights, {among}, is expected to take "
        f"{found.bytes / GIB:.1f} GiB of a {where}'s {found.room / GIB:.1f} GiB ({parts}; {found.tokens} tokens in a pass)"
    )
    if sum(state.values()) > found.room:
        raise StageError(f"{account}. That cannot fit before the first pass. {_advice(train, resources, ranks)}")
    console.note(account)
    return need


def _advice(train: TrainConfig, resources: Resources, ranks: int) -> str:
    ways = []
    if ranks == 1:
        ways.append("divide the weights (resources.shard=full, with several workers in resources.train)")
    else:
        ways.append(f"take more workers than {ranks} (resources.train)")
    if train.optimizer == "adamw":
        ways.append("keep the moments in eight bits (train.optimizer=adamw8bit, another result)")
    return f"Either {', or '.join(ways)}, or train an adapter (train.method=lora)."

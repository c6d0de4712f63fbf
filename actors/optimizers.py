"""The optimizers of trainings, and how Adam's moments leave them and come back, by name of the parameters."""

from __future__ import annotations

from typing import Any

import numpy as np

from raysift.errors import StageError
from raysift.gradients.moments import Made, Moments
from raysift.settings.training import TrainConfig


def build_optimizer(model: Any, config: TrainConfig) -> Any:
    """AdamW over the model's trainable weights, with its moments in float32 or eight bits."""
    import torch

    from raysift.gradients.adam_eight_bits import AdamW8bit

    groups = decay_groups(model, config.weight_decay)
    betas = (config.adam_beta1, config.adam_beta2)
    if config.optimizer == "adamw8bit":
        return AdamW8bit(groups, lr=config.learning_rate, betas=betas, eps=config.adam_epsilon)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.adam_epsilon, fused=True)


def decay_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups: biases and norms, by transformers' own rule, do not decay; the others do."""
    from transformers import Trainer

    trainable = trainable_parameters(model)
    decaying = set(Trainer.get_decay_parameter_names(None, model))
    groups = [
        {"params": [weight for name, weight in trainable.items() if name in decaying], "weight_decay": weight_decay},
        {"params": [weight for name, weight in trainable.items() if name not in decaying], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def trainable_parameters(model: Any) -> dict[str, Any]:
    """The model's trainable parameters by name, in registration order."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def moments_of(model: Any, optimizer: Any, step: int) -> Moments:
    """Adam's state by name of the model's trainable parameters; zeros for a parameter that was never stepped.

    Arrays are taken when they are asked for, before the next step. Of a model that is divided among ranks, all must ask.
    """
    trainable, group = trainable_parameters(model), optimizer.param_groups[0]
    bare = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    shapes = {name: tuple(weight.shape) for name, weight in trainable.items()}

    def taken(moment: str) -> Made:
        return Made(shapes, lambda name: _whole(bare, trainable[name], moment))

    beta1, beta2 = group["betas"]
    return Moments(taken("exp_avg"), taken("exp_avg_sq"), step, float(beta1), float(beta2), float(group["eps"]))


def _whole(optimizer: Any, parameter: Any, moment: str) -> np.ndarray:
    """A parameter's moment in float32, put together from all ranks' shares."""
    state = optimizer.state.get(parameter, {})
    if moment not in state:
        return np.zeros(tuple(parameter.shape), np.float32)
    value = optimizer.moment(parameter, moment) if hasattr(optimizer, "moment") else state[moment]
    value = value.full_tensor() if hasattr(value, "full_tensor") else value
    array: np.ndarray = value.float().cpu().numpy()
    return array


def restore_moments(model: Any, optimizer: Any, moments: Moments) -> None:
    """Put the moments back where `moments_of` found them."""
    import torch

    trainable = trainable_parameters(model)
    if list(trainable) != moments.names:
        raise StageError(
            f"finetune: the checkpoint has moments of {len(moments.names)} parameters, the model trains "
            f"{len(trainable)}, or other ones. The model or the adapter's settings changed; start under another name."
        )
    for name, parameter in trainable.items():
        pair = _like(parameter, moments.exp_avg[name]), _like(parameter, moments.exp_avg_sq[name])
        if hasattr(optimizer, "restore"):
            optimizer.restore(parameter, moments.step, *pair)
            continue
        step = torch.tensor(float(moments.step), device=parameter.device)
        optimizer.state[parameter] = {"step": step, "exp_avg": pair[0], "exp_avg_sq": pair[1]}


def _like(parameter: Any, values: np.ndarray) -> Any:
    """A tensor of these values of the parameter's type and on its device; of a divided parameter, this rank's share."""
    import torch

    tensor = torch.from_numpy(values.copy()).to(parameter.device, parameter.dtype)
    if not hasattr(parameter, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    # Every rank has read the whole, so nothing needs to be sent.
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)

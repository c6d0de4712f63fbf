"""The direction in which Adam would move the adapter if its next step used a single row.

With a row's gradient g and the checkpoint's moments m, v after t steps, m' = b1 m + (1 - b1) g, v' = b2 v + (1 - b2)
g^2:

- *official* (code of LESS and ROSE): m' / sqrt(v' + eps). No bias correction, so early checkpoints are closer to
  scaled SGD.
- *textbook*: (m' / (1 - b1^(t+1))) / (sqrt(v' / (1 - b2^(t+1))) + eps), as the papers write it.

Weight decay plays no part. The term b1 m is the same for all rows, so cosines of Adam directions lie close together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raysift.errors import ModelError
from raysift.settings.gradients import AdamSettings
from raysift.store.projection import ParameterLayout

_ADAPTER_NAME = re.compile(r"\.(lora_[AB])\.[^.]+\.weight$")


@dataclass(frozen=True)
class FlatMoments:
    """Adam's first and second moments, one flat tensor per entry of the layout, after `step` optimizer steps."""

    first: tuple[Tensor, ...]
    second: tuple[Tensor, ...]
    step: int


class AdamDirection:
    """Applies the direction in place, tensor by tensor; terms that do not depend on the row are computed once."""

    def __init__(self, settings: AdamSettings, moments: FlatMoments) -> None:
        b1, b2 = settings.beta1, settings.beta2
        self.settings = settings
        self._bias1, self._bias2 = 1.0, 1.0
        if settings.form == "textbook":
            self._bias1, self._bias2 = 1 - b1 ** (moments.step + 1), 1 - b2 ** (moments.step + 1)
        floor = settings.epsilon if settings.form == "official" else 0.0
        self._numerator = [m * (b1 / self._bias1) for m in moments.first]
        self._denominator = [v * (b2 / self._bias2) + floor for v in moments.second]

    @property
    def parts(self) -> list[Tensor]:
        """The tensors that depend on the checkpoint: numerators, then denominators, each in the layout's order."""
        return [*self._numerator, *self._denominator]

    @parts.setter
    def parts(self, given: Sequence[Tensor]) -> None:
        half = len(given) // 2
        self._numerator, self._denominator = list(given[:half]), list(given[half:])

    def apply(self, index: int, gradients: Tensor) -> None:
        """Overwrites the (rows, size) gradients of tensor `index` with their Adam directions."""
        numerator, denominator = (
            self._on(self._numerator, index, gradients),
            self._on(self._denominator, index, gradients),
        )
        root = torch.addcmul(denominator, gradients, gradients, value=(1 - self.settings.beta2) / self._bias2)
        torch.add(numerator, gradients, alpha=(1 - self.settings.beta1) / self._bias1, out=gradients)
        if self.settings.form == "official":
            gradients.mul_(root.rsqrt_())
        else:
            gradients.div_(root.sqrt_().add_(self.settings.epsilon))

    @staticmethod
    def _on(parts: list[Tensor], index: int, like: Tensor) -> Tensor:
        """Moves a tensor to the gradients' device and dtype once, and keeps it there."""
        if parts[index].device != like.device or parts[index].dtype != like.dtype:
            parts[index] = parts[index].to(device=like.device, dtype=like.dtype)
        return parts[index]


def make_direction(settings: AdamSettings, moments: FlatMoments | None) -> AdamDirection | None:
    """The direction these settings ask for; None for the plain gradient. Refuses Adam without moments; no fallback."""
    if settings.form == "none":
        return None
    if moments is None:
        raise ModelError(
            f"gradients: the {settings.form} Adam direction needs the optimizer's moments, and this checkpoint "
            "has none. "
            "Save them with the adapter, or set form to 'none' for plain gradients."
        )
    return AdamDirection(settings, moments)


def canonical_name(parameter: str) -> str:
    """A parameter's name without wrapper prefixes and without the adapter's own name, as in PEFT's files."""
    for prefix in ("module.", "_orig_mod."):
        parameter = parameter.removeprefix(prefix)
    parameter = parameter.replace("_fsdp_wrapped_module.", "").replace("_checkpoint_wrapped_module.", "")
    return _ADAPTER_NAME.sub(r".\1.weight", parameter)


def named_moments(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], step: int, layout: ParameterLayout
) -> FlatMoments:
    """Puts moments saved by parameter name into the layout's order and checks names, shapes and values."""
    return FlatMoments(_ordered(first, layout, "first"), _ordered(second, layout, "second"), step)


def optimizer_moments(state: Mapping[str, Any], layout: ParameterLayout) -> tuple[FlatMoments, str]:
    """Moments out of a torch optimizer's state dict, keyed by name (FSDP) or number; also returns which, in words.

    Numbers follow the registration order of the trainable parameters, which is the layout's order. Shapes are checked,
    but tensors of the same shape are indistinguishable, so prefer names wherever there is a choice.
    """
    entries: Mapping[Any, Any] = state.get("state", state)
    if not entries:
        raise ModelError("gradients: the optimizer state is empty; it was saved before the first step.")
    by_number = all(isinstance(key, int) for key in entries)
    numbers = [number for group in state.get("param_groups", []) for number in group["params"]] or sorted(entries)
    if by_number and not len(entries) == len(numbers) == len(layout.names):
        raise ModelError(
            f"gradients: the optimizer state holds {len(entries)} of {len(numbers)} tensors, the adapter has "
            f"{len(layout.names)}. It belongs to another adapter, or other parameters were trained too."
        )
    keys = dict(zip(numbers, layout.names, strict=True)) if by_number else {key: key for key in entries}
    named = {keys[key]: entry for key, entry in entries.items()}
    missing = [name for name, entry in named.items() if "exp_avg" not in entry or "exp_avg_sq" not in entry]
    if missing:
        raise ModelError(f"gradients: no Adam moments for {missing[0]}; found {sorted(named[missing[0]])}.")
    steps = {int(entry["step"]) for entry in named.values() if "step" in entry}
    if len(steps) != 1:
        raise ModelError(f"gradients: the optimizer state has steps {sorted(steps)}, expected one for all tensors.")
    first = {name: entry["exp_avg"] for name, entry in named.items()}
    second = {name: entry["exp_avg_sq"] for name, entry in named.items()}
    return named_moments(first, second, steps.pop(), layout), "by number" if by_number else "by name"


def _ordered(parts: Mapping[str, Tensor], layout: ParameterLayout, which: str) -> tuple[Tensor, ...]:
    found = {canonical_name(name): tensor for name, tensor in parts.items()}
    missing = [name for name in layout.names if name not in found]
    if missing:
        raise ModelError(
            f"gradients: the {which} moments lack {len(missing)} of {len(layout.names)} adapter tensors, "
            f"first {missing[0]} (found {len(found)}, first {min(found, default='none')}). They belong to another "
            "adapter."
        )
    ordered = []
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        tensor = found[name].detach()
        if tuple(tensor.shape) != shape:
            raise ModelError(
                f"gradients: the {which} moment of {name} is {tuple(tensor.shape)}, the adapter's is {shape}."
            )
        tensor = tensor if tensor.dtype == torch.float64 else tensor.float()
        if not bool(torch.isfinite(tensor).all()) or (which == "second" and bool((tensor < 0).any())):
            raise ModelError(f"gradients: the {which} moment of {name} holds NaN, infinite or impossible values.")
        ordered.append(tensor.flatten())
    return tuple(ordered)

"""Finds the LoRA linear layers of a model by name, orders them, and refuses adapters that the hooks cannot capture.

PEFT names the two factors `*.lora_A.<adapter>` and `*.lora_B.<adapter>`; both are plain linear layers, so the base may
be anything (fused projections, Conv1D, 4-bit): only the factors' inputs and output gradients matter. The scaling alpha
/ r (or alpha / sqrt(r)) comes after them and is part of the output gradient.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from raysift.errors import ModelError
from raysift.gradients.adam import canonical_name
from raysift.store.projection import ParameterLayout

_FACTOR = re.compile(r"^(?P<layer>.+)\.lora_(?P<which>[AB])\.(?P<adapter>[^.]+)\.weight$")
# Attributes PEFT adds beside the two factors when a layer computes something other than scaling * B A x.
_REFUSED = {
    "lora_magnitude_vector": "DoRA: the norm of the merged weight depends on A and B, so a row's "
    "gradient is not a product",
    "lora_embedding_A": "LoRA on an embedding",
    "lora_variant": "a LoRA variant",
    "modules_to_save": "a fully trained module beside the adapter",
}


@dataclass(frozen=True)
class Adapter:
    """The factors of one adapter: `modules[i]` holds all layers that use the tensor `layout.names[i]`."""

    name: str
    layout: ParameterLayout
    modules: tuple[tuple[nn.Linear, ...], ...]
    outputs: tuple[nn.Linear, ...]


def find_adapter(model: nn.Module, adapter: str | None = None) -> Adapter:
    """The LoRA adapter of this name, or the only one; raises ModelError with the reason if gradients would be wrong."""
    factors = [(name, match) for name, _ in model.named_parameters() if (match := _FACTOR.match(name))]
    names = sorted({match["adapter"] for _, match in factors})
    if adapter is None and len(names) == 1:
        adapter = names[0]
    if adapter is None or adapter not in names:
        raise ModelError(f"gradients: no LoRA adapter {adapter or 'to take by default'} in the model (found: {names}).")
    _refuse_unknown(model, adapter)
    parameters = dict(model.named_parameters())
    chosen = [name for name, match in factors if match["adapter"] == adapter]
    _check_factors(parameters, chosen)
    users: dict[int, list[nn.Linear]] = {id(parameters[name]): [] for name in chosen}
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if weight is not None and id(weight) in users:
            users[id(weight)].append(_checked_linear(module, chosen))
    modules = tuple(tuple(users[id(parameters[name])]) for name in chosen)
    layout = ParameterLayout(
        tuple(canonical_name(name) for name in chosen), tuple(tuple(parameters[name].shape) for name in chosen)
    )
    last = [i for i, name in enumerate(chosen) if ".lora_B." in name]
    return Adapter(adapter, layout, modules, tuple(module for i in last for module in modules[i]))


@contextmanager
def adapter_off(adapter: Adapter) -> Iterator[None]:
    """Inside the block the model acts as its base: every B factor returns zeros."""

    def zeros(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return output.new_zeros(output.shape)

    handles = [module.register_forward_hook(zeros) for module in adapter.outputs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_factors(parameters: dict[str, nn.Parameter], chosen: list[str]) -> None:
    other = [name for name, p in parameters.items() if p.requires_grad and name not in chosen and "lora_" not in name]
    if other:
        raise ModelError(
            f"gradients: {len(other)} parameters besides the adapter's factors are trained, first {other[0]}. "
            "Only LoRA factors have row gradients here: freeze the others, or train the adapter without them."
        )
    shapes = {name: tuple(parameters[name].shape) for name in chosen}
    bad = next((name for name, shape in shapes.items() if len(shape) != 2), None)
    if bad:
        raise ModelError(f"gradients: {bad} has shape {shapes[bad]}, expected two dimensions (a linear layer).")


def _checked_linear(module: nn.Module, chosen: list[str]) -> nn.Linear:
    if not isinstance(module, nn.Linear):
        raise ModelError(f"gradients: a LoRA factor is a {type(module).__name__}, expected Linear (near {chosen[0]}).")
    if module.bias is not None:
        raise ModelError(
            "gradients: LoRA factors with a bias (lora_bias) are not supported. Train the adapter without."
        )
    return module


def _refuse_unknown(model: nn.Module, adapter: str) -> None:
    for name, module in model.named_modules():
        for attribute, why in _REFUSED.items():
            held = getattr(module, attribute, None)
            if held is not None and adapter in held:
                raise ModelError(f"gradients: {name} has {why}. Train a plain LoRA adapter on linear layers instead.")
        if hasattr(module, "lora_A") and adapter in module.lora_A and getattr(module, "parameter_name", None):
            raise ModelError(
                f"gradients: {name} adapts the bare parameter {module.parameter_name} (target_parameters), whose "
                "factors "
                "are never called as layers. Leave it out of the adapter: attention and dense layers can be adapted."
            )
        if getattr(module, "merged", False):
            raise ModelError(f"gradients: the adapter is merged into {name}. Unmerge it first.")

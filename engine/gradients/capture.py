"""Every row's own gradient of every LoRA factor, from one backward pass of the whole batch.

For a linear layer y = W x, the gradient of row b's loss is the sum over its tokens t of outer(delta[b, t], x[b, t]),
where delta is the gradient at y: one batched matrix product. Rows do not see each other, so one backward pass from the
sum of their losses gives each row's delta. Autograd never records weight gradients: parameters are frozen, and the tape
starts at the first A factor. A gradient is passed on as soon as it is complete, so at most one tensor per row is alive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from raysift.errors import ModelError
from raysift.gradients.adapter import Adapter

Receiver = Callable[[int, Tensor], None]


class RowsMixed(Exception):
    """A layer saw tokens that are no longer ordered by row (routed, flattened). Harmless with one row per batch."""


class Capture:
    """Collects row gradients during one forward and one backward pass.

    `receive(index, gradients)` gets a tensor (rows, size), which it may keep or overwrite.
    """

    def __init__(self, adapter: Adapter, shape: tuple[int, int], receive: Receiver) -> None:
        self._adapter = adapter
        self._shape = shape
        self._receive = receive
        self._calls = [0] * len(adapter.modules)
        self._answered = [0] * len(adapter.modules)
        self._partial: dict[int, Tensor] = {}
        self._emitted: set[int] = set()

    @contextmanager
    def hooked(self, model: nn.Module) -> Iterator[None]:
        """Inside the block, hooks watch the model's forward pass and its parameters are frozen."""
        trained = [p for p in model.parameters() if p.requires_grad]
        handles = [
            module.register_forward_hook(partial(self._called, index))
            for index, modules in enumerate(self._adapter.modules)
            for module in modules
        ]
        try:
            for parameter in trained:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)
            for handle in handles:
                handle.remove()

    def check_called(self) -> None:
        """Call between forward and backward: raises ModelError if no layer of the adapter ran, e.g. when it is off."""
        if not any(self._calls):
            raise ModelError(
                f"gradients: no layer of adapter '{self._adapter.name}' was called. Activate it (set_adapter) and "
                "unmerge it."
            )

    def flush(self) -> None:
        """Call after backward: passes on sums still waiting for calls that do not affect the loss, and zeros for unused
        layers."""
        for index, size in enumerate(self._adapter.layout.sizes):
            if index not in self._emitted:
                weight = self._adapter.modules[index][0].weight
                dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
                zeros = torch.zeros(self._shape[0], size, device=weight.device, dtype=dtype)
                self._emit(index, self._partial.pop(index, zeros))

    def _called(self, index: int, _module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        values = inputs[0].detach()
        rows = self._shape[0]
        if rows > 1 and (values.dim() < 3 or tuple(values.shape[:2]) != self._shape):
            raise RowsMixed(f"{self._adapter.layout.names[index]}: input of shape {tuple(values.shape)}")
        self._calls[index] += 1
        if not output.requires_grad:
            output = output.detach().requires_grad_(True)
        arrived = partial(self._arrived, index, values.reshape(rows, -1, values.shape[-1]))
        output.register_hook(arrived)  # type: ignore[no-untyped-call]
        return output

    def _arrived(self, index: int, values: Tensor, delta: Tensor) -> None:
        delta = delta.reshape(values.shape[0], -1, delta.shape[-1])
        if values.dtype in (torch.bfloat16, torch.float16) or delta.dtype != values.dtype:
            # A product of half-precision tensors would round each row's gradient to 8 or 11 bits.
            values, delta = values.float(), delta.float()
        gradients = torch.bmm(delta.transpose(1, 2), values).flatten(1)
        if index in self._partial:
            gradients = gradients.add_(self._partial.pop(index))
        self._answered[index] += 1
        if self._answered[index] == self._calls[index]:
            self._emit(index, gradients)
        else:
            self._partial[index] = gradients

    def _emit(self, index: int, gradients: Tensor) -> None:
        self._emitted.add(index)
        self._receive(index, gradients)

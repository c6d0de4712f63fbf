"""Token losses of a batch and their gradient at the logits, for the predicted positions only.

The language-model head is by far the widest layer, so it is applied only at positions with a label: a hook
drops the other hidden states before the head. Steps after the head (scaling, soft capping) are elementwise and
unaffected.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from raysift.gradients.rows import PaddedRows


def label_logits(model: nn.Module, batch: PaddedRows, head: nn.Module | None) -> Tensor:
    """Logits of the predicted positions, (positions, vocabulary)."""
    rows, width = batch.input_ids.shape
    thinned = False

    def thin(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        nonlocal thinned
        hidden = inputs[0]
        if hidden.shape[:2] != (rows, width):
            return None
        thinned = True
        kept = hidden.flatten(0, 1).index_select(0, batch.positions.to(hidden.device))
        return (kept.unsqueeze(0), *inputs[1:])

    handle = head.register_forward_pre_hook(thin) if head is not None else None
    try:
        arguments = {"use_cache": False} if hasattr(model, "config") else {}
        output = model(input_ids=batch.input_ids, **arguments)
    finally:
        if handle is not None:
            handle.remove()
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    logits = logits.flatten(0, -2)
    return logits if thinned else logits.index_select(0, batch.positions.to(logits.device))


def find_head(model: nn.Module) -> nn.Module | None:
    """The layer that computes the logits, if the model names one and it contains no adapter."""
    get = getattr(model, "get_output_embeddings", None)
    head: nn.Module | None = get() if callable(get) else None
    if head is None or any("lora_" in name for name, _ in head.named_modules()):
        return None
    return head


def row_losses(logits: Tensor, batch: PaddedRows, weights: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """Each row's sum of `weights` (one per position) x cross-entropy, and the gradient of their total at the logits.

    The gradient is computed by formula, weights x (softmax - onehot), not by autograd: one pass fewer over the logits.
    """
    wide = logits.detach()
    wide = wide if wide.dtype == torch.float64 else wide.float()
    targets, row_of = batch.targets.to(logits.device), batch.row_of.to(logits.device)
    weights = weights.to(device=wide.device, dtype=wide.dtype)
    normaliser = wide.logsumexp(dim=1)
    losses = (normaliser - wide.gather(1, targets.unsqueeze(1)).squeeze(1)) * weights
    total = torch.zeros(len(batch.input_ids), dtype=wide.dtype, device=wide.device).index_add_(0, row_of, losses)
    if not with_gradient:
        return total, None
    # In place where `wide` is a copy; logits themselves may be kept for the backward pass.
    shifted = wide.sub_ if wide.data_ptr() != logits.data_ptr() else wide.sub
    gradient = shifted(normaliser.unsqueeze(1)).exp_()
    gradient.mul_(weights.unsqueeze(1))
    gradient.scatter_add_(1, targets.unsqueeze(1), -weights.unsqueeze(1))
    return total, gradient.to(logits.dtype)

"""Multiplying float32 matrices quickly: on CPUs by the faster of torch's two libraries where both are exact, on GPUs as TF32.

LoRA factors, and checkpoints stored in float32 (most reward models and encoders), multiply in float32. A GPU then leaves its
tensor cores idle, ten times slower on an H100 than with them. TF32 rounds the factors of a product to 11 significant bits and
sums in float32; bfloat16, in which the base computes, has 8. A test measures what that does to row gradients and their scores.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from typing import Any

import torch
from torch import Tensor

WORTH_IT = 192
"""Smallest hidden size at which oneDNN pays: it compiles each shape first, which costs more than small products do."""


@contextlib.contextmanager
def quick_products(model: Any) -> Iterator[None]:
    """Inside the block: TF32 for a model on a GPU, oneDNN on a CPU if that is exact and pays for this model, else as usual.

    Torch uses MKL, which leaves AVX-512 unused on AMD: 100 Gflop/s on one core against oneDNN's 210. Its only switch to
    oneDNN also permits bfloat16, which processors with matrix units then use; so a trial product checks it first.
    """
    if _on_gpu(model):
        with _tf32_permitted():
            yield
        return
    with _bfloat16_permitted() if _is_wide(model) and _permission_changes_nothing() else contextlib.nullcontext():
        yield


def _on_gpu(model: Any) -> bool:
    weights = model.parameters() if callable(getattr(model, "parameters", None)) else iter(())
    return any(weight.device.type == "cuda" for weight in islice(weights, 1))


@contextlib.contextmanager
def _tf32_permitted() -> Iterator[None]:
    """Torch's switch is one for the whole process, so it is put back; before torch 2.9 it has another name."""
    switch: Any = torch.backends.cuda.matmul
    name, value = ("fp32_precision", "tf32") if hasattr(switch, "fp32_precision") else ("allow_tf32", True)
    before = getattr(switch, name)
    setattr(switch, name, value)
    try:
        yield
    finally:
        setattr(switch, name, before)


def _is_wide(model: Any) -> bool:
    find = getattr(model, "get_input_embeddings", None)
    weight = getattr(find() if callable(find) else None, "weight", None)
    if not isinstance(weight, Tensor):
        return False
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.shape[-1] >= WORTH_IT


@contextlib.contextmanager
def _bfloat16_permitted() -> Iterator[None]:
    backend: Any = torch.backends.mkldnn
    switch = backend.matmul
    before = switch.fp32_precision
    switch.fp32_precision = "bf16"
    try:
        yield
    finally:
        switch.fp32_precision = before


@lru_cache(maxsize=1)
def _permission_changes_nothing() -> bool:
    """Whether products on this processor keep float32 precision even when bfloat16 is permitted."""
    if not hasattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision"):
        return False  # torch before 2.9
    # oneDNN caches kernels by shape, and every batch has new ones: the default 1024 took 700 MB; 64 take 300, as fast.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    draw = torch.Generator().manual_seed(0)
    left, right = (torch.randn(2, 64, 512, generator=draw) for _ in range(2))
    exact = left.double() @ right.double().mT
    with _bfloat16_permitted():
        found = left @ right.mT, torch.nn.functional.linear(left[0], right[0]).unsqueeze(0)
    # Sums of 512 products are about 23; the error is about 1e-5 in float32 and 1e-1 in bfloat16.
    return all(bool((product - exact[: len(product)]).abs().max() < 1e-3) for product in found)

"""Multiplying float32 matrices on the CPU by the faster of torch's two libraries, where both are exact."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

WORTH_IT = 192
"""Hidden numbers of a model from which oneDNN pays: each shape is compiled first, for which small products are too quick."""


@contextlib.contextmanager
def quick_products(model: Any) -> Iterator[None]:
    """Multiplies by oneDNN in this block where that is exact and pays for this model, and as usual elsewhere.

    Torch takes MKL, which on AMD leaves AVX-512 unused: 100 against 210 Gflop/s on one core. Its one switch to oneDNN
    permits bfloat16 as well, which processors with matrix units then use; so the switch is tried on a product first.
    """
    with _bfloat16_permitted() if _is_wide(model) and _permission_changes_nothing() else contextlib.nullcontext():
        yield


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
    """Whether products stay at float32's precision on this processor where bfloat16's is permitted."""
    if not hasattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision"):
        return False  # torch before 2.9
    # Kernels are kept by shape, and every batch brings new ones: the usual 1024 took 700 MB, 64 are as fast with 300.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    draw = torch.Generator().manual_seed(0)
    left, right = (torch.randn(2, 64, 512, generator=draw) for _ in range(2))
    exact = left.double() @ right.double().mT
    with _bfloat16_permitted():
        found = left @ right.mT, torch.nn.functional.linear(left[0], right[0]).unsqueeze(0)
    # Sums of 512 products are about 23; float32 is off by some 1e-5, bfloat16 by some 1e-1.
    return all(bool((product - exact[: len(product)]).abs().max() < 1e-3) for product in found)

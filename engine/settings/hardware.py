"""Number types that the processor multiplies in hardware; they decide the type if a setting is `auto`."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Literal

Dtype = Literal["auto", "bf16", "fp32"]

CPU_INFO = Path("/proc/cpuinfo")
NVIDIA_DEVICES = Path("/proc/driver/nvidia/gpus")
BF16_FLAGS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})
"""CPU flags of x86 and Arm. Without any of them, bfloat16 products are emulated: 25 times slower than float32 on AVX2."""


@functools.cache
def multiplies_bf16(cpu_info: Path = CPU_INFO) -> bool:
    """Whether this machine's CPU has instructions for bfloat16 products; False if unknown."""
    try:
        lines = cpu_info.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2] for line in lines if line.lower().startswith(("flags", "features"))), "")
    return bool(BF16_FLAGS & set(flags.split()))


def usual_dtype(on_gpu: bool) -> str:
    """bf16 if the hardware multiplies it, else fp32."""
    return "bf16" if on_gpu or multiplies_bf16() else "fp32"


def settle_dtype(asked: str, on_gpu: bool, stored: Callable[[], str] = lambda: "bf16") -> str:
    """The type that `auto` stands for; a model that is `stored` in float32 is not rounded."""
    if asked != "auto":
        return asked
    usual = usual_dtype(on_gpu)
    return usual if usual == "fp32" else stored()


def local_gpus(devices: Path = NVIDIA_DEVICES) -> int:
    """NVIDIA GPUs of this machine that CUDA_VISIBLE_DEVICES does not hide, counted without loading a library."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = len(list(devices.iterdir())) if devices.is_dir() else 0
    return (
        found
        if visible is None
        else min(found, len([name for name in visible.split(",") if name.strip() not in ("", "-1")]))
    )


def describe_cpu(cpu_info: Path = CPU_INFO) -> str:
    """The processor's name, or its architecture if the system does not give one."""
    try:
        lines = cpu_info.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.lower().startswith("model name")), "")
    return named or platform.processor() or platform.machine()

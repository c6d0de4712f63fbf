"""What the processor multiplies by itself: decides the number type where a setting says `auto`."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
BF16_FLAGS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})
"""Of x86 and of Arm. Where none is there, products of bfloat16 are emulated: 25 times slower than float32 on AVX2."""


@functools.cache
def multiplies_bf16(cpu_info: Path = CPU_INFO) -> bool:
    """Whether this machine's CPU has instructions for products of bfloat16; False where nothing tells."""
    try:
        lines = cpu_info.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2] for line in lines if line.lower().startswith(("flags", "features"))), "")
    return bool(BF16_FLAGS & set(flags.split()))


def usual_dtype(on_gpu: bool) -> str:
    """bf16 where the hardware multiplies it, else fp32."""
    return "bf16" if on_gpu or multiplies_bf16() else "fp32"


def describe_cpu(cpu_info: Path = CPU_INFO) -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = cpu_info.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.lower().startswith("model name")), "")
    return named or platform.processor() or platform.machine()

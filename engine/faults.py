"""What an error of torch says of its machine: memory that ran out, or a device that is broken; known by name and text alone.

Neither is a row's fault. With less to do at once, memory may suffice; after an error of the device, its process can compute
nothing more, and only another process, perhaps on another GPU, can tell whether the device or a row was the cause.
"""

from __future__ import annotations

import gc
import sys

HOST_FULL = ("can't allocate memory", "not enough memory")
GPU_FULL = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
BROKEN = (
    "CUDA error",
    "CUDA driver error",
    "HIP error",
    "NCCL",
    "ECC error",
    "device-side assert",
    "CUBLAS",
    "cuDNN",
    "CUDNN",
    "illegal memory access",
    "unspecified launch failure",
)
"""Words of errors after which a process computes nothing more on its device."""
BROKEN_KINDS = ("AcceleratorError", "DistBackendError")


def lacks_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the device or of the host."""
    return lacks_host_memory(error) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in GPU_FULL)
    )


def lacks_host_memory(error: BaseException) -> bool:
    """Whether the host's memory ran out, which other processes share."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in HOST_FULL)
    )


def device_fault(error: BaseException | None) -> str | None:
    """The line of an error, or of the one that caused it, that tells of a broken device; None if none does."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, RuntimeError) and not lacks_memory(error):
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            named = [line for line in lines if any(word in line for word in BROKEN)]
            if named or any(kind.__name__ in BROKEN_KINDS for kind in type(error).__mro__):
                return (named or lines)[0]
        error = error.__cause__
    return None


def free_memory() -> None:
    """Give back what a failed pass held; to be called when its error, which holds its tensors, is gone."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()

"""Computes the matrix products of k-center: threads with one buffer each, in full float32 precision.

Each thread takes blocks of rows and runs single-threaded products on them, so that a block's result is still in the core's
cache when its minimum is taken, and no thread waits for another at a barrier. On a machine with other work, such waits
cost more than the products (small ones took 50 ms instead of 1). On devices other than a CPU, the caller's thread does
all the work.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
R = TypeVar("R")
F = TypeVar("F", np.float32, np.float64)


class Team:
    """Calls a function for each block; `threads` defaults to as many as torch would use."""

    def __init__(self, device: str = "cpu", threads: int | None = None) -> None:
        import torch

        self._torch, self._device = torch, device
        self._own = threading.local()
        self._pool: ThreadPoolExecutor | None = None
        self._hands = 1
        if device == "cpu":
            self._start(threads or torch.get_num_threads())

    def each(self, work: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Results for all items, in no particular order."""
        if not self._pool:
            return [work(item) for item in items]
        # Handing over items one by one would cost more than the work on many of them.
        hands = [items[start :: self._hands] for start in range(min(self._hands, len(items)))]
        answers = self._pool.map(lambda some: [work(item) for item in some], hands)
        return [answer for some in answers for answer in some]

    def buffer(self, size: int) -> Any:
        """A buffer of `size` float32 numbers owned by this thread; its next call reuses the memory."""
        held = getattr(self._own, "buffer", None)
        if held is None or held.numel() < size:
            held = self._own.buffer = self._torch.empty(size, device=self._device)
        return held[:size]

    def close(self) -> None:
        """End the threads."""
        if self._pool:
            self._pool.shutdown()

    def _start(self, threads: int) -> None:
        torch, usual = self._torch, self._torch.get_num_threads()
        ready = threading.Barrier(threads + 1)

        def single() -> None:
            torch.set_num_threads(1)  # for this thread, but also the default for later threads
            ready.wait()

        self._hands = 4 * threads  # so that other threads take over the share of a delayed one
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="k-center")
        for _ in range(threads):
            self._pool.submit(single)
        ready.wait()
        torch.set_num_threads(usual)  # restores the default for other code's threads


def multiply(left: NDArray[F], right: NDArray[F]) -> NDArray[F]:
    """left @ right.T by torch, which obeys `calm`; numpy's own product would not."""
    import torch

    product: NDArray[F] = (torch.from_numpy(left) @ torch.from_numpy(right).T).numpy()
    return product


@contextlib.contextmanager
def calm() -> Iterator[None]:
    """Inside the block torch computes only on the calling thread and in full float32 precision.

    The error bound needs that precision even if the host program has allowed TF32 or bfloat16. Afterwards, the previous
    settings are restored.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _full_precision(torch):
            yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _full_precision(torch: Any) -> Iterator[None]:
    matmuls = [m for m in (torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)) if m]
    if not all(hasattr(m, "fp32_precision") for m in matmuls):
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
        return
    settings = [m.fp32_precision for m in matmuls]
    for matmul in matmuls:
        matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        for matmul, setting in zip(matmuls, settings, strict=True):
            matmul.fp32_precision = setting

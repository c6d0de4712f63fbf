"""The processes of one training: they share out its passes and its validation, and all hold the same weights.

Nothing that they exchange is rounded differently for another number of them. Gradients come in a fixed number of LANES and are
added in a fixed binary tree over the lanes:

    ((0+1)+(2+3)) + ((4+5)+(6+7))

A process has neighbouring lanes and adds what lies among them. Then pairs of processes swap their sums and add them, and pairs
of pairs; a + b is b + a to the last bit, so both have the same. All other numbers are a single process's own, beside zeros.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

LANES = 8
"""Parts of a batch that can be worked on side by side; also the most processes that one training uses."""


class Peers:
    """A process that trains by itself."""

    rank, size = 0, 1

    @property
    def lanes(self) -> range:
        """The lanes of this process."""
        each = LANES // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def add_up(self, sums: Sequence[Any]) -> None:
        """Replace the tensors, sums over this process's lanes, by the sums over all lanes."""

    def merge(self, numbers: Numbers) -> Numbers:
        """Numbers of which each comes from the one process that knows it; the others have 0 there."""
        return numbers

    def agree(self, find: Callable[[], Any]) -> Any:
        """What the first process finds; only there `find` is called."""
        return find()


class Group(Peers):
    """One of several processes that torch.distributed connects: NCCL between GPUs, gloo between CPUs."""

    def __init__(self, rank: int, size: int, address: str, on_gpu: bool, timeout_s: float) -> None:
        import torch.distributed as dist

        if size & (size - 1) or size > LANES:
            raise ValueError(f"peers: {size} processes; expected a power of two up to {LANES}")
        self.rank, self.size, self.device = rank, size, "cuda" if on_gpu else "cpu"
        # Whoever waits longer for another process than this ends, so that the group can start again.
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            init_method=f"tcp://{address}",
            rank=rank,
            world_size=size,
            timeout=datetime.timedelta(seconds=timeout_s),
        )

    def add_up(self, sums: Sequence[Any]) -> None:
        import torch
        import torch.distributed as dist

        for own in sums:
            other, distance = torch.empty_like(own), 1
            while distance < self.size:
                peer = self.rank ^ distance
                swap = [dist.P2POp(dist.isend, own, peer), dist.P2POp(dist.irecv, other, peer)]
                for waiting in dist.batch_isend_irecv(swap):
                    waiting.wait()
                own.add_(other)
                distance *= 2

    def merge(self, numbers: Numbers) -> Numbers:
        import torch
        import torch.distributed as dist

        known = torch.tensor(numbers, device=self.device)
        dist.all_reduce(known)
        found: Numbers = known.cpu().numpy()
        return found

    def agree(self, find: Callable[[], Any]) -> Any:
        import torch
        import torch.distributed as dist

        found = [find() if self.rank == 0 else None]
        dist.broadcast_object_list(found, src=0, device=torch.device(self.device))
        return found[0]


ALONE = Peers()


class TreeSum:
    """Adds up lanes one after the other in the tree above, holding one sum of each size at most."""

    def __init__(self) -> None:
        self._held: list[tuple[int, Any]] = []

    def add(self, lane: Any) -> None:
        """The next lane, which becomes the sum's own; None stands for zeros."""
        size = 1
        while self._held and self._held[-1][0] == size:
            before = self._held.pop()[1]
            lane = before if lane is None else lane if before is None else before.add_(lane)
            size *= 2
        self._held.append((size, lane))

    def result(self) -> Any:
        """The sum, once as many lanes were added as a power of two; None if all are zeros."""
        ((_, total),) = self._held
        return total


def most_processes(limit: int) -> int:
    """The largest number of processes that share the lanes evenly, at most `limit`."""
    return max(size for size in (1, 2, 4, LANES) if size <= max(1, limit))

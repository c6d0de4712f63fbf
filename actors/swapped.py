"""Tensors of several checkpoints, of which a model uses one's at a time: all on its device if they fit, else swapped in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from raysift.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, device

SHARE_KEPT = 4  # the part of a GPU's free memory that lists may take for good is one in so many; passes need the rest


class Swapped:
    """Lists of tensors of equal shapes, one for each checkpoint; `use` gives one list on the devices that it belongs to.

    Lists that fit are moved there once. If they do not, they wait in page-locked host memory, from which a GPU copies while it
    computes, and take turns in one list of tensors on the devices.
    """

    def __init__(self, lists: Sequence[Sequence[Tensor]], devices: Sequence[device], fits: bool | None = None) -> None:
        import torch

        self.copied = 0
        """Bytes copied to the devices since all lists were at hand."""
        self.fits = have_room(lists, devices) if fits is None else fits
        self._lists = [list(own) for own in lists]
        self._held: list[Tensor] = []
        self._now: int | None = None
        if self.fits:
            self._lists = [[t.to(on) for t, on in zip(own, devices, strict=True)] for own in lists]
        else:
            self._lists = [
                [t.pin_memory() if on.type == "cuda" else t for t, on in zip(own, devices, strict=True)]
                for own in lists
            ]
            self._held = [torch.empty_like(t, device=on) for t, on in zip(lists[0], devices, strict=True)]

    def use(self, index: int) -> list[Tensor]:
        """The list of this checkpoint; it holds until another one is used."""
        if self.fits:
            return self._lists[index]
        if self._now != index:
            for held, own in zip(self._held, self._lists[index], strict=True):
                held.copy_(own, non_blocking=True)
                self.copied += own.nbytes
            self._now = index
        return self._held


def have_room(lists: Sequence[Sequence[Tensor]], devices: Sequence[device]) -> bool:
    """Whether all lists may stay on their devices: they do on CPUs, and on GPUs if passes keep most of the free memory."""
    return all(size <= free_bytes(on) // SHARE_KEPT for on, size in _on_gpus(lists, devices).items())


def require_room(tensors: Sequence[Tensor], devices: Sequence[device]) -> None:
    """Refuses one checkpoint's targets that a GPU has no room for."""
    for on, size in _on_gpus([tensors], devices).items():
        if size > (free := free_bytes(on)):
            raise ModelError(
                f"gradients: the targets of one checkpoint take {size / 2**30:.1f} GiB on {on}, which has {free / 2**30:.1f} GiB "
                "free beside the model. Set matching=store in the method's section, or give fewer subtasks."
            )


def _on_gpus(lists: Sequence[Sequence[Tensor]], devices: Sequence[device]) -> Counter[device]:
    asked: Counter[device] = Counter()
    for own in lists:
        for tensor, on in zip(own, devices, strict=True):
            if on.type == "cuda":
                asked[on] += tensor.nbytes
    return asked


def free_bytes(on: device) -> int:
    """Bytes of a GPU that nobody holds."""
    import torch

    free: int = torch.cuda.mem_get_info(on)[0]
    return free

"""Random projections that keep inner products, defined only by kind, dimension, seed and the named parameter order.

Let g be a row's gradient as one vector, parameters in the order of `ParameterLayout`, and i an index into it.

- *sketch*: block k = i // d, place j = i % d; out[(j + shift_k) mod d] += sign_i g_i. One pass over g, no
  matrix. E<Sx, Sy> = <x, y>, and Var <Sx, Sy> = 1/d sum over blocks k != l of (|x_k|^2 |y_l|^2 + <x_k, y_k> <x_l,
  y_l>), never more than that of LESS's dense matrix of signs, R g / sqrt(d), apart from the coordinates that the
  latter's diagonal spares.
- *signs* (default): the sketch, rotated so that its numbers have a similar spread (`rotation`); the store keeps their
  signs (`vectors`).
- *none*: the gradient itself.

Signs and shifts are bits of splitmix64 at a counter, drawn on the host: identical on every device, in any process and
for any subset of the parameters. The dense matrix is not offered: LESS draws it with TRAK, whose bits depend on the
device.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysift.errors import ConfigError
from raysift.settings.gradients import ProjectionSettings
from raysift.store.rotation import rotate

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1
_SIGNS, _SHIFTS = 1, 2  # separate streams of one seed
_GATHER_FROM = 64  # a tensor that spans more blocks than this is folded by one gather instead of a slice per block


@dataclass(frozen=True)
class ParameterLayout:
    """The order in which an adapter's tensors form one long vector."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Numbers in each tensor."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each tensor starts in the vector."""
        return tuple(np.concatenate([[0], np.cumsum(self.sizes)[:-1]]).astype(int).tolist()) if self.sizes else ()

    @property
    def total(self) -> int:
        """Length of the vector."""
        return sum(self.sizes)

    @cached_property
    def hash(self) -> str:
        """Sixteen hex digits that change with any name, shape or position."""
        return _digest([[name, list(shape)] for name, shape in zip(self.names, self.shapes, strict=True)])


class Projection:
    """Turns gradients, tensor by tensor, into `width` numbers per row; a sum, so tensors may arrive in any order."""

    def __init__(self, settings: ProjectionSettings, layout: ParameterLayout) -> None:
        if layout.total == 0:
            raise ConfigError("projection: the adapter has no parameters")
        self.settings = settings
        self.layout = layout
        self.width = layout.total if settings.kind == "none" else settings.dimension
        self._signs: dict[tuple[int, torch.device], Tensor] = {}

    @cached_property
    def hash(self) -> str:
        """Sixteen hex digits; vectors may be compared only if these are equal."""
        drawn = {"version": 1, "dimension": self.settings.dimension, "seed": self.settings.seed}
        return _digest(
            {"kind": self.settings.kind, "layout": self.layout.hash, **({} if self.settings.kind == "none" else drawn)}
        )

    def add(self, accumulator: Tensor, index: int, gradients: Tensor) -> None:
        """Adds the projection of tensor `index`, (rows, size), to the (rows, width) accumulator; may overwrite the
        gradients."""
        if self.settings.kind == "none":
            offset = self.layout.offsets[index]
            accumulator[:, offset : offset + gradients.shape[1]].add_(gradients)
        else:
            self._add_sketch(accumulator, index, gradients)

    def finish(self, accumulator: Tensor) -> Tensor:
        """The projected rows, after every tensor has been added."""
        return rotate(accumulator) if self.settings.kind == "signs" else accumulator

    def project(self, vectors: Tensor) -> Tensor:
        """Projects whole gradients, (rows, layout.total), at once."""
        if vectors.shape[1] != self.layout.total:
            raise ConfigError(f"projection: vectors of {vectors.shape[1]} numbers, expected {self.layout.total}")
        out = vectors.new_zeros(len(vectors), self.width)
        for index, part in enumerate(torch.split(vectors, list(self.layout.sizes), dim=1)):
            self.add(out, index, part)
        return self.finish(out)

    def _add_sketch(self, accumulator: Tensor, index: int, gradients: Tensor) -> None:
        d, start, size = self.width, self.layout.offsets[index], self.layout.sizes[index]
        signs = self._signs_of(index, gradients.device).to(gradients.dtype)
        if size > _GATHER_FROM * d:
            accumulator += self._fold(gradients * signs, start)
            return
        for source, target, length in _pieces(start, size, d, self.settings.seed):
            accumulator[:, target : target + length].addcmul_(
                gradients[:, source : source + length], signs[source : source + length]
            )

    def _fold(self, signed: Tensor, start: int) -> Tensor:
        """Rotates and sums many short blocks at once."""
        d, rows = self.width, len(signed)
        before, after = start % d, -(start + signed.shape[1]) % d
        blocks = torch.nn.functional.pad(signed, (before, after)).view(rows, -1, d)
        shifts = block_shifts(self.settings.seed, start // d, start // d + blocks.shape[1], d)
        source = torch.from_numpy((np.arange(d)[None, :] - shifts[:, None]) % d).to(signed.device)
        return blocks.gather(2, source.expand(rows, -1, -1)).sum(1)

    def _signs_of(self, index: int, device: torch.device) -> Tensor:
        """Signs as one byte per parameter, cached: drawing them for each batch would cost more than using them."""
        key = (index, device)
        if key not in self._signs:
            start = self.layout.offsets[index]
            drawn = parameter_signs(self.settings.seed, start, start + self.layout.sizes[index])
            self._signs[key] = torch.from_numpy(drawn).to(device)
        return self._signs[key]


def parameter_signs(seed: int, start: int, stop: int) -> NDArray[np.int8]:
    """Signs of the sketch for parameters start ... stop - 1."""
    words = _hashed(seed, _SIGNS, start // 64, -(-stop // 64))
    bits = np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little")
    return _as_signs(bits[start % 64 : start % 64 + stop - start])


def block_shifts(seed: int, start: int, stop: int, dimension: int) -> NDArray[np.int64]:
    """Rotations of the sketch's blocks start ... stop - 1. The modulo's bias is below dimension / 2^64."""
    return (_hashed(seed, _SHIFTS, start, stop) % np.uint64(dimension)).astype(np.int64)


def _pieces(start: int, size: int, dimension: int, seed: int) -> Iterator[tuple[int, int, int]]:
    """(place in the tensor, place in the output, length) of each run that stays contiguous after rotation."""
    shifts = block_shifts(seed, start // dimension, (start + size - 1) // dimension + 1, dimension)
    done = 0
    while done < size:
        block, place = divmod(start + done, dimension)
        target = (place + int(shifts[block - start // dimension])) % dimension
        length = min(size - done, dimension - place, dimension - target)
        yield done, target, length
        done += length


def _hashed(seed: int, stream: int, start: int, stop: int) -> NDArray[np.uint64]:
    """splitmix64 of a seeded stream at counters start ... stop - 1."""
    key = _mix_one((_mix_one(seed) + stream * _GOLDEN) & _MASK)
    z = np.arange(start, stop, dtype=np.uint64)
    z *= np.uint64(_GOLDEN)
    z += np.uint64((key + _GOLDEN) & _MASK)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def _mix_one(value: int) -> int:
    z = (value + _GOLDEN) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def _as_signs(bits: NDArray[np.uint8]) -> NDArray[np.int8]:
    return (bits.astype(np.int8) << 1) - np.int8(1)


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, separators=(",", ":"), sort_keys=True).encode()).hexdigest()[:16]

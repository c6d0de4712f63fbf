"""AdamW with both moments in eight bits: two bytes a weight in place of eight.

    block       BLOCK neighbours in a row of a matrix, with their largest size s in float32
    code        size / s on a grid of powers from 10^-decades to 1; the mean gradient has a sign and half the grid's steps
    step        m = b1 m + (1 - b1) g,   v = b2 v + (1 - b2) g^2
                w = (1 - lr decay) w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

A step changes v by a thousandth, less than half a step of the grid: rounded to the nearest code it would never change. So codes
are rounded up or down by chance, the nearer one more often. Chance is a hash of step, row and column, and blocks lie within
rows, which are what ranks share out: so the number of ranks changes nothing. The mean squared gradient has no code for zero, so
no small denominator becomes none. Vectors (norms, biases) keep float32. Rounded to the nearest, what was decoded gets its codes
back, so moments that were written as float32 resume a training as it was.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

BLOCK = 256
SIGNED, UNSIGNED = (127, 5), (255, 7)
"""Steps and decades of the grid for the mean gradient, with codes -127 to 127, and for the mean squared one, 0 to 255."""
CHUNK = 2**24
"""Numbers that are worked on at a time; each takes some forty bytes meanwhile."""


def encode(values: Tensor, signed: bool, chance: Tensor | float = 0.5) -> tuple[Tensor, Tensor]:
    """Codes of a matrix, and the largest size in each block of its rows; `chance` from 0 to 1 decides the rounding."""
    blocks = _in_blocks(values)
    sizes = blocks.abs()
    largest = sizes.amax(-1)
    steps, decades = SIGNED if signed else UNSIGNED
    shares = sizes / torch.where(largest > 0, largest, 1).unsqueeze(-1)
    power = (1 + shares.clamp_min(1e-30).log10() / decades) * steps
    spread = _in_blocks(chance) if isinstance(chance, Tensor) else chance
    codes = (power + spread).floor_().clamp_(0, steps)
    # With a sign, code 0 is zero and the grid begins at 1; without one, all that is smaller takes the smallest code.
    if signed:
        codes = codes * blocks.sign()
    codes = codes.to(torch.int8 if signed else torch.uint8)
    return codes.flatten(1)[:, : values.shape[1]].contiguous(), largest


def decode(codes: Tensor, largest: Tensor) -> Tensor:
    """The float32 values that the codes stand for."""
    signed = codes.dtype == torch.int8
    blocks = _in_blocks(codes.float())
    steps, decades = SIGNED if signed else UNSIGNED
    values = torch.pow(10.0, (blocks.abs() / steps - 1) * decades) * largest.unsqueeze(-1)
    values = values * blocks.sign() if signed else values
    return values.flatten(1)[:, : codes.shape[1]]


def drawn(first_row: int, shape: torch.Size, step: int, salt: int, device: Any) -> Tensor:
    """Numbers from 0 to 1 that depend on step, row and column alone."""
    rows = torch.arange(first_row, first_row + shape[0], device=device).unsqueeze(1)
    columns = torch.arange(shape[1], device=device)
    mixed = (rows * 0x9E3779B1 + columns * 0x85EBCA77 + (2 * step + salt) * 0xC2B2AE3D) & 0xFFFFFFFF
    for shift, factor in ((15, 0x2C1B3C6D), (12, 0x297A2D39)):
        mixed = ((mixed ^ (mixed >> shift)) * factor) & 0xFFFFFFFF
    return ((mixed ^ (mixed >> 15)) >> 8).float() / 2**24


def _in_blocks(matrix: Tensor) -> Tensor:
    rows, columns = matrix.shape
    width = min(BLOCK, columns)
    missing = -columns % width
    return torch.nn.functional.pad(matrix, (0, missing)).view(rows, (columns + missing) // width, width)


class AdamW8bit(torch.optim.Optimizer):
    """As torch.optim.AdamW, for float32 weights, whole or divided among ranks by rows."""

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float = 0,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make a step; a `closure`, as torch's optimizers may take, is not called."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["step"] = 0
                    self._keep(state, torch.zeros_like(_local(weight)), torch.zeros_like(_local(weight)))
                state["step"] += 1
                self._step(_local(weight), _local(weight.grad), state, group, _first_row(weight))

    def _step(
        self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any], first_row: int
    ) -> None:
        beta1, beta2 = group["betas"]
        bias1, bias2 = 1 - beta1 ** state["step"], 1 - beta2 ** state["step"]
        for rows in _chunks(weight):
            first, second = (_values(state, name, rows) for name in ("exp_avg", "exp_avg_sq"))
            own = gradient[rows]
            first.lerp_(own, 1 - beta1)
            second.mul_(beta2).addcmul_(own, own, value=1 - beta2)
            weight[rows].mul_(1 - group["lr"] * group["weight_decay"])
            weight[rows].addcdiv_(first, (second / bias2).sqrt_().add_(group["eps"]), value=-group["lr"] / bias1)
            self._keep(state, first, second, rows, first_row + rows.start)

    def _keep(
        self, state: dict[str, Any], first: Tensor, second: Tensor, rows: Any = None, first_row: int | None = None
    ) -> None:
        """Put moments into the state, all or those of some rows; without the number of the first, to the nearest code."""
        for salt, (name, values) in enumerate((("exp_avg", first), ("exp_avg_sq", second))):
            parts = {name: values} if values.dim() < 2 else {}
            if values.dim() > 1:
                flat = values.flatten(1)
                drawing = first_row is not None
                chance = drawn(first_row or 0, flat.shape, state["step"], salt, flat.device) if drawing else 0.5
                codes, largest = encode(flat, signed=name == "exp_avg", chance=chance)
                parts = {name: codes, f"{name}_largest": largest}
            for key, part in parts.items():
                if rows is None:
                    state[key] = part
                else:
                    state[key][rows] = part

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over another's state; torch by itself would make numbers in the weights' type of the codes."""
        super().load_state_dict(state_dict)
        weights = [weight for group in self.param_groups for weight in group["params"]]
        for number, state in state_dict["state"].items():
            self.state[weights[number]] = dict(state)

    def moment(self, weight: Tensor, name: str) -> Tensor:
        """A moment in float32, in the shape of the weight and divided as it is."""
        values = _values(self.state[weight], name, slice(None)).view_as(_local(weight))
        if not hasattr(weight, "full_tensor"):
            return values
        from torch.distributed.tensor import DTensor

        mesh, placements = weight.device_mesh, weight.placements  # type: ignore[attr-defined]
        return DTensor.from_local(values, mesh, placements, shape=weight.shape, stride=weight.stride())

    def restore(self, weight: Tensor, step: int, first: Tensor, second: Tensor) -> None:
        """Put back what `moment` gave, after so many steps."""
        self.state[weight] = {"step": step}
        self._keep(self.state[weight], _local(first), _local(second))


def _values(state: dict[str, Any], name: str, rows: slice) -> Tensor:
    kept = state[name][rows]
    found: Tensor = decode(kept, state[f"{name}_largest"][rows]) if f"{name}_largest" in state else kept
    return found


def _chunks(weight: Tensor) -> list[slice]:
    """Rows that are worked on together."""
    each = max(1, CHUNK // max(1, weight[:1].numel()))
    return [slice(start, start + each) for start in range(0, len(weight), each)]


def _first_row(weight: Any) -> int:
    """The number of this rank's first row in the whole matrix."""
    if not hasattr(weight, "to_local"):
        return 0
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offset = compute_local_shape_and_global_offset(weight.shape, weight.device_mesh, weight.placements)
    return int(offset[0])


def _local(tensor: Any) -> Tensor:
    found: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return found

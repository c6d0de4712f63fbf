"""Choosing a batch where the model is trained, among millions of rows: only the ids of the batch leave the device.

What never changes in a training lies there: the policy's first layer over each row's features, and the rows' ids, class by class.
A step sends two numbers for all rows and one for each row that was picked before. Noise comes from the same integers as on the
host, ties go to the smaller id, and nothing depends on the order in which a device adds.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from raysift.draws import seed_for
from raysift.errors import DataError
from raysift.policy.classes import class_quotas
from raysift.policy.drawing import Draw, step_purpose
from raysift.policy.network import Acquisition
from raysift.policy.pool import PolicyPool
from raysift.policy.settings import PolicySettings
from raysift.policy.state import State, masked
from raysift.topk import Ids

CHUNK_ROWS = 2**20
"""Rows whose hidden layers are there at a time: 256 MiB each, with 64 numbers in a layer."""


class DevicePicker:
    """Picks batches as `Picker` does, up to the rounding of the device's scores."""

    def __init__(self, pool: PolicyPool, settings: PolicySettings, network: Acquisition, device: str) -> None:
        self.settings, self.device = settings, torch.device(device)
        self.network = copy.deepcopy(network).to(self.device)
        self.order = np.argsort(pool.classes, kind="stable")
        self.sizes = np.bincount(pool.classes).astype(np.int64)
        self.known = pool.ids[self.order]
        self.ids = torch.from_numpy(self.known).to(self.device)
        features = masked(pool, settings.blocks)
        parts = []
        with torch.no_grad():
            for start in range(0, len(pool), CHUNK_ROWS):
                own = torch.from_numpy(features[self.order[start : start + CHUNK_ROWS]])
                parts.append(self.network.static_part(own.to(self.device)))
        self.static = torch.cat(parts)
        self.place = np.empty_like(self.order)
        self.place[self.order] = np.arange(len(self.order))

    def scores(self, state: State) -> Tensor:
        """F of every row, class by class, on the device."""
        seen = np.flatnonzero(state.counts)
        stage = torch.from_numpy(state.stage) * float("stage" in self.settings.blocks)
        availability = torch.zeros(len(self.known), device=self.device)
        if len(seen) and "availability" in self.settings.blocks:
            places = torch.from_numpy(self.place[seen]).to(self.device)
            availability[places] = torch.from_numpy(state.availability(seen)).to(self.device)
        return self.network.score_pool(self.static, stage.to(self.device), availability, CHUNK_ROWS)

    def batch(self, state: State, size: int, step: int, draw: Draw | None) -> Ids:
        """Ids of the batch in rising order; without a draw, those with the highest scores."""
        keys, sizes = self.scores(state).double(), self.sizes
        if draw is not None:
            keys = keys.div_(self.settings.temperature).add_(
                gumbel(self.ids, seed_for(draw.seed, step_purpose(draw, step)))
            )
        if self.settings.max_repeats is not None:
            closed = self.place[np.flatnonzero(state.counts >= self.settings.max_repeats)]
            keys[torch.from_numpy(closed).to(self.device)] = -torch.inf
            number = np.searchsorted(np.cumsum(sizes), closed, side="right")
            sizes = sizes - np.bincount(number, minlength=len(sizes))
        starts, shares = np.cumsum(self.sizes) - self.sizes, class_quotas(sizes, size)
        found = [
            best(keys[start : start + rows], share) + start
            for start, rows, share in zip(starts.tolist(), self.sizes.tolist(), shares, strict=True)
            if share
        ]
        chosen = torch.cat(found).cpu().numpy() if found else np.empty(0, np.int64)
        if len(chosen) != sum(shares):
            raise DataError(
                f"policy: {len(chosen)} rows could be chosen instead of {sum(shares)}, so some scores are NaN; the policy blew "
                "up. Lower raise.learning.actor_rate."
            )
        return np.sort(self.known[chosen])


def best(keys: Tensor, count: int) -> Tensor:
    """Places of the highest keys, of equal ones the first."""
    bar = torch.topk(keys, count, sorted=False).values.min()
    above = torch.nonzero(keys > bar).squeeze(1)
    level = torch.nonzero(keys == bar).squeeze(1)
    return torch.cat([above, level[: count - len(above)]])


def gumbel(ids: Tensor, seed: int) -> Tensor:
    """Standard Gumbel noise of each id, as `Draw.noise` has it."""
    uniform = uniform_on(ids, seed).clamp_(min=2.0**-54)
    return uniform.log_().neg_().log_().neg_()


def uniform_on(ids: Tensor, seed: int) -> Tensor:
    """The numbers of `draws.uniform_of`, bit for bit, where the ids are; whole numbers of 64 bits wrap around in torch too."""
    start = _mixed(torch.tensor([seed], dtype=torch.int64, device=ids.device))
    return _shifted(_mixed(ids + start), 11).double().div_(float(1 << 53))


def _mixed(state: Tensor) -> Tensor:
    """One round of splitmix64."""
    z = state + _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shifted(z, 31)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Shifted to the right, with zeros from the left."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _signed(number: int) -> int:
    """The signed number with these 64 bits."""
    return number - (1 << 64) if number >= 1 << 63 else number

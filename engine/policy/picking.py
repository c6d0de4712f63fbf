"""Batches picked by a policy: its network scores all rows, then `drawing` chooses among them, or `device_picking` on a GPU."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from raysift.policy.device_picking import DevicePicker
from raysift.policy.drawing import Draw, best_of_classes, class_members
from raysift.policy.network import Acquisition
from raysift.policy.pool import PolicyPool
from raysift.policy.settings import PolicySettings
from raysift.policy.state import State, masked
from raysift.topk import Ids


def picker_on(device: str, pool: PolicyPool, settings: PolicySettings, network: Acquisition) -> Picker | DevicePicker:
    """The picker that works where the model is trained."""
    if device == "cpu":
        return Picker(pool, settings, network)
    return DevicePicker(pool, settings, network, device)


class Picker:
    """Picks batches under one policy; everything constant within a training is computed once."""

    def __init__(self, pool: PolicyPool, settings: PolicySettings, network: Acquisition) -> None:
        self.pool, self.settings, self.network = pool, settings, network
        self.members = class_members(pool.classes)
        with torch.no_grad():
            self.static = network.static_part(torch.from_numpy(masked(pool, settings.blocks)))

    def scores(self, state: State) -> NDArray[np.float64]:
        """F of every row."""
        stage, availability = policy_inputs(state, self.settings)
        found: NDArray[np.float64] = (
            self.network.score_pool(self.static, stage, availability).numpy().astype(np.float64)
        )
        return found

    def batch(self, state: State, size: int, step: int, draw: Draw | None) -> Ids:
        """Ids of the batch in rising order; without a draw, those with the highest scores."""
        keys = self.scores(state)
        if draw is not None:
            keys = keys / self.settings.temperature + draw.noise(self.pool.ids, step)
        open_rows = None
        if self.settings.max_repeats is not None:
            open_rows = state.counts < self.settings.max_repeats
        return np.sort(best_of_classes(self.pool.ids, keys, self.members, size, open_rows))


def policy_inputs(
    state: State, settings: PolicySettings, rows: NDArray[np.int64] | slice = slice(None)
) -> tuple[torch.Tensor, torch.Tensor]:
    """The network's inputs that change with the step, for all rows or for `rows`; left-out blocks are zero."""
    stage = torch.from_numpy(state.stage) * float("stage" in settings.blocks)
    availability = torch.from_numpy(state.availability(rows)) * float("availability" in settings.blocks)
    return stage, availability

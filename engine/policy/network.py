"""The acquisition function F and the critic V of RAISE, as torch modules.

    F(t, d) = MLP([stage_t, difficulty_d, semantic_d, availability_{t,d}])

The first layer is linear in its inputs, and a row's availability is its only input that changes during a training. So the
layer splits into a part computed once per policy (`static_part`, rows x width) and a part that changes with the step: a
vector shared by all rows, plus a multiple of one other vector for the few rows that were picked before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from raysift.policy.state import STAGE_INPUTS

LAST_LAYER_GAIN = 0.1
"""Factor on the last layer's initial weights: scores start close together, so the first picks are nearly uniform."""
CHUNK_ROWS = 65_536


class Acquisition(nn.Module):
    """F: one score per row; rows with higher scores are picked first."""

    def __init__(self, static_inputs: int, hidden: Sequence[int], seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.static = nn.Linear(static_inputs, hidden[0])
            self.stage = nn.Linear(STAGE_INPUTS, hidden[0], bias=False)
            self.availability = nn.Linear(1, hidden[0], bias=False)
            self.rest = _layers(hidden)
            _shrink(self.rest)

    def static_part(self, features: Tensor) -> Tensor:
        """The first layer's contribution of the features that never change."""
        part: Tensor = self.static(features)
        return part

    def scores(self, static_part: Tensor, stage: Tensor, availability: Tensor) -> Tensor:
        """F of each row; `stage` is one vector for all rows, `availability` one number per row."""
        first = static_part + self.stage(stage) + self.availability(availability.unsqueeze(1))
        scores: Tensor = self.rest(torch.tanh(first)).squeeze(1)
        return scores

    def score_pool(
        self, static_part: Tensor, stage: Tensor, availability: Tensor, chunk_rows: int = CHUNK_ROWS
    ) -> Tensor:
        """F of each row as in `scores`, but without gradients and some rows at a time."""
        with torch.no_grad():
            shared = self.stage(stage)
            parts = []
            for start in range(0, len(static_part), chunk_rows):
                first = static_part[start : start + chunk_rows] + shared
                moved = availability[start : start + chunk_rows]
                seen = torch.nonzero(moved).squeeze(1)
                first[seen] += self.availability(moved[seen].unsqueeze(1))
                parts.append(self.rest(first.tanh_()).squeeze(1))
            return torch.cat(parts)


class Critic(nn.Module):
    """V(S_t): the expected further gain, from a summary of the state (see `state.summaries`)."""

    def __init__(self, inputs: int, hidden: Sequence[int], seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first = nn.Linear(inputs, hidden[0])
            self.rest = _layers(hidden)
            _shrink(self.rest)

    def forward(self, summaries: Tensor) -> Tensor:
        values: Tensor = self.rest(torch.tanh(self.first(summaries))).squeeze(1)
        return values


def _layers(hidden: Sequence[int]) -> nn.Sequential:
    """The layers after the activation of the first one."""

    def parts() -> Iterator[nn.Module]:
        for width, following in pairwise(hidden):
            yield nn.Linear(width, following)
            yield nn.Tanh()
        yield nn.Linear(hidden[-1], 1)

    return nn.Sequential(*parts())


def _shrink(layers: nn.Sequential) -> None:
    last = layers[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.mul_(LAST_LAYER_GAIN)
        last.bias.zero_()

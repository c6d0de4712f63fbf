"""Tokenised rows, their batches, and the reasons for setting a row aside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysift.templates import IGNORED

NO_LABELS = "no_label_tokens"
TOO_LONG = "too_long"
NOT_FINITE = "non_finite"
ZERO = "zero_gradient"
NO_MEMORY = "out_of_memory"
REASONS = (NO_LABELS, TOO_LONG, NOT_FINITE, ZERO, NO_MEMORY)


@dataclass(frozen=True)
class TokenRow:
    """A row as the model sees it; `labels` repeats `input_ids` where the loss counts and is IGNORED elsewhere."""

    id: int
    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def n_labels(self) -> int:
        """Number of predicted tokens; the first token is never predicted."""
        return int(np.count_nonzero(np.asarray(self.labels)[1:] != IGNORED))


@dataclass(frozen=True)
class SetAside:
    """A row without a gradient: `reason` is one of REASONS, and `message` contains none of the row's text."""

    id: int
    reason: str
    message: str


@dataclass(frozen=True)
class PaddedRows:
    """Rows padded on the right. Position p (row * width + place) predicts `targets`, for each p in `positions`."""

    input_ids: Tensor
    positions: Tensor
    targets: Tensor
    row_of: Tensor
    n_labels: Tensor


def pad_rows(rows: Sequence[TokenRow], device: torch.device) -> PaddedRows:
    """Pads on the right with token 0: a causal model never looks there, so no attention mask is needed."""
    width = max(len(row) for row in rows)
    ids = np.zeros((len(rows), width), np.int64)
    labels = np.full((len(rows), width), IGNORED, np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row.input_ids
        labels[i, : len(row)] = row.labels
    row_of, place = np.nonzero(labels[:, 1:] != IGNORED)
    return PaddedRows(
        input_ids=_sent(ids, device),
        positions=_sent(row_of * width + place, device),
        targets=_sent(labels[:, 1:][row_of, place], device),
        row_of=_sent(row_of, device),
        n_labels=_sent(np.bincount(row_of, minlength=len(rows)), device),
    )


def _sent(numbers: NDArray[np.signedinteger], device: torch.device) -> Tensor:
    """The numbers on the device. To a GPU they go from page-locked memory: any other copy waits for all work queued there."""
    found = torch.from_numpy(numbers)
    return found.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else found.to(device)


def plan_batches(lengths: Sequence[int], token_budget: int, max_rows: int = 256) -> list[list[int]]:
    """Batches rows of similar length: indices into `lengths`, longest first, with rows x longest within the budget.

    A row longer than the budget gets a batch of its own. The plan depends only on the lengths and their order.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for i in order:
        room = min(max_rows, token_budget // max(1, lengths[batches[-1][0]])) if batches else 0
        if batches and len(batches[-1]) < room:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def check_row(row: TokenRow, max_tokens: int | None) -> SetAside | None:
    """Why this row cannot have a gradient, as far as it shows without the model; None if it can."""
    if len(row.input_ids) != len(row.labels):
        raise ValueError(f"gradients: row {row.id} has {len(row.input_ids)} tokens and {len(row.labels)} labels")
    if max_tokens is not None and len(row) > max_tokens:
        return SetAside(row.id, TOO_LONG, f"{len(row)} tokens, the model takes {max_tokens}")
    if row.n_labels == 0:
        return SetAside(row.id, NO_LABELS, f"none of its {len(row)} tokens counts for the loss")
    return None

"""The validation loss of a model being trained, over fixed batches that any number of workers can share.

The conversations are divided into batches once, by their lengths alone. Each batch is padded and summed on its own, so
its rows have the same losses whichever other batches a process has. One validator or four give the same numbers, bit
for bit, on one kind of machine with the same number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raysift.actors.effective_batches import EncodeRows, Place, split_trainable
from raysift.actors.encoded_rows import EncodedRows
from raysift.actors.step_trainer import autocast, copy_weights, trainable_parameters
from raysift.actors.trainee import build_placed, own_settings
from raysift.errors import DataError, StageError
from raysift.records import ID, MESSAGES, META
from raysift.settings.training import TrainConfig
from raysift.storage import Location

BATCH_TOKENS = 2048


class Validator:
    """Validation rows (`id`, `messages`) in fixed `batches`; each conversation ends with the reference answer.

    A row's number is its place in order of id. The validator loads a model of its own only when `losses` is called.
    """

    def __init__(
        self,
        rows: pa.Table,
        config: TrainConfig,
        model: str,
        place: Place,
        batch_tokens: int = BATCH_TOKENS,
        *,
        adapter: str | Location | None = None,
    ) -> None:
        self.config, self.place, self.name, self.adapter = config, place, model, adapter
        self.rows = _encoded(rows, config, model, place)
        self.ids = self.rows.ids
        self.batches = cut_batches(self.rows, batch_tokens)
        self._model: Any = None

    def losses(self, weights: Mapping[str, np.ndarray], numbers: Sequence[int]) -> dict[int, tuple[float, int]]:
        """Nats and tokens, by row number, of the rows in the batches with these numbers, under these trained weights."""
        if self._model is None:
            with own_settings(self.place):
                self._model = build_placed(self.config, self.name, self.adapter, self.place)
        copy_weights(trainable_parameters(self._model), weights)
        return self.losses_of(self._model, numbers)

    def losses_of(self, model: Any, numbers: Sequence[int]) -> dict[int, tuple[float, int]]:
        """Nats and tokens of these batches' rows under a live model, a `StepTrainer`'s; its mode is restored."""
        import torch

        from raysift.gradients.cpu_products import quick_products

        was_training = model.training
        model.eval()
        found: dict[int, tuple[float, int]] = {}
        try:
            # Not inference_mode: what a model caches in it (rotary tables) could not be trained through later.
            with own_settings(self.place), torch.no_grad(), quick_products(model):
                for number in numbers:
                    found |= self._losses_of_batch(model, self.batches[number])
        finally:
            model.train(was_training)
        return found

    def _losses_of_batch(self, model: Any, members: Sequence[int]) -> dict[int, tuple[float, int]]:
        import torch

        from raysift.gradients.loss import find_head, label_logits, row_losses
        from raysift.gradients.rows import pad_rows

        device = model.get_input_embeddings().weight.device
        batch = pad_rows(self.rows.token_rows(members), device)
        with autocast(self.config, device):
            logits = label_logits(model, batch, find_head(model))
        ones = torch.ones(len(batch.targets), device=device)
        nats, _ = row_losses(logits, batch, ones, with_gradient=False)
        pairs = zip(nats.tolist(), batch.n_labels.tolist(), strict=True)
        losses = dict(zip(members, pairs, strict=True))
        for row, (loss, _) in losses.items():
            if not math.isfinite(loss):
                raise StageError(
                    f"validation: the row with id {self.ids[row]} has a loss of {loss}; the training blew up. Lower "
                    f"its learning rate ({self.config.learning_rate:g}) or max_grad_norm, or train in fp32."
                )
        return losses


def cut_batches(rows: EncodedRows, tokens: int) -> list[list[int]]:
    """Row numbers per batch, longest rows first, ties by id; rows x longest stays within `tokens`."""
    from raysift.gradients.rows import plan_batches

    return plan_batches(rows.lengths.tolist(), tokens)


def _encoded(rows: pa.Table, config: TrainConfig, model: str, place: Place) -> EncodedRows:
    encode = EncodeRows(model, config.template, config.max_length, place.trust_remote_code)
    columns = [ID, MESSAGES, *({META} & {*rows.column_names})]
    sound, rest = split_trainable(encode(rows.select(columns)))
    if len(rest) or not len(sound):
        reason = f"the first, id {rest[ID][0]}, says: {rest['message'][0]}" if len(rest) else "there are none"
        raise DataError(
            f"validation: {len(rest)} of {len(rows)} rows have no answer to measure; {reason}. Leave them out, or raise "
            f"max_length ({config.max_length})."
        )
    return EncodedRows(sound)

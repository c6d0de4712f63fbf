"""The validation loss of a model being trained, over fixed batches that the training's processes share.

The conversations are divided into batches once, by their lengths alone. Each batch is padded and summed on its own, so
its rows have the same losses whichever other batches a process has. One process or four give the same numbers, bit
for bit, on one kind of machine with the same number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raysift.actors.effective_batches import EncodeRows, Place, split_trainable
from raysift.actors.encoded_rows import EncodedRows
from raysift.actors.peers import ALONE, Peers
from raysift.actors.step_trainer import autocast
from raysift.actors.trainee import own_settings
from raysift.errors import DataError, StageError
from raysift.records import ID, MESSAGES, META
from raysift.settings.training import TrainConfig

BATCH_TOKENS = 2048


class Validator:
    """Validation rows (`id`, `messages`) in fixed `batches`; each conversation ends with the reference answer.

    A row's number is its place in order of id.
    """

    def __init__(
        self,
        rows: pa.Table,
        config: TrainConfig,
        model: str,
        place: Place,
        batch_tokens: int = BATCH_TOKENS,
        *,
        peers: Peers = ALONE,
    ) -> None:
        self.config, self.place, self.peers = config, place, peers
        self.rows = _encoded(rows, config, model, place)
        self.ids = self.rows.ids
        self.batches = cut_batches(self.rows, batch_tokens)

    def losses(self, model: Any) -> dict[int, tuple[float, int]]:
        """Nats and tokens, by row number, of all rows under a live model, a `StepTrainer`'s; every process computes its share
        of the batches, and has the losses of all."""
        nats = np.zeros(len(self.ids))
        for row, loss in self.losses_of(model, range(self.peers.rank, len(self.batches), self.peers.size)).items():
            nats[row] = loss
        known = self.peers.merge(nats).tolist()
        wild = next((row for row, loss in enumerate(known) if not math.isfinite(loss)), None)
        if wild is not None:
            raise StageError(
                f"validation: the row with id {self.ids[wild]} has a loss of {known[wild]}; the training blew up. Lower "
                f"its learning rate ({self.config.learning_rate:g}) or max_grad_norm, or train in fp32."
            )
        return dict(enumerate(zip(known, self.rows.labels_per_row.tolist(), strict=True)))

    def losses_of(self, model: Any, numbers: Sequence[int]) -> dict[int, float]:
        """Nats of the rows in the batches with these numbers; the model's mode is restored."""
        import torch

        from raysift.gradients.cpu_products import quick_products

        was_training = model.training
        model.eval()
        found: dict[int, float] = {}
        try:
            # Not inference_mode: what a model caches in it (rotary tables) could not be trained through later.
            with own_settings(self.place), torch.no_grad(), quick_products(model):
                for number in numbers:
                    found |= self._losses_of_batch(model, self.batches[number])
        finally:
            model.train(was_training)
        return found

    def _losses_of_batch(self, model: Any, members: Sequence[int]) -> dict[int, float]:
        import torch

        from raysift.gradients.loss import find_head, label_logits, row_losses
        from raysift.gradients.rows import pad_rows

        device = model.get_input_embeddings().weight.device
        batch = pad_rows(self.rows.token_rows(members), device)
        with autocast(self.config, device):
            logits = label_logits(model, batch, find_head(model))
        ones = torch.ones(len(batch.targets), device=device)
        nats, _ = row_losses(logits, batch, ones, with_gradient=False)
        return dict(zip(members, nats.tolist(), strict=True))


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

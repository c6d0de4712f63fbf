"""Conversations as position-weighted means of the model's last states, and their cosines with those of a target (RDS+)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raysift.actors.contract import Failed, Row
from raysift.actors.likelihood import Scorer, token_row
from raysift.actors.row_gradients import MATCHES
from raysift.errors import DataError, ModelError
from raysift.pool.given_input import conversation_of
from raysift.records import MESSAGES
from raysift.scoring.columns import TRUNCATED
from raysift.templates import Encoded, encode_conversation

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


class StateMatch(Scorer):
    """The cosine of each row with each target conversation. Every actor encodes the target itself, in the same batches."""

    inputs = (MESSAGES,)
    outputs = pa.schema([(MATCHES, pa.list_(pa.list_(pa.float32()))), (TRUNCATED, pa.bool_())])

    def __init__(self, model: Any, targets: Sequence[Any], **loading: Any) -> None:
        super().__init__(model, **loading)
        encoded = [encode_conversation(self.tokenizer, t, self.longest, self.template) for t in targets]
        self.targets = self.embed(encoded)
        if not np.isfinite(self.targets).all():
            raise ModelError("similarity: the model's states of a target example are not finite, or all zero.")

    def answer(self, rows: list[Row]) -> list[Row | Failed]:
        encoded = [self._encode(row) for row in rows]
        vectors = iter(self.embed([item for item in encoded if not isinstance(item, Failed)]))
        return [item if isinstance(item, Failed) else self._match(item, next(vectors)) for item in encoded]

    def _match(self, encoded: Encoded, vector: NDArray[np.float32]) -> Row | Failed:
        if not np.isfinite(vector).all():
            return Failed("the model's states are not finite, or all zero")
        return {MATCHES: [self.targets @ vector], TRUNCATED: encoded.truncated}

    def embed(self, encoded: Sequence[Encoded]) -> NDArray[np.float32]:
        """A unit vector for each conversation, in the order given."""
        import torch

        from raysift.gradients.cpu_products import quick_products
        from raysift.gradients.rows import pad_rows

        rows = [token_row(item) for item in encoded]
        self.tokens_read += sum(map(len, rows))
        found = np.zeros((len(rows), self.model.config.hidden_size), np.float32)

        def embed_pass(members: list[int]) -> None:
            batch = pad_rows([rows[i] for i in members], self.model.device)
            states = self.model.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state.float()
            found[members] = weighted_mean(states, [len(rows[i]) for i in members]).cpu().numpy()

        with torch.inference_mode(), quick_products(self.model):
            self.run_passes([len(row) for row in rows], embed_pass)
        return found

    def _encode(self, row: Row) -> Encoded | Failed:
        try:
            return encode_conversation(self.tokenizer, conversation_of(row), self.longest, self.template)
        except DataError as error:
            return Failed(str(error), of_the_row=True)


def weighted_mean(states: Tensor, lengths: Sequence[int]) -> Tensor:
    """Unit vectors of states (texts, tokens, width): token i of n weighs i / (1 + ... + n), padding on the right nothing."""
    import torch

    place = torch.arange(1, states.shape[1] + 1, device=states.device)
    n = torch.tensor(lengths, device=states.device).unsqueeze(1)
    weights = torch.where(place <= n, place, 0) / (n * (n + 1) / 2)
    pooled = (states * weights.unsqueeze(-1)).sum(1)
    unit: Tensor = pooled / pooled.norm(dim=1, keepdim=True)
    return unit

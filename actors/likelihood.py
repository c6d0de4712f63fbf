"""The probability of given answers under a model: `Likelihood` weighs choices, `AnswerLoss` is the validation loss.

Both feed whole conversations, padded on the right and batched by length. Only the tokens count that count for the
loss in training: the assistant's words and the token that ends its turn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raysift.actors.contract import Failed, Row, RowActor
from raysift.actors.loaded import NO_LIMIT, LoadedModel, budget_on, load, longest_input
from raysift.errors import DataError
from raysift.pool.given_input import conversation_of
from raysift.records import MESSAGES
from raysift.scoring.columns import LABEL_TOKENS, TRUNCATED
from raysift.storage import Location
from raysift.templates import IGNORED, Encoded, encode_conversation, encode_prompt

if TYPE_CHECKING:
    from raysift.gradients.rows import TokenRow

CHOICES = "choices"
CHOICE_LOGPROBS = "choice_logprobs"
CHOICE_TOKENS = "choice_tokens"
CHOICE_BYTES = "choice_bytes"
LOSS = "loss"

# Measured on one core with a model of 1.3M parameters: batches of 16384 tokens took a quarter to two thirds longer.
BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
MAX_LOGITS = 2**29
"""Maximum label positions x vocabulary per batch: 2 GiB in 32 bits, held about twice."""


class Scorer(RowActor):
    """A causal language model that computes the log-probability of the labels of any number of conversations."""

    def __init__(
        self,
        model: str | LoadedModel,
        *,
        adapter: str | Location | None = None,
        template: str = "auto",
        max_length: int | None = None,
        batch_tokens: int | None = None,
        **loading: Any,
    ) -> None:
        from raysift.gradients.loss import find_head

        self.loaded = load(model, adapter, **loading)
        self.model, self.tokenizer = self.loaded
        self.template = template
        self.longest = longest_input(self.model, max_length)
        self.has_room = self.longest > frame_length(self.tokenizer, template)
        """Whether any row can fit at all; if none can, a row that does not fit is not at fault itself."""
        self.head = find_head(self.model)
        vocabulary = self.model.get_output_embeddings().weight.shape[0]
        self.batch_tokens = batch_tokens or budget_on(self.model, BATCH_TOKENS)
        self.batch_labels = max(1, MAX_LOGITS // vocabulary)

    def label_losses(self, encoded: Sequence[Encoded]) -> list[float]:
        """The summed loss of each conversation's labels, which is minus their log-probability."""
        import torch

        from raysift.gradients.cpu_products import quick_products
        from raysift.gradients.loss import label_logits, row_losses
        from raysift.gradients.rows import pad_rows

        rows = [token_row(item) for item in encoded]
        self.tokens_read += sum(map(len, rows))
        losses = [0.0] * len(rows)

        def weigh_pass(members: list[int]) -> None:
            for part in self._by_labels(rows, members):
                batch = pad_rows([rows[i] for i in part], self.model.device)
                weights = torch.ones(len(batch.targets), device=self.model.device)
                total, _ = row_losses(label_logits(self.model, batch, self.head), batch, weights, with_gradient=False)
                for i, loss in zip(part, total.tolist(), strict=True):
                    losses[i] = loss

        with torch.inference_mode(), quick_products(self.model):
            self.run_passes([len(row) for row in rows], weigh_pass)
        return losses

    def _by_labels(self, rows: Sequence[TokenRow], members: Sequence[int]) -> Iterator[list[int]]:
        """A pass, cut where its logits, of labels alone if the head can be found, would take too much."""
        width, labels = len(rows[members[0]]), 0
        part: list[int] = []
        for i in members:
            own = rows[i].n_labels if self.head is not None else width
            if part and labels + own > self.batch_labels:
                yield part
                part, labels = [], 0
            part.append(i)
            labels += own
        yield part


class Likelihood(Scorer):
    """Gives log-probability, tokens and bytes of each of a row's `choices` as the assistant's answer to `messages`."""

    inputs = (MESSAGES, CHOICES)
    renders_rows = True
    outputs = pa.schema(
        [
            (CHOICE_LOGPROBS, pa.list_(pa.float64())),
            (CHOICE_TOKENS, pa.list_(pa.int64())),
            (CHOICE_BYTES, pa.list_(pa.int64())),
        ]
    )

    def answer(self, rows: list[Row]) -> list[Row | Failed]:
        encoded = [self._encode(row) for row in rows]
        sound = [item for item in encoded if not isinstance(item, Failed)]
        losses = iter(self.label_losses([choice for choices in sound for choice in choices]))
        answers: list[Row | Failed] = []
        for row, item in zip(rows, encoded, strict=True):
            answers.append(item if isinstance(item, Failed) else _choices_row(row, item, [next(losses) for _ in item]))
        return answers

    def _encode(self, row: Row) -> list[Encoded] | Failed:
        prompt = conversation_of(row)
        try:
            spoken = 0
            if any(message["role"] == "assistant" for message in prompt):
                # Turns before the question are given, not chosen.
                spoken = _n_labels(encode_conversation(self.tokenizer, prompt, NO_LIMIT, self.template))
            turns = ([*prompt, {"role": "assistant", "content": choice}] for choice in row[CHOICES])
            encoded = [encode_conversation(self.tokenizer, turn, NO_LIMIT, self.template) for turn in turns]
        except DataError as error:
            return Failed(str(error), of_the_row=True)
        encoded = [_without_first_labels(item, spoken) for item in encoded]
        longest = max(len(item.input_ids) for item in encoded)
        if longest > self.longest:
            return Failed(
                f"prompt and choice have {longest} tokens, there is room for {self.longest}", of_the_row=self.has_room
            )
        if not all(item.has_labels for item in encoded):
            return Failed("a choice has no tokens", of_the_row=True)
        return encoded


class AnswerLoss(Scorer):
    """Computes the mean loss and the number of the assistant's tokens in a conversation cut at `max_length`."""

    inputs = (MESSAGES,)
    renders_rows = True
    outputs = pa.schema([(LOSS, pa.float64()), (LABEL_TOKENS, pa.int64()), (TRUNCATED, pa.bool_())])

    def answer(self, rows: list[Row]) -> list[Row | Failed]:
        encoded = [self._encode(row) for row in rows]
        losses = iter(self.label_losses([item for item in encoded if not isinstance(item, Failed)]))
        return [item if isinstance(item, Failed) else _loss_row(item, next(losses)) for item in encoded]

    def _encode(self, row: Row) -> Encoded | Failed:
        try:
            encoded = encode_conversation(self.tokenizer, conversation_of(row), self.longest, self.template)
        except DataError as error:
            return Failed(str(error), of_the_row=True)
        if not encoded.has_labels:
            return Failed(
                f"none of the first {len(encoded.input_ids)} tokens is the assistant's", of_the_row=self.has_room
            )
        return encoded


def frame_length(tokenizer: Any, template: str) -> int:
    """Tokens that a template puts around an empty question; 0 if it refuses one."""
    try:
        return len(encode_prompt(tokenizer, [{"role": "user", "content": ""}], template))
    except DataError:
        return 0


def token_row(encoded: Encoded) -> TokenRow:
    """A conversation as the row that batches are padded from."""
    import numpy as np

    from raysift.gradients.rows import TokenRow

    return TokenRow(0, np.array(encoded.input_ids, np.int64), np.array(encoded.labels, np.int64))


def _choices_row(row: Row, encoded: Sequence[Encoded], losses: Sequence[float]) -> Row | Failed:
    if not all(map(math.isfinite, losses)):
        return Failed("the model gave no finite log-probability for a choice")
    return {
        CHOICE_LOGPROBS: [-loss for loss in losses],
        CHOICE_TOKENS: [_n_labels(item) for item in encoded],
        CHOICE_BYTES: [len(choice.encode("utf-8")) for choice in row[CHOICES]],
    }


def _loss_row(encoded: Encoded, loss: float) -> Row | Failed:
    if not math.isfinite(loss):
        return Failed("the model gave no finite loss")
    return {LOSS: loss / _n_labels(encoded), LABEL_TOKENS: _n_labels(encoded), TRUNCATED: encoded.truncated}


def _n_labels(encoded: Encoded) -> int:
    """The number of predicted tokens; the first token is never predicted."""
    return sum(label != IGNORED for label in encoded.labels[1:])


def _without_first_labels(encoded: Encoded, count: int) -> Encoded:
    from dataclasses import replace

    labels, left = list(encoded.labels), count
    for i, label in enumerate(labels):
        if left and label != IGNORED and i:
            labels[i] = IGNORED
            left -= 1
    return replace(encoded, labels=labels)

"""Encodes rows as tokens, and groups tokens into the effective batches of a training.

The rows are sorted by id and then permuted by (seed, epoch); shards, workers and earlier attempts do not affect the
order. An effective batch has the same rows on 1 rank or 7; ranks and passes only divide it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysift.actors.contract import Failed, Row, RowActor
from raysift.actors.encoded_rows import COUNTED as COUNTED
from raysift.actors.encoded_rows import INPUT_IDS as INPUT_IDS
from raysift.actors.encoded_rows import EncodedRows
from raysift.actors.language_model import load_tokenizer
from raysift.errors import DataError
from raysift.gradients.dealing import deal_rows
from raysift.pool.given_input import conversation_of
from raysift.records import ERROR, ID, MESSAGES, REASON
from raysift.settings.training import TrainConfig, count_steps
from raysift.templates import IGNORED, encode_conversation

if TYPE_CHECKING:
    from raysift.gradients.rows import PaddedRows

TRUNCATED, DOUBLED = "truncated", "doubled_special"
NO_LABELS, FAILED = "no-label-tokens", "failed"
UNTRAINED = pa.schema([pa.field(ID, pa.int64()), pa.field(REASON, pa.string()), pa.field("message", pa.string())])


@dataclass(frozen=True)
class Place:
    """Where and how fast a training runs; none of it changes the result beyond rounding and the ranks' dropout."""

    rank: int = 0
    world_size: int = 1
    device: str = "auto"
    threads: int | None = None
    rows_per_pass: int = 64
    """Maximum rows per forward and backward pass; an effective batch takes as many passes as it needs."""
    tokens_per_pass: int = 4096
    """Maximum tokens per forward and backward pass, padding included; a longer row is a pass of its own."""
    gradient_checkpointing: bool = False
    """Recompute activations instead of keeping them: about a third slower, but much less memory."""
    steps_per_checkpoint: int = 1000
    """A long epoch also writes a checkpoint every so many steps; each replaces the one before."""
    trust_remote_code: bool = False
    sharded: bool = False
    """Each rank holds its share of the trained weights, their gradients and moments, instead of all of them."""


class Step(NamedTuple):
    """One optimizer step on one rank."""

    passes: list[PaddedRows]
    tokens: int
    """Tokens that count in it on all ranks."""


class EncodeRows(RowActor):
    """Encodes conversations as token ids and marks the tokens that count for the loss."""

    inputs = (MESSAGES,)
    renders_rows = True
    outputs = pa.schema(
        [
            pa.field(INPUT_IDS, pa.list_(pa.int32())),
            pa.field(COUNTED, pa.list_(pa.bool_())),
            pa.field(TRUNCATED, pa.bool_()),
            pa.field(DOUBLED, pa.bool_()),
            pa.field("template", pa.string()),
        ]
    )

    def __init__(self, model: str, template: str, max_length: int, trust_remote_code: bool = False) -> None:
        self.tokenizer = load_tokenizer(model, trust_remote_code)
        self.template, self.max_length = template, max_length

    def answer(self, rows: list[Row]) -> list[Row | Failed]:
        return [self._encode(row) for row in rows]

    def _encode(self, row: Row) -> Row | Failed:
        try:
            encoded = encode_conversation(self.tokenizer, conversation_of(row), self.max_length, self.template)
        except DataError as error:
            return Failed(str(error), of_the_row=True)
        self.tokens_read += len(encoded.input_ids)
        # Nothing precedes the first token to predict it from, so it never counts.
        counted = [label != IGNORED for label in encoded.labels]
        return {
            INPUT_IDS: encoded.input_ids,
            COUNTED: [False, *counted[1:]],
            TRUNCATED: encoded.truncated,
            DOUBLED: encoded.doubled_special,
            "template": encoded.template,
        }


def split_trainable(encoded: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The rows with something to learn, and the other rows with the reason why each is left out."""
    labels = [0 if marks is None else int(np.sum(marks)) for marks in encoded[COUNTED].to_numpy()]
    trainable = pa.array([count > 0 for count in labels], pa.bool_())
    rest = encoded.filter(pc.invert(trainable))
    message = "no token of an answer is left within the length limit, or the conversation has no answer"
    errors = rest[ERROR].to_pylist()
    untrained = pa.table(
        {
            ID: rest[ID],
            REASON: pa.array([FAILED if error else NO_LABELS for error in errors], pa.string()),
            "message": pa.array([error or message for error in errors], pa.string()),
        },
        schema=UNTRAINED,
    )
    return encoded.filter(trainable), untrained


class EffectiveBatches:
    """The passes of one rank for each optimizer step, from step `first_step` to the last.

    Every rank knows all rows, and so how many tokens count in the whole effective batch and which passes the other ranks
    make (raysift.gradients.dealing). The number of passes is that of the step: the same on all ranks, another in another step.
    """

    def __init__(self, rows: pa.Table, config: TrainConfig, place: Place, first_step: int = 0) -> None:
        self.rows = EncodedRows(rows)
        self.lengths = self.rows.lengths
        self.config, self.place, self.first_step = config, place, first_step
        self.steps_per_epoch, self.steps = count_steps(config, len(rows))

    def __len__(self) -> int:
        return int(self.steps - self.first_step)

    def __iter__(self) -> Iterator[Step]:
        for step in range(self.first_step, self.steps):
            rows = self.rows_of_step(step)
            yield Step([self._padded(part) for part in self.passes_of(rows)], int(self.rows.labels_per_row[rows].sum()))

    def passes_of(self, rows: np.ndarray) -> list[np.ndarray]:
        """This rank's passes over the rows of a step, as positions."""
        place = self.place
        dealt = deal_rows(self.lengths[rows].tolist(), place.world_size, place.tokens_per_pass, place.rows_per_pass)
        return [rows[part] for part in dealt[place.rank]]

    def rows_of_step(self, step: int) -> np.ndarray:
        """The positions, in order of id, of an effective batch's rows."""
        epoch, number = divmod(step, self.steps_per_epoch)
        start = number * self.config.batch_size
        return self._order(epoch)[start : start + self.config.batch_size]

    def _order(self, epoch: int) -> np.ndarray:
        if getattr(self, "_epoch", None) != epoch:
            self._epoch = epoch
            self._permutation = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.lengths))
        return self._permutation

    def _padded(self, part: np.ndarray) -> PaddedRows:
        """A padded batch, even for a pass without rows: all ranks must make the same number of passes."""
        import torch

        from raysift.gradients.rows import TokenRow, pad_rows

        nothing = TokenRow(-1, np.zeros(2, np.int64), np.full(2, IGNORED, np.int64))
        return pad_rows(self.rows.token_rows(part) or [nothing], torch.device("cpu"))


def tokens_read(config: TrainConfig, trainable: pa.Table) -> int:
    """Tokens of a whole training on these encoded rows, without padding."""
    per_epoch, steps = count_steps(config, len(trainable))
    tokens: int = pc.sum(pc.list_value_length(trainable[INPUT_IDS])).as_py()
    return round(tokens * steps / per_epoch)

"""The contract of every actor: one row out per row in, keyed by id; a row that fails carries its message.

An actor is a class whose constructor loads and whose `__call__` takes and returns an Arrow table. Ray Data's
`map_batches(batch_format="pyarrow")` expects this; calling an actor needs no Ray. A subclass declares the columns it
reads (`inputs`) and adds (`outputs`), and implements `answer`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from raysift.errors import DataError, DeviceError, StageError
from raysift.faults import device_fault, free_memory, lacks_host_memory, lacks_memory
from raysift.pool.given_input import TOLD_APART_BY
from raysift.records import ERROR, ID

Row = dict[str, Any]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failed:
    """Takes the place of an answer: the reason why this row has none."""

    message: str
    of_the_row: bool = False
    """The row itself is at fault: it is empty, say, or longer than the model reads. The circuit breaker ignores such
    rows, because it looks for broken models and settings."""


@dataclass(frozen=True)
class DoesNotFit(Failed):
    """A row that memory does not hold even alone."""


class RowActor:
    """Turns `answer` (a list of rows in, a list of answers out) into a batch function that loses no row.

    A batch that raises is retried row by row, so that one bad row does not fail the others in its batch.
    `max_failures_in_a_row` is the circuit breaker: beyond it the actor raises `StageError`, because a broken model must
    end the run instead of marking a million rows as failed. Rows that are at fault (`Failed.of_the_row`) do not count.

    Out of memory, a batch is halved, and later batches have no more rows than fitted (`most_rows`). An actor that batches
    by tokens calls `run_passes`, which halves its `batch_tokens` instead. A broken device raises `DeviceError`.
    """

    inputs: ClassVar[Sequence[str]] = ()
    outputs: ClassVar[pa.Schema]
    renders_rows: ClassVar[bool] = False
    """The actor renders rows by a template; `alpaca` separates input from instruction (raysift.pool.given_input)."""

    tokens_read: int = 0
    """Tokens that the model has read so far, once for each pass over a row; shown as the stage's speed. 0: not counted."""
    max_failures_in_a_row: int = 200
    most_rows: int | None = None
    """Rows that fit in memory at once, once that is known to be a matter of their number."""
    batch_tokens: int
    """Padded tokens of a pass, for actors that batch by tokens."""
    _failures_in_a_row: int = 0

    def answer(self, rows: list[Row]) -> list[Row | Failed]:
        """One answer per row, in row order; an answer holds the columns named in `outputs`."""
        raise NotImplementedError(f"{self.name} does not say how it answers")

    @classmethod
    def reads_meta(cls, arguments: Mapping[str, Any]) -> bool:
        """Whether an actor made with these arguments looks for inputs in the rows' meta, where there is one."""
        template = arguments.get("template", getattr(arguments.get("settings"), "template", None))
        return cls.renders_rows and template == TOLD_APART_BY

    @property
    def name(self) -> str:
        """The name of the actor's own class; Ray wraps it in classes with private names."""
        return next(kind.__name__ for kind in type(self).__mro__ if not kind.__name__.startswith("_"))

    def __call__(self, batch: pa.Table) -> pa.Table:
        name = self.name
        missing = [column for column in (ID, *self.inputs) if column not in batch.column_names]
        if missing:
            raise StageError(f"{name}: the batch lacks {missing} (found: {batch.column_names}).")
        rows = batch.to_pylist()
        answers = self._answer_all(rows)
        records = []
        for row, answer in zip(rows, answers, strict=True):
            if isinstance(answer, Failed):
                records.append({ID: row[ID], ERROR: answer.message})
            else:
                records.append({ID: row[ID], ERROR: None, **answer})
            if not (isinstance(answer, Failed) and answer.of_the_row):
                self._count(isinstance(answer, Failed), records[-1][ERROR])
        return pa.Table.from_pylist(records, schema=self.answer_schema())

    @classmethod
    def answer_schema(cls) -> pa.Schema:
        """Columns of an answered batch: the id, the actor's own columns, and the error of rows that failed."""
        return pa.schema([pa.field(ID, pa.int64()), *cls.outputs, pa.field(ERROR, pa.string())])

    def tell(self, text: str) -> None:
        """Say what the user should know of this worker; on Ray, the driver says it."""
        log.warning("%s: %s", self.name, text)

    def run_passes(self, lengths: Sequence[int], work: Callable[[list[int]], None]) -> None:
        """Call `work` with the members of each padded pass: indices into `lengths`, within `batch_tokens`.

        A pass that does not fit in memory is halved, and so is `batch_tokens`, for good. One item alone that does not fit
        raises, and the row that it belongs to is found by halving the rows.
        """
        from raysift.gradients.rows import plan_batches

        passes = plan_batches(lengths, self.batch_tokens)[::-1]
        while passes:
            members = passes.pop()
            tokens = len(members) * lengths[members[0]]  # the longest comes first
            fits = len(members) == 1 or tokens <= self.batch_tokens
            if fits:
                try:
                    work(members)
                    continue
                except Exception as error:
                    if not lacks_memory(error) or len(members) == 1:
                        raise
                # Here the error is gone, and with it the failed pass's tensors.
                free_memory()
                self.batch_tokens = max(1, min(self.batch_tokens, tokens) // 2)
                self.tell(f"passes of {self.batch_tokens} tokens from now on; out of memory with {tokens}")
            middle = -(-len(members) // 2)
            passes += [members[middle:], members[:middle]]

    def _answer_all(self, rows: list[Row]) -> list[Row | Failed]:
        """Answers of a batch, piece by piece if it has too many rows for the memory."""
        room = self.most_rows or len(rows)
        if len(rows) > room:
            pieces = [rows[start : start + room] for start in range(0, len(rows), room)]
            return [answer for piece in pieces for answer in self._answer_all(piece)]
        try:
            answers = self.answer(rows)
        except StageError:
            raise
        except Exception as error:
            if fault := device_fault(error):
                raise DeviceError(f"{self.name}: {fault}") from error
            alone, full = len(rows) == 1, lacks_memory(error)
            if alone and lacks_host_memory(error):
                raise  # the stage has smaller passes and fewer workers
            words, own = f"{type(error).__name__}: {error}", isinstance(error, DataError)
        else:
            if len(answers) != len(rows):
                raise StageError(
                    f"{self.name}: gave {len(answers)} answers for {len(rows)} rows; it must answer each row once."
                )
            return answers
        # Here the error is gone, and with it the failed batch's tensors.
        if alone:
            return [DoesNotFit(f"does not fit in memory even alone: {words}") if full else Failed(words, own)]
        if full:
            return self._answer_halves(rows)
        log.warning("%s: a batch of %d rows failed (%s); going row by row", self.name, len(rows), words)
        return [answer for row in rows for answer in self._answer_all([row])]

    def _answer_halves(self, rows: list[Row]) -> list[Row | Failed]:
        """Answers of a batch that was too much for the memory. If no single row was, the number of rows was."""
        free_memory()
        middle = -(-len(rows) // 2)
        answers = [*self._answer_all(rows[:middle]), *self._answer_all(rows[middle:])]
        by_number = not any(isinstance(answer, DoesNotFit) for answer in answers)
        if by_number and middle < (self.most_rows or len(rows)):
            self.most_rows = middle
            self.tell(f"batches of {middle} rows fit; out of memory with {len(rows)}")
        return answers

    def _count(self, failed: bool, message: str | None) -> None:
        self._failures_in_a_row = self._failures_in_a_row + 1 if failed else 0
        if self._failures_in_a_row > self.max_failures_in_a_row:
            raise StageError(
                f"{self.name}: {self._failures_in_a_row} rows failed one after the other, the last with "
                f"'{message}'. This is no row's fault; mend the cause and start the run again, it will continue."
            )

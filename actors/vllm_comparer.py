"""The judge between two answers when a vLLM engine holds the model: writes questions, reads weights from the output.

An engine takes one prompt per row, so a pair is two rows here, one per order (raysift.pairwise.rows.rows_by_order).
Prompts, cuts, weights and failures are those of `Comparer`; the numbers differ from transformers' in the last bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pyarrow as pa

from raysift.actors.comparer import AGAINST, OWN, WEIGHTS, load_weigher
from raysift.actors.contract import Failed, Row, RowActor
from raysift.actors.judge import flatten
from raysift.actors.responder import ENGINE_ERROR, LOGPROBS, PROMPT, engine_failure
from raysift.pairwise.rows import ORDER, ORDERS
from raysift.records import MESSAGES
from raysift.scoring.columns import INPUT_TOKENS, TRUNCATED


class ComparisonAsker(RowActor):
    """Writes the question to the judge in the row's order; a row that cannot be asked carries its error."""

    inputs: ClassVar[Sequence[str]] = (MESSAGES, OWN, AGAINST, ORDER)
    outputs = pa.schema(
        [(PROMPT, pa.list_(pa.int64())), (INPUT_TOKENS, pa.int64()), (TRUNCATED, pa.bool_()), (ORDER, pa.string())]
    )

    def __init__(self, model: str, **settings: Any) -> None:
        self.weigher = load_weigher(model, **settings)

    def answer(self, rows: list[Row]) -> list[Row | Failed]:
        """Write both orders, since both lose the same words when texts are cut, and ask the row's order only."""
        return [self._ask(row) for row in rows]

    def _ask(self, row: Row) -> Row | Failed:
        found = self.weigher.ask(row)
        if isinstance(found, Failed):
            return found
        prompt = found[0][ORDERS.index(row[ORDER])]
        return {PROMPT: prompt, INPUT_TOKENS: len(prompt), TRUNCATED: found[1], ORDER: row[ORDER]}


class ComparisonReader(RowActor):
    """Reads the weights in one order from an engine's log-probabilities of the verdicts' tokens, in their order."""

    inputs: ClassVar[Sequence[str]] = (LOGPROBS, ENGINE_ERROR, INPUT_TOKENS, TRUNCATED, ORDER)
    outputs = pa.schema(
        [(name, pa.float64()) for name in WEIGHTS] + [(INPUT_TOKENS, pa.int64()), (TRUNCATED, pa.bool_())]
    )

    def __init__(self, model: str, **settings: Any) -> None:
        self.weigher = load_weigher(model, **settings)
        self.verdicts = [verdict for verdict, _ in flatten(self.weigher.spellings)]

    def answer(self, rows: list[Row]) -> list[Row | Failed]:
        """The weights of each row; a row that failed before or in the engine keeps its message."""
        return [engine_failure(row[ENGINE_ERROR]) if row[ENGINE_ERROR] else self._read(row) for row in rows]

    def _read(self, row: Row) -> Row | Failed:
        # pandas turns NaN into null on the way.
        values = [math.nan if value is None else value for value in row[LOGPROBS]]
        weights = self.weigher.weigh(list(zip(self.verdicts, values, strict=True)), row[ORDER])
        if isinstance(weights, Failed):
            return weights
        return weights | {INPUT_TOKENS: row[INPUT_TOKENS], TRUNCATED: row[TRUNCATED]}

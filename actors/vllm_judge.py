"""The judge when a vLLM engine holds the model: writes questions, reads ratings from the output.

Prompts, ratings and failures are those of `Judge`; the numbers differ from transformers' in the last bits.
"""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa

from raysift.actors.contract import Failed, Row, RowActor
from raysift.actors.judge import flatten, load_rater
from raysift.actors.responder import ENGINE_ERROR, LOGPROBS, PROMPT, engine_failure
from raysift.records import MESSAGES
from raysift.scoring.columns import INPUT_TOKENS, JUDGE_SCHEMA, TRUNCATED


class JudgeAsker(RowActor):
    """Writes the questions to the judge, with length and cut mark; a row that cannot be asked carries its error."""

    inputs = (MESSAGES,)
    outputs = pa.schema([(PROMPT, pa.list_(pa.int64())), (INPUT_TOKENS, pa.int64()), (TRUNCATED, pa.bool_())])

    def __init__(self, model: str, **settings: Any) -> None:
        self.rater = load_rater(model, **settings)

    def answer(self, rows: list[Row]) -> list[Row | Failed]:
        """The tokens of each question."""
        return [
            item if isinstance(item, Failed) else {PROMPT: item[0], INPUT_TOKENS: len(item[0]), TRUNCATED: item[1]}
            for item in map(self.rater.encode, rows)
        ]


class JudgeReader(RowActor):
    """Makes a `Judge`'s columns from an engine's log-probabilities of the rater's tokens, in their order."""

    inputs = (LOGPROBS, ENGINE_ERROR, INPUT_TOKENS, TRUNCATED)
    outputs = JUDGE_SCHEMA

    def __init__(self, model: str, **settings: Any) -> None:
        self.rater = load_rater(model, **settings)
        self.ratings = [rating for rating, _ in flatten(self.rater.spellings)]

    def answer(self, rows: list[Row]) -> list[Row | Failed]:
        """The rating of each row; a row that failed before or in the engine keeps its message."""
        return [engine_failure(row[ENGINE_ERROR]) if row[ENGINE_ERROR] else self._read(row) for row in rows]

    def _read(self, row: Row) -> Row | Failed:
        # pandas turns NaN into null on the way.
        values = [math.nan if value is None else value for value in row[LOGPROBS]]
        return self.rater.rate(row[INPUT_TOKENS], row[TRUNCATED], list(zip(self.ratings, values, strict=True)))

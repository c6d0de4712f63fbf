"""Longest: the rows with the longest responses. Embarrassingly simple, and often hard to beat (Zhao et al. 2024)."""

from __future__ import annotations

from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from raysift.methods.base import MethodConfig, Selector
from raysift.records import RESPONSE_CHARS, RESPONSE_TOKENS


class LongestConfig(MethodConfig):
    unit: Literal["tokens", "chars"] = "tokens"
    """`tokens` counts with the model's tokenizer, as in the paper; `chars` needs no model."""


class Longest(Selector):
    """The score is the total length of all assistant turns."""

    name = "longest"
    summary = "Select the rows with the longest responses."
    needs = "a pool, and the tokenizer of --model unless longest.unit=chars"
    main_settings = ("unit",)
    Config = LongestConfig
    reading = "score: the length of all answers of the row."
    reads = (RESPONSE_TOKENS, RESPONSE_CHARS)
    columns = pa.schema([(RESPONSE_TOKENS, pa.int64()), (RESPONSE_CHARS, pa.int64())])
    config: LongestConfig

    @property
    def score_words(self) -> str:
        return f"The length of its answers in {'tokens' if self.config.unit == 'tokens' else 'characters'}"

    def score(self, rows: pa.Table) -> pa.Array:
        column = RESPONSE_TOKENS if self.config.unit == "tokens" else RESPONSE_CHARS
        return pc.cast(rows[column], pa.float64())

"""Uniform: every row has the same chance; the baseline that any method must beat."""

from __future__ import annotations

import pyarrow as pa

from raysift.draws import uniform_of
from raysift.methods.base import Selector
from raysift.records import ID


class Uniform(Selector):
    """The score is a number in [0, 1) drawn from seed and id: it depends on neither order nor shards."""

    name = "uniform"
    summary = "Select rows at random, every row with the same chance."
    reading = "score: a number drawn for the row; it says nothing about it."

    @property
    def score_words(self) -> str:
        return "The number drawn for it, from the seed and its id alone,"

    def score(self, rows: pa.Table) -> pa.Array:
        return pa.array(uniform_of(rows[ID].to_numpy(), self.seed))

"""Quality: the rows that a reward model, a judge or IFD scores highest; the first stage of MoDS alone, as a yardstick."""

from __future__ import annotations

import pyarrow as pa
from pydantic import Field

from raysift.methods.base import MethodConfig, Selector
from raysift.scoring.columns import SCORE_COLUMN
from raysift.scoring.settings import QualitySettings


class QualityConfig(MethodConfig):
    """Settings of the quality yardstick."""

    scorer: QualitySettings = Field(default_factory=QualitySettings)


class Quality(Selector):
    """Scored by its recipe, which calls the scorer's actor."""

    name = "quality"
    summary = "Select the rows that a reward model, a judge or IFD scores highest."
    needs = "a pool and a scorer (quality.scorer.model): a reward model, or a model that judges"
    main_settings = ("scorer.kind", "scorer.model")
    Config = QualityConfig
    reading = "score: what the scorer thinks of the row's answer; higher is better."
    config: QualityConfig

    def __init__(self, config: QualityConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.reads = (SCORE_COLUMN[config.scorer.kind],)  # type: ignore[misc]

    @property
    def score_words(self) -> str:
        return "What the scorer gives its answer"

    def score(self, rows: pa.Table) -> pa.Array:
        """The scorer's score, unchanged."""
        return rows[self.reads[0]]

"""Coverage: rows such that no other row is far away (k-center); the second stage of MoDS alone, as a yardstick.

A row's score is minus its place, so scores fall with rank; rows not chosen have none. A row's radius is its distance to
the nearest row chosen before it, infinite for the first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from raysift.ids import look_up
from raysift.kcenter.settings import CoverageSettings
from raysift.methods.base import MethodConfig, Selector
from raysift.methods.choose import choose_in_order
from raysift.records import FATE, ID, ORDER, RADIUS, SCORE
from raysift.scoring.settings import EmbeddingSettings
from raysift.settings.budget import Budget
from raysift.topk import Ids, Scores

CENTER, COVERED = "center", "covered: near a chosen row"
NO_VECTOR = "no vector: the embedding failed"


class CoverageConfig(MethodConfig):
    """Settings of the coverage yardstick."""

    embedding: EmbeddingSettings = Field(default_factory=EmbeddingSettings)
    centers: CoverageSettings = Field(default_factory=CoverageSettings)


class Coverage(Selector):
    """Its recipe orders the rows: centres, in the order in which k-center found them."""

    name = "coverage"
    summary = "Select rows that leave no row of the pool far away (k-center)."
    needs = "a pool and an encoder (coverage.embedding.model)"
    main_settings = ("embedding.model", "embedding.text", "centers.mode")
    Config = CoverageConfig
    reading = (
        "score: minus the row's place in the order of picking; radius: its distance to the nearest row picked before it, so "
        "rows with a small radius add little; fate: what became of it."
    )
    columns: ClassVar[pa.Schema] = pa.schema([(RADIUS, pa.float64()), (ORDER, pa.int64()), (FATE, pa.string())])
    config: CoverageConfig

    def choose(self, scores: Iterable[pa.Table], budget: Budget, pool_rows: int) -> tuple[Ids, Scores]:
        """The centres in their order."""
        return choose_in_order(scores)


def place_centers(ids: Ids, centers: pa.Table, no_vector: Ids) -> pa.Table:
    """One line per row of the pool; `centers` (id, radius) are in picking order, `no_vector` are rows without an
    embedding, which cannot be centres."""
    places = pa.array(np.arange(1, len(centers) + 1))
    order = look_up(ids, centers[ID].to_numpy(), places)
    radius = look_up(ids, centers[ID].to_numpy(), centers[RADIUS])
    columns = {
        ID: ids,
        SCORE: pc.negate(order.cast(pa.float64())),
        RADIUS: radius,
        ORDER: order,
        FATE: pc.if_else(order.is_valid(), CENTER, pc.if_else(pa.array(np.isin(ids, no_vector)), NO_VECTOR, COVERED)),
    }
    return pa.table(columns, schema=Coverage.score_schema())

"""MoDS (arXiv 2311.15653): rows that are good, cover the good ones, and are not yet known to the model.

1. Quality: q(x, y), the reward of the row's own answer; keep q > alpha.
2. Coverage: k-center over embeddings of the kept rows gives the *seeds*.
3. Necessity: the model tuned on the seeds answers every kept row; n(x) = q(x, its answer); keep n < beta.
   k-center over those, starting from the seeds, gives the *augmented* rows.
4. The selection is seeds, then augmented rows, each in the order in which k-center found them.

The official code departs from the paper as follows, and its preset keeps this:
- no second k-center: all rows with n < beta are taken, so the size is not controlled;
- a line break after a question without input when the model's own answer is scored, but not in stage 1;
- answers by beam search with 4 beams, on which the temperature and top-p it sets have no effect. The paper does not
  describe its decoding; its preset answers greedily.
The official training file repeats rows that are both seed and needed; here a row is selected once, and such repeats are
counted.

Three departures from the official code cannot be undone by a setting: the tuned model answers in the precision of its
checkpoint, not in fp32; no answer loses its last four characters; and if a row's meta records no input (a pool without
Alpaca's columns, or a record with empty input), a blank line in the question is taken as the start of one, which
affects 350 of 52,002 Alpaca rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator

from raysift.ids import is_among, look_up
from raysift.kcenter.settings import CoverageSettings
from raysift.methods.base import MethodConfig, Selector
from raysift.methods.choose import choose_in_order
from raysift.methods.coverage import COVERED, NO_VECTOR
from raysift.records import FATE, ID, ORDER, RADIUS, SCORE
from raysift.scoring.settings import EmbeddingSettings, QualitySettings, Threshold
from raysift.settings.budget import Budget
from raysift.settings.generation import GenerationSettings
from raysift.settings.training import TrainConfig
from raysift.topk import Ids, Scores

QUALITY, NECESSITY = "quality", "necessity"

# Fates of rows, as in scores.parquet.
CHOSEN = SEED, AUGMENTED = "seed", "augmented"
UNSCORED, POOR = "no quality: the scorer failed", "quality not above alpha"
UNANSWERED, KNOWN = "no necessity: the model's answer or its score failed", "known: necessity not below beta"


class ModsConfig(MethodConfig):
    """Settings of MoDS."""

    scorer: QualitySettings = Field(default_factory=QualitySettings)
    """Scorer of the rows and, later, of the model's own answers."""
    alpha: Threshold = Field(default_factory=lambda: Threshold(quantile=0.5))
    """Keep rows with a quality above this. The paper's values hold only for its reward model (see the presets); a quantile
    works with any scorer. If high, only the scorer's favourites remain."""
    embedding: EmbeddingSettings = Field(default_factory=EmbeddingSettings)
    centers: CoverageSettings = Field(default_factory=CoverageSettings)
    seed_share: float = Field(0.5, gt=0, le=1)
    """Seeds as a share of the budget; at 1 there are no augmented rows, and no model is tuned on the seeds."""
    seed_train: TrainConfig | None = None
    """Recipe for tuning the model on the seeds. Default: that of the final training (`train`)."""
    generation: GenerationSettings = Field(default_factory=GenerationSettings)
    """How the tuned model answers. Decoding changes the necessity score, so it is recorded."""
    beta: Threshold = Field(default_factory=lambda: Threshold(quantile=0.5))
    """Rows are needed if the tuned model's answer scores below this. If low, few rows are needed."""
    necessity_newline: bool = False
    """End questions without input with a line break when the model's own answers are scored, as in the official code."""
    second_coverage: bool = True
    """Choose the augmented rows by k-center. Off: take all needed rows, however many."""
    second_from: Literal["seeds", "nothing"] = "seeds"
    """Start the second k-center with the seeds as centres, or without any."""

    @property
    def necessity_scorer(self) -> QualitySettings:
        """Scorer of the model's own answers."""
        newline = self.scorer.trailing_newline or self.necessity_newline
        return self.scorer.model_copy(update={"trailing_newline": newline})

    @field_validator("scorer")
    @classmethod
    def _judges_any_answer(cls, scorer: QualitySettings) -> QualitySettings:
        if scorer.kind == "ifd":
            raise ValueError("ifd measures how hard an answer is, not how good the model's own is; use reward or judge")
        return scorer


_ANSWERS: dict[str, Any] = {"max_new_tokens": 1024}
_PAPER: dict[str, Any] = {
    "scorer": {
        "kind": "reward",
        "model": "OpenAssistant/reward-model-deberta-v3-large-v2",
        "template": "pair",
        "input_join": "newline",
    },
    "alpha": {"value": 0.0},
    "beta": {"value": 0.0},
    "embedding": {
        "model": "bert-base-uncased",
        "text": "first_paragraph",
        "pooling": "cls",
        "max_tokens": 96,
        "normalise": False,
    },
    "generation": _ANSWERS,
    "train": {"recipe": "mods"},
}


class Mods(Selector):
    """The recipe ranks the rows; `choose` keeps that order."""

    name = "mods"
    summary = "Select rows that are good, diverse and still unknown to the model (MoDS)."
    needs = "a pool, a scorer (mods.scorer.model) and an encoder (mods.embedding.model)"
    main_settings = ("scorer.kind", "scorer.model", "embedding.model", "alpha.quantile", "seed_share")
    Config = ModsConfig
    reading = (
        "quality (and score): what the scorer thinks of the row's own answer; necessity: what it thinks of the tuned model's "
        "answer, so LOW means that the row is needed and high that the model knows it already; radius: distance to the nearest "
        "row picked before; seed: picked to cover the good rows; augmented: picked among needed rows."
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": _PAPER,
        "official": _PAPER
        | {
            "necessity_newline": True,
            "second_coverage": False,
            "generation": _ANSWERS | {"beams": 4},
            "train": {"recipe": "mods-official"},
        },
    }
    columns: ClassVar[pa.Schema] = pa.schema(
        [
            (QUALITY, pa.float64()),
            (NECESSITY, pa.float64()),
            (RADIUS, pa.float64()),
            (ORDER, pa.int64()),
            (FATE, pa.string()),
        ]
    )
    config: ModsConfig

    def choose(self, scores: Iterable[pa.Table], budget: Budget, pool_rows: int) -> tuple[Ids, Scores]:
        """Seeds, then augmented rows; the recipe keeps to the budget or reports that it does not (`second_coverage` off)."""
        return choose_in_order(scores)


def seed_count(config: ModsConfig, total: int) -> int:
    """Number of seeds among `total` rows to select; at least one."""
    return max(1, int(config.seed_share * total + 1e-9))


@dataclass(frozen=True)
class Stages:
    """Results of the stages of MoDS, by id; necessity, needed and augmented are None if all selected rows are seeds."""

    quality: pa.Table
    """id and quality of every row, null if the scorer failed."""
    good: Ids
    seeds: pa.Table
    """id and radius, in picking order."""
    necessity: pa.Table | None = None
    """id and necessity of every good row, null if its answer or score failed."""
    needed: Ids | None = None
    augmented: pa.Table | None = None
    """id and radius, in picking order."""
    no_vector: Ids = field(default_factory=lambda: np.empty(0, np.int64))
    """Rows whose embedding failed."""


def place_rows(found: Stages) -> pa.Table:
    """Scores of every row, its place in the selection, if any, and its fate as a dictionary of words: 48 bytes a row."""
    ids = found.quality[ID].to_numpy()
    words = [UNSCORED, POOR, COVERED, NO_VECTOR, KNOWN, UNANSWERED, AUGMENTED, SEED]
    unscored, poor, covered, no_vector, known, unanswered, augmented, seed = range(len(words))
    fate = np.where(found.quality[QUALITY].is_null().to_numpy(), unscored, poor).astype(np.int8)
    good = is_among(ids, found.good)
    fate[good] = covered
    fate[is_among(ids, found.no_vector)] = no_vector
    necessity = pa.nulls(len(ids), pa.float64())
    if found.necessity is not None and found.needed is not None:
        necessity = look_up(ids, found.necessity[ID].to_numpy(), found.necessity[NECESSITY])
        fate[good & ~is_among(ids, found.needed)] = known
        fate[good & np.asarray(necessity.is_null())] = unanswered
    chosen = [found.seeds] + ([found.augmented] if found.augmented is not None else [])
    order_ids = np.concatenate([table[ID].to_numpy() for table in chosen])
    fate[is_among(ids, order_ids)] = augmented
    fate[is_among(ids, found.seeds[ID].to_numpy())] = seed
    return pa.table(
        {
            ID: ids,
            SCORE: found.quality[QUALITY],
            QUALITY: found.quality[QUALITY],
            NECESSITY: necessity,
            RADIUS: look_up(ids, order_ids, pa.concat_arrays([t[RADIUS].combine_chunks() for t in chosen])),
            ORDER: look_up(ids, order_ids, pa.array(np.arange(1, len(order_ids) + 1))),
            FATE: pa.DictionaryArray.from_arrays(fate, words),
        }
    )

"""The base of all selectors: settings, a score per row, and a choice under a budget."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import pyarrow as pa

from raysift.methods.choose import choose_top
from raysift.records import ID, SCORE
from raysift.settings.base import Settings
from raysift.settings.budget import Budget
from raysift.topk import Ids, Scores


class MethodConfig(Settings):
    """Settings of a method that affect its result; all of them are part of its fingerprint."""


class Selector:
    """Base of all methods. Everything the rest of the program must know about a method is defined here."""

    name: ClassVar[str]
    """Its command, its section of the settings and its function in Python."""
    summary: ClassVar[str]
    """One sentence for the command line."""
    needs: ClassVar[str] = "a pool"
    """What it must be given, for its help."""
    main_settings: ClassVar[tuple[str, ...]] = ()
    """Those of its settings that one looks at first, for its help."""
    Config: ClassVar[type[Settings]] = MethodConfig
    reads: ClassVar[tuple[str, ...]] = ()
    """Columns of the length table, besides the id, that `score` reads; if empty, it needs no token counts."""
    reading: ClassVar[str] = ""
    """How to read its scores and columns, in a sentence or two below their table."""
    columns: ClassVar[pa.Schema] = pa.schema([])
    """The method's own columns besides id and score; `choose` sees them too."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    """Named settings for `METHOD.preset`: those of the official code and of the paper, where they differ."""

    trains_itself: ClassVar[bool] = False
    """Whether its recipe trains the model while it makes the selection, in the stage `final`."""
    takes_target: ClassVar[bool] = False
    """Whether it selects for target files; other methods refuse `--target`."""

    def __init__(self, config: Settings, seed: int) -> None:
        self.config = config
        self.seed = seed

    @property
    def score_words(self) -> str:
        """What its score is, as the beginning of a sentence that `is` follows."""
        return "Its score"

    @property
    def picks_in_turn(self) -> bool:
        """Whether subtasks pick rows in turn, so that rows are not chosen in the order of their scores."""
        return False

    def score(self, rows: pa.Table) -> pa.Array:
        """One number per row, higher is better; null if a row has none. Each row is judged by itself."""
        raise NotImplementedError(f"{self.name} is scored by its recipe, not row by row")

    def choose(self, scores: Iterable[pa.Table], budget: Budget, pool_rows: int) -> tuple[Ids, Scores]:
        """The rows to take, in order of rank."""
        return choose_top(scores, budget, pool_rows)

    @classmethod
    def score_schema(cls) -> pa.Schema:
        """Columns of `scores.parquet`."""
        return pa.schema([pa.field(ID, pa.int64()), pa.field(SCORE, pa.float64()), *cls.columns])

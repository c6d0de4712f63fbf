"""RDS+ (Ivison et al. 2025, arXiv 2503.01807): rows whose states in the model to be trained are like a target example's.

    v(z) = sum over tokens i of  i h_i / sum of i        score(z) = max over examples t of  cos(v(t), v(z))

h_i is the last layer's state of token i, counted from 1. As in the official code, all tokens of the templated conversation
count, those of prompt and template included. The examples then pick in turn. In the official code an example whose best
row is taken loses its turn; here it takes its best row that is left.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from raysift.methods.base import MethodConfig
from raysift.methods.gradient import BySubtask, TargetFile
from raysift.methods.less import Less, read_answered
from raysift.settings.base import Settings
from raysift.settings.gradients import MatchSettings


class RdsTargets(Settings):
    """Which examples are the target."""

    limit: Annotated[int, Field(ge=1)] | Literal["none"] = 128
    """At most so many examples, drawn by seed and content, evenly over subtasks. `none`: all of them."""
    split: str | None = None
    """Use only examples of this split as the target. Default: all."""


class RdsConfig(MethodConfig):
    targets: RdsTargets = Field(default_factory=RdsTargets)
    match: MatchSettings = Field(default_factory=lambda: MatchSettings(subtasks="round_robin"))
    """Here each example is a subtask of its own."""


class Rds(BySubtask):
    """Scored by its recipe, for the cosines need the model."""

    name = "rds"
    summary = "Select rows that the model sees as similar to target examples (RDS+)."
    Config = RdsConfig
    takes_target = True
    needs = "a pool, and --target: examples with a right answer, in any layout that a pool may have"
    main_settings = ("match.subtasks", "targets.limit")
    reading = "score: the cosine with the target, from -1 to 1; subtask: the example that is nearest."
    columns: ClassVar[pa.Schema] = pa.schema([("subtask", pa.string()), ("by_subtask", pa.list_(pa.float64()))])
    target_kind = Less.target_kind
    unread = ()
    config: RdsConfig

    @property
    def score_words(self) -> str:
        return "Its score, the cosine of its states with those of the nearest target example,"

    def read_target(self, path: str) -> TargetFile:
        """The examples of a target path, each with a right answer."""
        return read_answered(path, self.config.targets.split)

"""The base of gradient methods: warm-up on a random share, row gradients at its checkpoints, match with a target.

    score(z) = max over subtasks of sum over checkpoints i of  w_i cos(target_i, Gamma(z, theta_i))

w_i is the mean learning rate of epoch i divided by the sum of all, Gamma the direction of Adam's step on the row alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from raysift.errors import ConfigError
from raysift.gradients.null_columns import Kind
from raysift.methods.base import MethodConfig, Selector
from raysift.records import ABOVE_NULL, ID, SCORE
from raysift.settings.budget import Budget
from raysift.settings.gradients import AdamSettings, MatchSettings, ProjectionSettings, TargetSettings
from raysift.settings.training import TrainConfig
from raysift.topk import Ids, Scores

if TYPE_CHECKING:
    from raysift.gradients.null_columns import NullPlan
    from raysift.gradients.preference import Targets


class GradientConfig(MethodConfig):
    warmup_share: float = Field(0.05, gt=0, le=1)
    """Share of the pool, drawn at random, on which the adapter is warmed up. If too small, gradients are uninformative."""
    warmup: TrainConfig | None = None
    """Recipe of the warm-up. Default: that of the final training (`train`), as in the papers."""
    warmup_from: str | None = None
    """Checkpoints trained elsewhere, used instead of a warm-up: a folder with `checkpoint-N` of transformers' Trainer or
    `epoch-N` of `raysift finetune`, or a run. `warmup` decides how rows become tokens, so it should match that
    training."""
    checkpoints: int | None = Field(None, ge=1)
    """Match only this many last epochs of the warm-up. Default: all. One checkpoint costs a quarter of four."""
    matching: Literal["exact", "store"] = "exact"
    """`exact`: for known targets; nothing is projected, only scores are written. `store`: projected gradients are kept, so
    later targets (`raysift rescore`) and new rows need no new pass over the pool."""
    adam: AdamSettings = Field(default_factory=AdamSettings)
    projection: ProjectionSettings = Field(default_factory=ProjectionSettings)
    """Used with `matching=store`."""
    targets: TargetSettings = Field(default_factory=TargetSettings)
    match: MatchSettings = Field(default_factory=MatchSettings)


@dataclass
class TargetFile:
    """The content of a target file, or of a folder of them."""

    members: list[Any] = field(default_factory=list)
    """Pairs or examples."""
    places: list[tuple[str, int | str]] = field(default_factory=list)
    """Place of each member: the file, and the number of a pair's record, from 1, or the id of an example."""
    problems: Counter[str] = field(default_factory=Counter)
    """Number of records that give no member, by reason."""
    notes: list[str] = field(default_factory=list)
    """The problems in words, with the first records of each reason."""


class BySubtask(Selector):
    """A selector whose scores have one number for each subtask, in `by_subtask`."""

    config: Any

    @property
    def picks_in_turn(self) -> bool:
        return bool(self.config.match.subtasks == "round_robin")

    def choose(self, scores: Iterable[pa.Table], budget: Budget, pool_rows: int) -> tuple[Ids, Scores]:
        """The rows with the best scores; under `round_robin` the subtasks pick in turn."""
        if not self.picks_in_turn:
            return super().choose(scores, budget, pool_rows)
        return choose_in_turn(self.config.match, scores, budget, pool_rows)


class GradientSelector(BySubtask):
    """Scored by its recipe, because a row's score needs the model at several points of its training.

    A method defines its target: how to read target files, and which call of an actor gives the target's gradients.
    """

    takes_target = True
    reading = (
        "score: how far training on the row goes where the target asks, as a cosine from -1 to 1; subtask: the part of the "
        "target that it helps most; above_null: whether the score stands above what targets without meaning give."
    )
    columns: ClassVar[pa.Schema] = pa.schema(
        [("subtask", pa.string()), ("by_subtask", pa.list_(pa.float64())), (ABOVE_NULL, pa.bool_())]
    )
    """The subtask that a row helps most, the row's score for each subtask, and whether its score stands above what targets
    without meaning give; null where there is no such null."""
    target_kind: ClassVar[str]
    """Content of a target file, in words for messages: a name, a colon, its fields."""
    unread: ClassVar[tuple[str, ...]]
    """Settings of `targets` that apply only to another kind of target."""
    of_target: ClassVar[tuple[str, ...]] = ()
    """The method's own settings that affect only the gradients of its target."""
    config: GradientConfig

    @property
    def null_kind(self) -> Kind | None:
        """What its null targets are made of (see `raysift.gradients.null_columns`); None: it has none, and `target_gradients` is
        not asked for any."""
        return None

    @property
    def turns_with_sides(self) -> bool:
        """Whether a pair with its answers swapped has the opposite gradient; without effect where members are no pairs."""
        return True

    @property
    def score_words(self) -> str:
        if self.config.match.target_weights:
            return "Its score, the weighted sum of its cosines with the targets over all checkpoints,"
        return "Its score, a cosine with the target from -1 to 1 over all checkpoints,"

    def read_target(self, path: str) -> TargetFile:
        """The members of a target path, and the problems of its other records."""
        raise NotImplementedError(f"{self.name} does not say what a target of it is")

    def target_gradients(
        self, actor: Any, members: Sequence[Any], keep_units: bool = False, null: NullPlan | None = None
    ) -> list[Targets]:
        """The target's gradients at each checkpoint, from an actor `TargetGradients`; with `keep_units` also each member's, with
        `null` also those of null targets."""
        raise NotImplementedError(f"{self.name} does not say what gradient a target has")


def choose_in_turn(
    match: MatchSettings, scores: Iterable[pa.Table], budget: Budget, pool_rows: int
) -> tuple[Ids, Scores]:
    """Each column of `by_subtask` picks its best row not yet taken, in turn."""
    from raysift.gradients.influence import InfluenceReduce, TargetColumns

    if budget.counts_tokens:
        raise ConfigError("budget: match.subtasks=round_robin takes a number of rows or a share, not tokens.")
    reduce = None
    for chunk in scores:
        scored = chunk.filter(chunk[SCORE].is_valid()).combine_chunks()
        table = np.stack([np.asarray(row) for row in scored["by_subtask"].to_numpy()]) if len(scored) else None
        if table is None:
            continue
        if reduce is None:
            columns = TargetColumns.single([str(i) for i in range(table.shape[1])])
            reduce = InfluenceReduce(budget.rows_of(pool_rows), columns, match)
        reduce.add(scored[ID].to_numpy(), table)
    if reduce is None:
        raise ConfigError("choose: no row has a score.")
    return reduce.result()

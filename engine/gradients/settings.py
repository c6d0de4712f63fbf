"""Settings of gradient selection that decide the result. Light: reading them imports neither torch nor ray."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from raysift.settings.base import Seed, Settings


def _usual_dimension(known: dict[str, Any]) -> int:
    """16 KiB a row and checkpoint, whatever the kind."""
    return 131072 if known.get("kind") == "signs" else 8192


class ProjectionSettings(Settings):
    """How a gradient of millions of numbers becomes a vector that can be stored."""

    kind: Literal["sketch", "signs", "none"] = "signs"
    """`sketch`: random signs, one rotation per block, sum of blocks; as accurate as the dense matrix of signs in LESS, at a
    hundredth of the arithmetic. `signs`: the same, but only the signs of its numbers are kept, one bit each: in the same bytes
    a third of the error, at 1.5 times the matching time. `none`: the gradient itself, for small adapters. Where only a
    dimension is given, a sketch of that many numbers."""
    dimension: int = Field(default_factory=_usual_dimension, ge=1)
    """Numbers per row: 131072 signs, or 8192 in half precision, which take the same bytes. A cosine is off by about
    1 / sqrt(dimension), with signs by a quarter more; bytes grow in proportion. Without effect for `none`."""
    seed: Seed = 0
    """Draws another random map of the same kind; vectors of different seeds must not be compared."""
    own_map: bool = True
    """Each checkpoint draws a map of its own, from the seed and its weights, so that errors average out over checkpoints; off,
    all share one, as in LESS, and the errors of checkpoints that are alike add up."""

    @model_validator(mode="before")
    @classmethod
    def _numbers_where_they_are_counted(cls, given: Any) -> Any:
        return {"kind": "sketch"} | given if isinstance(given, dict) and "dimension" in given else given

    @model_validator(mode="after")
    def _rotates(self) -> ProjectionSettings:
        if self.kind == "signs" and (not 8 <= self.dimension <= 2**24 or self.dimension.bit_count() != 1):
            raise ValueError(f"dimension is {self.dimension}; signs need a power of two from 8 to 2^24, such as 131072")
        return self


class AdamSettings(Settings):
    """What a training step on one row would be, given the moments of a checkpoint."""

    form: Literal["official", "textbook", "none"] = "official"
    """`official`: epsilon inside the root, no bias correction, as the code of LESS and ROSE has it. `textbook`:
    epsilon outside, moments corrected for bias, as the papers write it. `none`: the plain gradient, no moments
    needed."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Share of the old first moment; at 0 the direction is the row's alone."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Share of the old second moment."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Floor of the denominator: 1e-8 is a floor of 1e-4 in the official form, and of 1e-8 in the textbook one."""


class PreferenceSettings(Settings):
    """The pairwise preference loss (DPO) whose gradient is the target of ROSE."""

    beta: float = Field(default=0.1, gt=0)
    """Sharpness of the preference. Without effect on `mean_of_units`, where each pair's gradient is normalised."""
    log_probability: Literal["sum", "mean"] = "sum"
    """`sum` over the answer's tokens as in the official code: the longer answer weighs more. `mean`: per token, an
    extra of ours."""
    reference: Literal["base", "none"] = "base"
    """`base`: the same model with the adapter off. `none`: skip it; margins and losses are then those of the policy
    alone."""


class TargetSettings(Settings):
    """How the gradients of a subtask's pairs or examples become one target vector."""

    aggregation: Literal["mean_of_units", "unit_of_mean"] = "mean_of_units"
    """`mean_of_units`: mean of the normalised gradients, as the official code has it. `unit_of_mean`: the normalised
    mean of raw gradients, as the papers' formulas have it; pairs that the model gets wrong then weigh more."""
    columns: dict[str, str] | None = None
    """Columns of preference files that are called otherwise, by field: `columns.chosen=better`. ROSE only."""
    subtask: str | None = None
    """Column of preference files that tells subtasks apart; none: `subtask`, where there is one. ROSE only."""
    split: str | None = None
    """Only examples of this split are the target; none: all. LESS only."""


class MatchSettings(Settings):
    """How cosines per checkpoint and subtask become one score per row."""

    subtasks: Literal["max", "mean", "round_robin"] = "max"
    """`max`: a row is as good as its best subtask. `mean`: good on all. `round_robin`: each subtask picks its best in
    turn."""
    target_weights: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] | None = Field(None, min_length=1)
    """One number per target file: each is then a target of its own, and a row's score the weighted sum of what `subtasks`
    gives for each of them. None: all files together are one target."""

    @model_validator(mode="after")
    def _weighs_scores(self) -> MatchSettings:
        if self.target_weights and self.subtasks == "round_robin":
            raise ValueError(
                "target_weights weigh scores, and under round_robin subtasks pick by rank; leave one of them out"
            )
        return self

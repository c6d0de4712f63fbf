"""Settings of gradient selection that affect the result; importing them loads neither torch nor ray."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from raysift.settings.base import Seed, Settings


def _usual_dimension(known: dict[str, Any]) -> int:
    """Dimension that takes 16 KiB per row and checkpoint, for either kind."""
    return 131072 if known.get("kind") == "signs" else 8192


class ProjectionSettings(Settings):
    """How a gradient of millions of numbers becomes a vector that can be stored."""

    kind: Literal["sketch", "signs", "none"] = "signs"
    """`sketch`: random signs, one rotation per block, sum of blocks; as accurate as the dense matrix of signs in LESS,
    at a hundredth of the arithmetic. `signs`: a sketch of which only the signs are kept, one bit per number: a third of
    the error in the same bytes, at 1.5 times the matching time. `none`: the gradient itself, for small adapters. If
    only `dimension` is given: `sketch`."""
    dimension: int = Field(default_factory=_usual_dimension, ge=1)
    """Numbers per row: 131072 signs, or 8192 in half precision, which take the same bytes. A cosine's error is
    about 1 / sqrt(dimension), a quarter more with signs; bytes grow in proportion. No effect with `none`."""
    seed: Seed = 0
    """Seed of the random map; vectors of different seeds must not be compared."""
    own_map: bool = True
    """Draw a separate map for each checkpoint, from the seed and its weights, so that errors average out over
    checkpoints. Off: all share one map, as in LESS, and the errors of similar checkpoints add up."""

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
    """The form of the Adam step on a single row, given the moments of a checkpoint."""

    form: Literal["official", "textbook", "none"] = "official"
    """`official`: epsilon inside the root, no bias correction, as in the code of LESS and ROSE. `textbook`: epsilon
    outside, moments corrected for bias, as in the papers. `none`: the plain gradient, no moments needed."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Share of the old first moment; at 0 the direction depends on the row alone."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Share of the old second moment."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Floor of the denominator: 1e-8 is a floor of 1e-4 in the official form, and of 1e-8 in the textbook one."""


class PreferenceSettings(Settings):
    """The pairwise preference loss (DPO) whose gradient is the target of ROSE."""

    beta: float = Field(default=0.1, gt=0)
    """Sharpness of the preference. No effect with `mean_of_units`, where each pair's gradient is normalised."""
    log_probability: Literal["sum", "mean"] = "sum"
    """`sum` over the answer's tokens as in the official code: the longer answer weighs more. `mean`: per token, not in
    the official code."""
    reference: Literal["base", "none"] = "base"
    """`base`: the same model with the adapter off. `none`: skip it; margins and losses are then the policy's alone."""
    answer_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Not in the paper: so many times the direction of the chosen answer's own gradient is added to that of the contrast. Where
    both answers are of the target's kind, their contrast alone points away from it; `rose.preset=anchored` sets 1."""


class TargetSettings(Settings):
    """How the gradients of a subtask's pairs or examples become one target vector."""

    aggregation: Literal["mean_of_units", "unit_of_mean"] = "mean_of_units"
    """`mean_of_units`: mean of the normalised gradients, as in the official code. `unit_of_mean`: the normalised mean
    of raw gradients, as in the papers' formulas; pairs that the model gets wrong then weigh more."""
    limit: Annotated[int, Field(ge=1)] | Literal["none"] = 128
    """At most so many pairs or examples, drawn by seed and content, evenly over subtasks; five of a subtask always stay.
    `none`: all of them, each at the cost of several rows of the pool. The papers take 2 to 285, which 128 never cuts."""
    columns: dict[str, str] | None = None
    """Names of preference-file columns that differ from the field names: `columns.chosen=better`. ROSE only."""
    subtask: str | None = None
    """Column of preference files that names the subtask. Default: `subtask`, if there is one. ROSE only."""
    split: str | None = None
    """Use only examples of this split as the target. Default: all. LESS only."""
    least_agreement: float | None = Field(None, ge=0, le=1)
    """End the run before its pass over the pool if random halves of the target agree less than this; 0.2 refuses what is likely
    to be noise. Default: say how far they agree and go on."""


class MatchSettings(Settings):
    """How cosines per checkpoint and subtask become one score per row."""

    subtasks: Literal["max", "mean", "round_robin"] = "max"
    """`max`: a row is as good as its best subtask. `mean`: the mean over subtasks. `round_robin`: subtasks take turns,
    each picking its best row."""
    target_weights: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] | None = Field(None, min_length=1)
    """One number per target file: each file is then a separate target, and a row's score is the weighted sum of its
    scores by `subtasks` for each target. Default: all files together are one target."""

    @model_validator(mode="after")
    def _weighs_scores(self) -> MatchSettings:
        if self.target_weights and self.subtasks == "round_robin":
            raise ValueError(
                "target_weights weigh scores, and under round_robin subtasks pick by rank; leave one of them out"
            )
        return self

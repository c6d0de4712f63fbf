"""Settings of RAISE that decide its result. Light: reading them imports neither torch nor ray.

The defaults learn on the nano world; the presets `letter` and `paper` of the method are the algorithm to the letter. Each
field says what the paper has, or that it is silent.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from raysift.scoring.settings import EmbeddingSettings
from raysift.settings.base import Settings, Template

Block = Literal["stage", "difficulty", "semantic", "availability"]


class FeatureSettings(Settings):
    """What the policy knows of a row before the training begins."""

    model: str = "nano"
    """The auxiliary language model that gives the log-probabilities. Paper: Llama-3.1-8B-Instruct."""
    template: Template = "auto"
    """Chat template for the auxiliary model (see raysift.templates)."""
    max_length: int | None = Field(default=None, ge=2)
    """Longer conversations are cut for the log-probabilities; none: what the auxiliary model has positions for."""
    logprob: Literal["mean", "sum"] = "mean"
    """Log-probabilities per token, or of the whole answer, which then tells its length once more. The paper is silent."""
    embedding: EmbeddingSettings = Field(default_factory=lambda: EmbeddingSettings(text="conversation"))
    """What gives the vector of a row. Paper: the auxiliary model over the whole row, pooled; the pooling is not told."""
    semantic_dimensions: int = Field(default=32, ge=1)
    """Principal components kept of the vector; fewer where the vector has fewer. Paper: 32 (8 to 64 tried)."""
    fit_rows: int = Field(default=200_000, ge=100)
    """Components, scales and classes are fitted on at most so many rows, those with the smallest hash of their id."""


class PolicySettings(Settings):
    """The acquisition function, and how it picks a batch."""

    classes: int = Field(default=1, ge=1)
    """K-means classes of the rows; each gives an equal share of every batch. Paper: 1 to 32 tried, 1 or 2 best at a budget
    of 1 %. Many classes keep a batch diverse and forbid the policy to prefer a class."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the acquisition network's hidden layers. The paper says only that it is an MLP."""
    critic_hidden: tuple[int, ...] = (64, 64)
    """The same for the critic."""
    blocks: tuple[Block, ...] = ("stage", "difficulty", "semantic", "availability")
    """Inputs the policy sees; leaving one out is the paper's ablation (the input is then zero)."""
    exploration: Literal["none", "gumbel"] = "gumbel"
    """While learning, `none` takes the highest scores of each class (paper); `gumbel` draws without replacement with
    probabilities by the softmax of the scores, which the ratio of PPO takes for granted."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the draws: scores are divided by it. Near 0 it is `none`, large it is uniform."""
    deploy: Literal["highest", "sampled"] = "sampled"
    """How the finished policy picks: the highest scores (paper), or drawn as in learning, seeded by step and row id."""
    max_repeats: int | None = Field(default=None, ge=1)
    """Most times a row may be picked in one training. None: any number (paper)."""


class LearningSettings(Settings):
    """PPO, and what counts as an advantage."""

    rounds: int = Field(default=20, ge=1)
    """Times the model is trained from the start and the policy updated after it. Paper: 20 (30 in its cost appendix)."""
    episodes: int = Field(default=1, ge=1)
    """Independent trainings in each round, pooled before the update. Paper: 1; more can run side by side."""
    keep: Literal["best", "last"] = "best"
    """Which round's policy is kept: the one whose training reached the highest validation performance, or that of the last
    update (paper), which no training has measured."""
    actor_rate: float = Field(default=6e-3, gt=0)
    """Learning rate of the acquisition function. Paper: 0.1."""
    critic_rate: float = Field(default=3e-3, gt=0)
    """Learning rate of the critic. Paper: 0.2."""
    rate_schedule: Literal["linear", "constant"] = "linear"
    """`linear`: both rates fall from round to round, to a last one of 1 / rounds of them, so that a policy that has found
    good rows settles; `constant` (paper) goes on moving it by chance."""
    weight_decay: float = Field(default=1e-2, ge=0)
    """AdamW's, for both. Paper: 1e-2."""
    passes: int = Field(default=4, ge=1)
    """Updates over each round's trainings. The paper has K2 of them and does not tell the number."""
    clip: float = Field(default=0.2, gt=0)
    """Epsilon of PPO. Paper: 0.2."""
    ratio: Literal["product", "mean"] = "mean"
    """The ratio of a batch: the product over its rows (paper), or the geometric mean, which stays within the clip range
    whatever the batch."""
    advantage: Literal["gae", "credit"] = "credit"
    """`gae`: generalised advantages with the critic (paper). `credit`: a regression over all rounds so far says how much of
    each step's reward is owed to the features of its rows, and each row has a ratio of its own; needs no critic."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Share of a step's gain that the step before foretells, and that `credit` takes off: beta1 of the Adam that
    trains the model, whose step is mostly that of the batches before. 0 takes nothing off."""
    gamma: float = Field(default=0.99, ge=0, le=1)
    """Discount, for `gae`. Paper: 0.99."""
    lam: float = Field(default=1.0, ge=0, le=1)
    """Lambda, for `gae`. Paper: 1."""
    baseline_window: int = Field(default=7, ge=1)
    """Neighbouring steps over which `credit` smooths the usual gains; an odd number."""
    entropy: float = Field(default=0.0, ge=0)
    """Weight of the entropy of the class softmax in the loss; keeps picks spread. Paper: none."""
    max_log_ratio: float = Field(default=10.0, gt=0)
    """Log-ratios are held within plus and minus this, so that a product over many rows stays a number."""
    pool_rows: int = Field(default=2048, ge=64)
    """Rows of the pool that stand for all of them in the softmax of an update, drawn anew for each; all where the pool is
    no larger. Picks are made from all rows always."""


class EpisodeSettings(Settings):
    """One training of the model under the policy, and how its progress is measured. Its recipe is `train`."""

    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps; none: as many as `epochs` over the budget's rows in batches of `train.batch_size`."""
    epochs: float = Field(default=3.0, gt=0)
    """See `steps`. Paper: 3."""
    validate_every: int = Field(default=1, ge=1)
    """Steps between two measurements; the steps between share the gain. Paper: 1."""
    validation_rows: int | None = Field(default=None, ge=1)
    """Examples that measure progress, of those not kept for the report; none: all of them."""
    report_share: float = Field(default=0.25, ge=0, lt=1)
    """Share of the target's examples that no policy ever sees; what a training reached is reported on them."""


class RaiseConfig(Settings):
    """Settings of RAISE. The model is trained by the recipe `train`, whose batch size is that of the policy."""

    features: FeatureSettings = Field(default_factory=FeatureSettings)
    policy: PolicySettings = Field(default_factory=PolicySettings)
    learning: LearningSettings = Field(default_factory=LearningSettings)
    episode: EpisodeSettings = Field(default_factory=EpisodeSettings)
    policy_from: str | None = None
    """A run whose policy is applied to this pool as it is; nothing is learned then, and `features` and `policy` are those
    of that run."""
    steps_per_state: int = Field(default=100, ge=1)
    """Steps of the final training after which its state is kept, to go on from when it is interrupted."""

    @model_validator(mode="after")
    def _trainings_differ(self) -> RaiseConfig:
        if self.policy.exploration == "none" and self.learning.episodes > 1:
            raise ValueError(
                "with policy.exploration=none all trainings of a round are the same; set learning.episodes=1"
            )
        return self

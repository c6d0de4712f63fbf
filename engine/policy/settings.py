"""Settings of RAISE that decide its result. Light: reading them imports neither torch nor ray.

The defaults learn on the nano world; the method's presets `letter` and `paper` follow the published algorithm
exactly. Each field states the paper's value, or that the paper is silent.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from raysift.scoring.settings import EmbeddingSettings
from raysift.settings.base import Settings, Template

Block = Literal["stage", "difficulty", "semantic", "availability"]


class FeatureSettings(Settings):
    """The policy's features of a row, computed before training."""

    model: str = "nano"
    """The auxiliary language model that gives the log-probabilities. Paper: Llama-3.1-8B-Instruct."""
    template: Template = "auto"
    """Chat template for the auxiliary model (see raysift.templates)."""
    max_length: int | None = Field(default=None, ge=2)
    """Longer conversations are cut for the log-probabilities. Default: the auxiliary model's number of positions."""
    logprob: Literal["mean", "sum"] = "mean"
    """Log-probabilities per token, or of the whole answer, which then encodes its length again. The paper is silent."""
    embedding: EmbeddingSettings = Field(default_factory=lambda: EmbeddingSettings(text="conversation"))
    """What gives the vector of a row. Paper: the auxiliary model over the whole row, pooled in an unstated way."""
    semantic_dimensions: int = Field(default=32, ge=1)
    """Principal components kept of the vectors; fewer if the vectors have fewer. Paper: 32 (8 to 64 tried)."""
    fit_rows: int = Field(default=200_000, ge=100)
    """Maximum rows to fit components, scales and classes on: those whose ids have the smallest hashes."""


class PolicySettings(Settings):
    """The acquisition function, and how it picks a batch."""

    classes: int = Field(default=1, ge=1)
    """K-means classes of the rows; each gives an equal share of every batch. Paper: 1 to 32 tried, 1 or 2 best at a
    budget of 1 %. Many classes keep a batch diverse, but the policy cannot prefer a class."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the acquisition network's hidden layers. The paper says only that it is an MLP."""
    critic_hidden: tuple[int, ...] = (64, 64)
    """Widths of the critic network's hidden layers."""
    blocks: tuple[Block, ...] = ("stage", "difficulty", "semantic", "availability")
    """Inputs the policy sees. Leaving one out sets it to zero, as in the paper's ablation."""
    exploration: Literal["none", "gumbel"] = "gumbel"
    """How learning picks. `none` takes the highest scores of each class (paper). `gumbel` draws without replacement with
    softmax probabilities of the scores, as PPO's ratio assumes."""
    temperature: float = Field(default=1.0, gt=0)
    """Divisor of the scores in draws. Near 0, draws become `none`; large, they become uniform."""
    deploy: Literal["highest", "sampled"] = "sampled"
    """How the finished policy picks: the highest scores (paper), or by draws as in learning, seeded by step and row id."""
    max_repeats: int | None = Field(default=None, ge=1)
    """Maximum picks of a row in one training. Default: no limit (paper)."""


class LearningSettings(Settings):
    """PPO and its advantages."""

    rounds: int = Field(default=20, ge=1)
    """Rounds: each trains the model from the start, then updates the policy. Paper: 20 (30 in its cost appendix)."""
    episodes: int = Field(default=1, ge=1)
    """Independent trainings per round, pooled for the update; they can run in parallel. Paper: 1."""
    keep: Literal["best", "last"] = "best"
    """Which policy is kept. `best`: the one whose training reached the highest validation performance. `last`: that of the
    last update (paper), which no training has measured."""
    actor_rate: float = Field(default=6e-3, gt=0)
    """Learning rate of the acquisition function. Paper: 0.1."""
    critic_rate: float = Field(default=3e-3, gt=0)
    """Learning rate of the critic. Paper: 0.2."""
    rate_schedule: Literal["linear", "constant"] = "linear"
    """`linear`: both rates fall from round to round, to 1 / rounds of their start in the last one, so that a policy that
    has found good rows settles. `constant` (paper): noise keeps moving it."""
    weight_decay: float = Field(default=1e-2, ge=0)
    """Weight decay of AdamW, for both networks. Paper: 1e-2."""
    passes: int = Field(default=4, ge=1)
    """Updates over each round's trainings. The paper calls it K2 and gives no number."""
    clip: float = Field(default=0.2, gt=0)
    """Epsilon of PPO. Paper: 0.2."""
    ratio: Literal["product", "mean"] = "mean"
    """The ratio of a batch: the product over its rows (paper), or their geometric mean, which stays comparable with the clip
    range at any batch size."""
    advantage: Literal["gae", "credit"] = "credit"
    """`gae`: generalised advantages with the critic (paper). `credit`: a regression over all rounds so far splits each step's
    reward among its rows by their features, and each row has its own ratio; needs no critic."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Share of a step's gain that the previous step predicts; `credit` subtracts it. Use beta1 of the Adam that trains the
    model, because most of its step comes from earlier batches. 0 subtracts nothing."""
    gamma: float = Field(default=0.99, ge=0, le=1)
    """Discount, for `gae`. Paper: 0.99."""
    lam: float = Field(default=1.0, ge=0, le=1)
    """Lambda, for `gae`. Paper: 1."""
    baseline_window: int = Field(default=7, ge=1)
    """Neighbouring steps over which `credit` smooths the mean gains; an odd number."""
    entropy: float = Field(default=0.0, ge=0)
    """Weight of the class softmax's entropy in the loss; keeps picks diverse. Paper: no such term."""
    max_log_ratio: float = Field(default=10.0, gt=0)
    """Log-ratios are clamped to plus and minus this value, so that a product over many rows stays finite."""
    pool_rows: int = Field(default=2048, ge=64)
    """Rows that represent the pool in the softmax of an update, drawn anew for each update; a smaller pool is used whole.
    Picks always consider all rows."""


class EpisodeSettings(Settings):
    """One training of the model under the policy, and how its progress is measured. `train` holds the training settings."""

    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps. Default: `epochs` passes over the budget's rows in batches of `train.batch_size`."""
    epochs: float = Field(default=3.0, gt=0)
    """Passes over the budget's rows, used unless `steps` is set. Paper: 3."""
    validate_every: int = Field(default=1, ge=1)
    """Steps from one measurement to the next; these steps share the gain. Paper: 1."""
    validation_rows: int | None = Field(default=300, ge=1)
    """At most so many examples measure progress, drawn by seed and id; the report's come on top. Each is read at every
    measurement. null: all. Paper: 256 to 299."""
    report_share: float = Field(default=0.25, ge=0, lt=1)
    """Share of the target's examples that no policy ever sees; the performance of trainings is reported on them."""


class RaiseConfig(Settings):
    """Settings of RAISE. `train` holds the training settings; its batch size is also the policy's."""

    features: FeatureSettings = Field(default_factory=FeatureSettings)
    policy: PolicySettings = Field(default_factory=PolicySettings)
    learning: LearningSettings = Field(default_factory=LearningSettings)
    episode: EpisodeSettings = Field(default_factory=EpisodeSettings)
    policy_from: str | None = None
    """A run whose policy is applied unchanged to this pool. Nothing is learned, and that run's `features` and `policy`
    settings apply."""
    steps_per_state: int = Field(default=100, ge=1)
    """Steps between saved states of a training, from which it resumes after an interruption."""

    @model_validator(mode="after")
    def _trainings_differ(self) -> RaiseConfig:
        if self.policy.exploration == "none" and self.learning.episodes > 1:
            raise ValueError(
                "with policy.exploration=none all trainings of a round are the same; set learning.episodes=1"
            )
        return self

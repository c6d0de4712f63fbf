"""Settings of `raysift search`: the space and the cost. Light: reading them imports neither torch nor ray.

The space consists of lists of values, so that a search can be read, repeated and tabulated.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raysift.settings.base import Settings

PLACES: dict[str, tuple[str, ...]] = {
    "classes": ("raise", "policy", "classes"),
    "hidden": ("raise", "policy", "hidden"),
    "temperature": ("raise", "policy", "temperature"),
    "actor_rate": ("raise", "learning", "actor_rate"),
    "critic_rate": ("raise", "learning", "critic_rate"),
    "entropy": ("raise", "learning", "entropy"),
    "clip": ("raise", "learning", "clip"),
    "passes": ("raise", "learning", "passes"),
    "batch_size": ("train", "batch_size"),
}
"""The path of each searched setting in a run's settings."""


class SearchSpace(Settings):
    """The values to try for each setting, in rising order; an empty list keeps the run's own value."""

    classes: tuple[int, ...] = (1, 2, 4)
    """Values of `raise.policy.classes`."""
    hidden: tuple[tuple[int, ...], ...] = ((32, 32), (64, 64), (128, 128))
    """Values of `raise.policy.hidden`, the widths of the layers."""
    temperature: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Values of `raise.policy.temperature`; ignored with `raise.policy.exploration=none`."""
    actor_rate: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
    """Values of `raise.learning.actor_rate`."""
    critic_rate: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    """Values of `raise.learning.critic_rate`; ignored unless `raise.learning.advantage` is `gae`."""
    entropy: tuple[float, ...] = (0.0, 0.003, 0.01, 0.03)
    """Values of `raise.learning.entropy`."""
    clip: tuple[float, ...] = (0.1, 0.2, 0.4)
    """Values of `raise.learning.clip`."""
    passes: tuple[int, ...] = (2, 4, 8)
    """Values of `raise.learning.passes`."""
    batch_size: tuple[int, ...] = ()
    """Values of `train.batch_size`. Unless `raise.episode.steps` is set, larger batches mean fewer steps over the same
    number of rows."""


class SearchSettings(Settings):
    """How policy settings are searched. The first trial always has the run's own settings."""

    trials: int = Field(default=8, ge=1)
    """Maximum number of trials, the run's own settings included; fewer if the space is smaller."""
    rounds: int = Field(default=6, ge=1)
    """Rounds of a complete trial, in place of `raise.learning.rounds`."""
    steps_share: float = Field(default=1.0, gt=0, le=1)
    """Steps of a trial's trainings, as a share of the run's."""
    last_rounds: int = Field(default=2, ge=1)
    """A trial is judged by the mean final performance of this many last rounds; a single round is noisy."""
    sampler: Literal["random", "grid"] = "random"
    """`random`: distinct points of the space, drawn by the seed. `grid`: the whole space, which must fit into `trials`."""
    scheduler: Literal["asha", "none"] = "asha"
    """`asha` stops trials that fall behind, but never the run's own settings; `none` lets all finish. The decisions of `asha`
    depend on the relative speed of the trials."""
    grace_rounds: int = Field(default=2, ge=1)
    """Rounds that `asha` always lets a trial finish."""
    reduction: float = Field(default=2.0, gt=1)
    """`asha` continues one in this many trials, at `grace_rounds` and at each further multiple by this factor."""
    max_failures: int = Field(default=3, ge=0)
    """How often a crashed trial resumes from its last finished round; after that it counts as failed, with a reason."""
    space: SearchSpace = Field(default_factory=SearchSpace)
    """The values to try."""

"""What `raysift search` looks for, and at what cost. Light: reading it imports neither torch nor ray.

The space is lists of values, so that what was searched can be read, repeated and put into a table.
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
"""Where each searched setting lies among those of a run."""


class SearchSpace(Settings):
    """The values of each setting, in rising order; an empty list leaves a setting as the run has it."""

    classes: tuple[int, ...] = (1, 2, 4)
    """Of `raise.policy.classes`."""
    hidden: tuple[tuple[int, ...], ...] = ((32, 32), (64, 64), (128, 128))
    """Of `raise.policy.hidden`: widths of the layers."""
    temperature: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Of `raise.policy.temperature`; left out where nothing is drawn."""
    actor_rate: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
    """Of `raise.learning.actor_rate`."""
    critic_rate: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    """Of `raise.learning.critic_rate`; left out where `raise.learning.advantage` needs no critic."""
    entropy: tuple[float, ...] = (0.0, 0.003, 0.01, 0.03)
    """Of `raise.learning.entropy`."""
    clip: tuple[float, ...] = (0.1, 0.2, 0.4)
    """Of `raise.learning.clip`."""
    passes: tuple[int, ...] = (2, 4, 8)
    """Of `raise.learning.passes`."""
    batch_size: tuple[int, ...] = ()
    """Of `train.batch_size`. Unless `raise.episode.steps` is set, larger batches mean fewer steps over as many rows."""


class SearchSettings(Settings):
    """How policies are searched for. The first trial is always the run as it is."""

    trials: int = Field(default=8, ge=1)
    """Most sets of settings tried, the run's own included; fewer where the space has fewer."""
    rounds: int = Field(default=6, ge=1)
    """Rounds of a whole trial, in place of `raise.learning.rounds`."""
    steps_share: float = Field(default=1.0, gt=0, le=1)
    """Share of a training's steps that a trial makes."""
    last_rounds: int = Field(default=2, ge=1)
    """A trial counts by the mean performance that its last so many rounds ended with; one round alone is noisy."""
    sampler: Literal["random", "grid"] = "random"
    """Different points of the space, drawn by the seed; or all of it, which must fit into `trials`."""
    scheduler: Literal["asha", "none"] = "asha"
    """`asha` stops what falls behind, but never the run's own settings; `none` lets all finish. What `asha` decides depends on
    which trial is how far when."""
    grace_rounds: int = Field(default=2, ge=1)
    """Rounds before which `asha` stops nothing."""
    reduction: float = Field(default=2.0, gt=1)
    """`asha` lets one in so many go on, at `grace_rounds` and at each multiple by this number."""
    max_failures: int = Field(default=3, ge=0)
    """Times a trial that died goes on from its last finished round; then it counts as failed, with its reason."""
    space: SearchSpace = Field(default_factory=SearchSpace)
    """What is searched."""

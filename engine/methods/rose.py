"""ROSE (arXiv 2412.00631): rows whose training step lowers a pairwise preference loss (DPO) on a few pairs per subtask.

All of LESS, but the target is the gradient of the preference loss of the warmed-up model against its base. With pairs normalised
one by one (`mean_of_units`, the official code) beta and the reference cancel; they matter in `preset: paper`. Departures of
the official code that are kept as its preset: an end token between prompt and answer, and training in batches of 4.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from raysift.gradients.settings import PreferenceSettings
from raysift.methods.gradient import GradientConfig, GradientSelector
from raysift.methods.less import PAPER


class RoseConfig(GradientConfig):
    """Settings of ROSE."""

    preference: PreferenceSettings = Field(default_factory=PreferenceSettings)
    end_prompt: bool = False
    """Put an end-of-sequence token between prompt and answer, as the official code does with its plain-text prompts. With a chat
    template the turn has an end of its own."""


class Rose(GradientSelector):
    """Targets are preference pairs."""

    name = "rose"
    summary = "Rows whose gradient lowers a preference loss on a few pairs (ROSE)."
    Config = RoseConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "official": {"end_prompt": True, "train": {"recipe": "rose-official"}},
        "paper": PAPER,
    }
    config: RoseConfig

"""LESS (Xia et al. 2024, arXiv 2402.04333): rows whose training step lowers the cross-entropy of a few target examples.

The official code departs from the paper, and is the default here: epsilon stands inside the root of Adam's step without bias
correction, and a subtask's target is the mean of its examples' unit gradients. `preset: paper` takes the other of each. Both
presets train by the recipe that paper and code share.
"""

from __future__ import annotations

from typing import Any, ClassVar

from raysift.methods.gradient import GradientConfig, GradientSelector

PAPER: dict[str, Any] = {
    "adam": {"form": "textbook"},
    "targets": {"aggregation": "unit_of_mean"},
    "train": {"recipe": "less"},
}


class LessConfig(GradientConfig):
    """Settings of LESS."""


class Less(GradientSelector):
    """Targets are examples with a reference answer."""

    name = "less"
    summary = "Rows whose gradient lowers the loss on a few target examples (LESS)."
    Config = LessConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "official": {"train": {"recipe": "less"}},
        "paper": PAPER,
    }
    config: LessConfig

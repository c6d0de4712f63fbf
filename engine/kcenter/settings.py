"""Settings of k-center that decide which rows cover the pool. Light: reading them imports neither torch nor ray."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raysift.settings.base import Settings


class CoverageSettings(Settings):
    """How far apart two rows are, and how the rows are found that leave no other row far away."""

    metric: Literal["euclidean", "cosine"] = "euclidean"
    """`euclidean`: vectors as they are, as the official code of MoDS has it. `cosine`: vectors are scaled to length 1
    first, so that the length of a vector no longer counts; distances are then between 0 and 2."""
    mode: Literal["exact", "coresets"] = "exact"
    """`exact`: the greedy of the paper, whatever the number of workers. `coresets`: an approximation for pools larger
    than the memory of the cluster: greedy over the union of what greedy finds in parts of the pool."""
    coreset_parts: int = Field(default=16, ge=1)
    """For `coresets`: parts into which rows fall by a hash of their id. One part at a time is held in memory. With 1 it
    is the exact greedy."""
    coreset_factor: float = Field(default=4.0, ge=1)
    """For `coresets`: rows that all parts together send, per centre asked. At 1 the union holds little more than the
    centres themselves; at the number of parts each sends as many rows as centres are asked, which keeps the radius
    within four times the smallest possible one (two for the exact greedy), at the exact greedy's cost. Where the union holds
    fewer different rows than centres asked, the parts send more."""
    allow_fewer: bool = True
    """Where fewer different vectors than centres asked remain: give those and say so; off, this is an error."""

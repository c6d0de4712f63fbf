"""Settings of k-center that affect the result; importing them loads neither torch nor ray."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raysift.settings.base import Settings


class CoverageSettings(Settings):
    """How distance is measured, and how to find rows such that no other row is far away."""

    metric: Literal["euclidean", "cosine"] = "euclidean"
    """`euclidean`: vectors as they are, as in the official code of MoDS. `cosine`: vectors are scaled to length 1
    first, so that their length does not count; distances are then between 0 and 2."""
    mode: Literal["exact", "coresets"] = "exact"
    """`exact`: the greedy of the paper, whatever the number of workers. `coresets`: an approximation for pools larger
    than the cluster's memory: greedy over the union of the rows that greedy finds in parts of the pool."""
    coreset_parts: int = Field(default=16, ge=1)
    """For `coresets`: number of parts; a hash of its id assigns a row. One part at a time is in memory. 1 is the exact
    greedy."""
    coreset_factor: float = Field(default=4.0, ge=1)
    """For `coresets`: rows in the union of all parts per centre asked. At 1 it holds little more than the centres. At
    the number of parts, each part sends as many rows as centres are asked: the radius is then within four times the
    smallest possible one (two for the exact greedy), at the exact greedy's cost. If the union has fewer distinct rows
    than centres asked, the parts send more."""
    allow_fewer: bool = True
    """With fewer distinct vectors than centres asked: select those and report it. Off: this is an error."""

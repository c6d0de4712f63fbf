"""How far cosines of projected vectors stray from the true ones, by theory, for a report before the run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from raysift.settings.gradients import ProjectionSettings


@dataclass(frozen=True)
class Distortion:
    """The error of cosines when `parameters` numbers become `dimension` numbers or signs."""

    dimension: int
    parameters: int
    signs: bool = False

    def cosine_sd(self, cosine: float = 0.0) -> float:
        """Standard deviation of the projected cosine around the true one; largest for vectors at right angles."""
        square = cosine**2
        # Signs: of sqrt(pi / 2) mean(sign(x) v) / rms(v), to first order in 1 / d, for normal x, v so correlated.
        variance = math.pi / 2 - 2.5 * square + square**2 if self.signs else (1 - square) ** 2
        return math.sqrt(variance / self.dimension)

    def __str__(self) -> str:
        sd, what = self.cosine_sd(), "signs" if self.signs else "numbers"
        return (
            f"{self.parameters:,} numbers into {self.dimension:,} {what}: a cosine is off by {sd:.4f} (one standard "
            f"deviation), by less than {2 * sd:.4f} for 95 rows in 100; a cosine of 0.5 by {self.cosine_sd(0.5):.4f}"
        )


def estimate_distortion(settings: ProjectionSettings, parameters: int) -> Distortion | None:
    """The expected error of the chosen kind and dimension; None if nothing is projected."""
    if settings.kind == "none":
        return None
    return Distortion(settings.dimension, parameters, settings.kind == "signs")

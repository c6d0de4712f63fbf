"""How far the members of a run's target agree: computed with their gradients, told before the pass over the pool, and required."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from raysift.actors.checkpointed import Checkpoint
from raysift.errors import DataError
from raysift.gradients.agreement import agreement, as_values
from raysift.gradients.influence import checkpoint_weights
from raysift.jobs.runs.run import Run
from raysift.manifest import Manifest
from raysift.methods.gradient import GradientSelector
from raysift.reasons.agreement import AGREEMENT, points_away, tell_agreement, tell_refusal

if TYPE_CHECKING:
    from raysift.gradients.preference import Targets


def agreement_of(
    found: Sequence[Targets],
    points: Sequence[Checkpoint],
    keys: Sequence[int],
    places: Sequence[tuple[str, int | str]],
    selector: GradientSelector,
    left_out: int = 0,
) -> dict[str, Any]:
    """The value `agreement` of a manifest, from a target's gradients at each checkpoint; `keys` and `places` are its members'."""
    shares = checkpoint_weights([point.learning_rate for point in points]).tolist()
    names, aggregation = [point.name for point in points], selector.config.targets.aggregation
    told = agreement(found, names, shares, keys, aggregation, selector.turns_with_sides)
    first: dict[int, tuple[str, int | str]] = {}
    for key, place in sorted(zip(keys, places, strict=True), key=lambda one: (one[1][0], str(one[1][1]))):
        first.setdefault(key, place)
    return as_values(told, first, left_out)


def require_agreement(run: Run, selector: GradientSelector, target: Manifest) -> None:
    """Say how far the target's members agree, also where the stage was done before; raise if it is less than was asked."""
    found, least = target.values[AGREEMENT], selector.config.targets.least_agreement
    if least is not None and (found["halves"] is None or found["halves"] < least):
        error = DataError(tell_refusal(found, least, f"{selector.name}.targets.least_agreement"))
        run.record("failed", target.stage, error=str(error))
        raise error
    say = run.console.warn if found["level"] == "noise" or points_away(found) else run.console.note
    say(f"{target.stage}: {tell_agreement(found)}")

"""The quantile check of a score: its settings, and the figures of its models summed up.

Every model is measured twice: as it answers after its training, and once more after a few steps on a few examples of the
target's kind, the same for all. The loss on fixed answers mixes format and skill; the second measurement has little of the
format left in it. What a model gains between the two tells how far its rows were from the target's format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from raysift.errors import DataError
from raysift.evaluation.intervals import mean_interval
from raysift.evaluation.quantiles import FEWEST_BINS, Order, order_of
from raysift.settings.base import Settings

PLAIN, TAUGHT = "as it answers", "format taught"
STATES = (PLAIN, TAUGHT)
LOSSES, SCORES = "losses", "scores"
LOSS, METRIC = "loss", "metric"

Figures = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Of a model: by state, `losses` (mean loss and tokens) and `scores` of each held-out example."""


class CheckSettings(Settings):
    """What `raysift check` trains and measures."""

    quantiles: int = Field(10, ge=FEWEST_BINS, le=1000)
    """Bins of equal size into which the scored rows are cut by rank; only more of them narrow the intervals."""
    rows: int | None = Field(None, ge=1)
    """Rows of each bin that a model is trained on. Default: as many as the run chose, or the whole bin where it has fewer."""
    seeds: int = Field(3, ge=1, le=1000)
    """Models of each bin. A seed decides the rows drawn from the bin and the training."""
    held_out: list[str] = Field(default_factory=list)
    """Files of examples or pairs to measure on, none of which the target may hold. Default: the run's `test`."""
    taught: int = Field(8, ge=0)
    """Examples that teach every model the target's format before it is measured again; 0 measures once. They come from the
    target, or from the held-out files where there is none, and are then not measured on."""
    taught_steps: int = Field(8, ge=1)
    """Optimizer steps on them, all of them in each step, under the run's recipe."""

    @field_validator("held_out", mode="before")
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:
        return [given] if isinstance(given, str) else given


def summarise(base: Figures, cells: Mapping[tuple[int, int], Figures], confidence: float = 0.95) -> dict[str, Any]:
    """Tables, means and orders as plain JSON types; `cells` are the models' figures by (bin, seed), `base` the untrained one's.

    An example counts if every model was measured on it.
    """
    everyone = [base, *cells.values()]
    states = [state for state in STATES if state in base]
    asked = {
        kind: sorted(set.intersection(*(set(one[state][kind]) for one in everyone for state in states)))
        for kind in (LOSSES, SCORES)
    }
    if not asked[LOSSES]:
        raise DataError(
            "check: no held-out example could be measured in every model: none has an answer, or all are too long. See the "
            "cells below the check's folder."
        )
    measures: dict[str, Callable[[Figures, str], float]] = {LOSS: lambda one, at: _loss(one[at], asked[LOSSES])}
    if asked[SCORES]:
        measures[METRIC] = lambda one, at: float(np.mean([one[at][SCORES][name] for name in asked[SCORES]]))
    bins, seeds = sorted({b for b, _ in cells}), sorted({s for _, s in cells})
    tables = {
        state: {
            name: np.array([[of(cells[b, s], state) for b in bins] for s in seeds]) for name, of in measures.items()
        }
        for state in states
    }
    found: dict[str, Any] = {
        "seeds": len(seeds),
        "confidence": confidence,
        "measured": {LOSS: len(asked[LOSSES]), METRIC: len(asked[SCORES])},
        "states": {
            state: {
                name: {
                    "base": of(base, state),
                    "bins": [_line(tables[state][name][:, place], confidence) for place in range(len(bins))],
                    "seeds": tables[state][name].tolist(),
                    "order": as_plain(order_of(tables[state][name], name == METRIC, confidence)),
                }
                for name, of in measures.items()
            }
            for state in states
        },
    }
    if TAUGHT in states:
        gained = tables[PLAIN][LOSS] - tables[TAUGHT][LOSS]
        found["format"] = {
            "gained": [_line(gained[:, place], confidence) for place in range(len(bins))],
            "order": as_plain(order_of(gained, False, confidence)),
        }
    return found


def as_plain(order: Order | None) -> dict[str, Any] | None:
    """The order as JSON types."""
    return None if order is None else dict(order._asdict()) | {"kind": order.kind}


def _loss(figures: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> float:
    """Mean over the tokens of all answers."""
    losses, tokens = np.array([figures[LOSSES][name] for name in names], np.float64).T
    return float((losses * tokens).sum() / tokens.sum())


def _line(results: NDArray[np.float64], confidence: float) -> dict[str, float | None]:
    return dict(mean_interval(results, confidence)._asdict())

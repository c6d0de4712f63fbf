"""Adam's moments by parameter name, in safetensors: `exp_avg.NAME`, `exp_avg_sq.NAME`, the rest in the metadata.

LESS and ROSE precondition a row's gradient with them, and a training resumes from them. Optimizers key moments by
number, which means nothing once a layer is added or frozen, so these files use names. The names are in the model's
registration order of its trainable parameters, the same order in which gradients are laid out in one vector.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from raysift.errors import DataError
from raysift.storage import Location
from raysift.tensors import load_tensors, save_tensors

FORMAT = "raysift-moments-1"
FIRST, SECOND = "exp_avg.", "exp_avg_sq."


@dataclass(frozen=True)
class Moments:
    """Both moments of every trainable parameter, float32, in the parameters' registration order."""

    exp_avg: Mapping[str, np.ndarray]
    exp_avg_sq: Mapping[str, np.ndarray]
    step: int
    """Optimizer steps made so far; bias correction needs it."""
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    @property
    def names(self) -> list[str]:
        """Parameter names in registration order."""
        return list(self.exp_avg)


def save_moments(place: Location, moments: Moments) -> None:
    """Write the file atomically: complete or not at all."""
    if list(moments.exp_avg) != list(moments.exp_avg_sq):
        raise DataError(f"moments: {place}: the two moments are not of the same parameters in the same order.")
    tensors = {f"{FIRST}{name}": np.asarray(value, np.float32) for name, value in moments.exp_avg.items()}
    tensors |= {f"{SECOND}{name}": np.asarray(value, np.float32) for name, value in moments.exp_avg_sq.items()}
    metadata = {
        "format": FORMAT,
        "order": json.dumps(moments.names),
        "step": str(moments.step),
        "beta1": repr(moments.beta1),
        "beta2": repr(moments.beta2),
        "epsilon": repr(moments.epsilon),
    }
    save_tensors(place, tensors, metadata)


def load_moments(place: Location) -> Moments:
    """Read a file written by `save_moments`."""
    if not place.exists():
        raise DataError(
            f"moments: there is no {place}. A fine-tune writes one a epoch, as epoch-N/moments.safetensors."
        )
    tensors, metadata = load_tensors(place, "moments")
    if metadata.get("format") != FORMAT:
        raise DataError(
            f"moments: {place} is of format {metadata.get('format')!r}, expected {FORMAT!r}. "
            "Give the moments.safetensors of a raysift fine-tune."
        )
    names = json.loads(metadata["order"])
    missing = [name for name in names if FIRST + name not in tensors or SECOND + name not in tensors]
    if missing or len(tensors) != 2 * len(names):
        raise DataError(
            f"moments: {place} names {len(names)} parameters, holds {len(tensors)} tensors; lacks {missing}."
        )
    return Moments(
        exp_avg={name: tensors[FIRST + name] for name in names},
        exp_avg_sq={name: tensors[SECOND + name] for name in names},
        step=int(metadata["step"]),
        beta1=float(metadata["beta1"]),
        beta2=float(metadata["beta2"]),
        epsilon=float(metadata["epsilon"]),
    )

"""Adam's moments by parameter name, in safetensors: `exp_avg.NAME`, `exp_avg_sq.NAME`, the rest in the metadata.

LESS and ROSE precondition a row's gradient with them, and a training resumes from them. Optimizers key moments by
number, which means nothing once a layer is added or frozen, so these files use names. The names are in the model's
registration order of its trainable parameters, the same order in which gradients are laid out in one vector.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysift.errors import DataError
from raysift.storage import Location, open_location
from raysift.tensors import load_tensors, write_floats

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


def save_moments(place: Location | None, moments: Moments) -> None:
    """Write the file whole or not at all; of moments that are `Made`, one array is in memory at a time.

    Without a place they are only asked for, as every rank must whose moments are shares of the whole.
    """
    if list(moments.exp_avg) != list(moments.exp_avg_sq):
        raise DataError(f"moments: {place}: the two moments are not of the same parameters in the same order.")
    shapes = shapes_of(moments.exp_avg)
    parts = {f"{FIRST}{name}": (moments.exp_avg, name) for name in moments.names}
    parts |= {f"{SECOND}{name}": (moments.exp_avg_sq, name) for name in moments.names}
    metadata = {
        "format": FORMAT,
        "order": json.dumps(moments.names),
        "step": str(moments.step),
        "beta1": repr(moments.beta1),
        "beta2": repr(moments.beta2),
        "epsilon": repr(moments.epsilon),
    }

    def value_of(key: str) -> NDArray[np.float32]:
        arrays, name = parts[key]
        return arrays[name]

    write_floats(place, {key: shapes[name] for key, (_, name) in parts.items()}, value_of, metadata)


def load_moments(place: Location) -> Moments:
    """Read a file written by `save_moments` into memory."""
    _require(place)
    tensors, metadata = load_tensors(place, "moments")
    return _named(
        place, metadata, tensors.keys(), lambda prefix, names: {name: tensors[prefix + name] for name in names}
    )


@contextlib.contextmanager
def open_moments(place: Location) -> Iterator[Moments]:
    """The moments of such a file, each array read from the disk when it is asked for."""
    from safetensors import SafetensorError, safe_open

    _require(place)
    with contextlib.ExitStack() as stack:
        path = place.path
        if not place.is_local:
            path = f"{stack.enter_context(tempfile.TemporaryDirectory())}/moments.safetensors"
            open_location(path).copy_from(place)
        try:
            file = stack.enter_context(safe_open(path, "np"))
        except SafetensorError as error:
            raise DataError(f"moments: {place} is no safetensors file or is damaged: {error}.") from error
        yield _named(
            place,
            file.metadata() or {},
            file.keys(),
            lambda prefix, names: Made(
                {name: tuple(file.get_slice(prefix + name).get_shape()) for name in names},
                lambda name: file.get_tensor(prefix + name),
            ),
        )


class Made(Mapping[str, "NDArray[np.float32]"]):
    """Arrays of these shapes by name, in this order, each made anew when it is asked for."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], make: Callable[[str], NDArray[np.float32]]) -> None:
        self.shapes, self._make = shapes, make

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        if name not in self.shapes:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def shapes_of(arrays: Mapping[str, NDArray[np.float32]]) -> Mapping[str, tuple[int, ...]]:
    """The shapes of the arrays, without making any."""
    return arrays.shapes if isinstance(arrays, Made) else {name: np.shape(value) for name, value in arrays.items()}


def _require(place: Location) -> None:
    if not place.exists():
        raise DataError(
            f"moments: there is no {place}. A fine-tune writes one a epoch, as epoch-N/moments.safetensors."
        )


def _named(
    place: Location,
    metadata: Mapping[str, str],
    keys: Collection[str],
    take: Callable[[str, list[str]], Mapping[str, NDArray[np.float32]]],
) -> Moments:
    """The moments whose arrays `take` gives by prefix and names, if the file has just these."""
    if metadata.get("format") != FORMAT:
        raise DataError(
            f"moments: {place} is of format {metadata.get('format')!r}, expected {FORMAT!r}. "
            "Give the moments.safetensors of a raysift fine-tune."
        )
    names = json.loads(metadata["order"])
    known = set(keys)
    missing = [name for name in names if FIRST + name not in known or SECOND + name not in known]
    if missing or len(known) != 2 * len(names):
        raise DataError(f"moments: {place} names {len(names)} parameters, holds {len(known)} tensors; lacks {missing}.")
    return Moments(
        exp_avg=take(FIRST, names),
        exp_avg_sq=take(SECOND, names),
        step=int(metadata["step"]),
        beta1=float(metadata["beta1"]),
        beta2=float(metadata["beta2"]),
        epsilon=float(metadata["epsilon"]),
    )

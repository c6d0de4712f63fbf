"""Tensors in safetensors files whose bytes follow from their content; the library by itself writes metadata in random order.

Files of equal tensors and metadata are equal, so two results are the same if their hashes are.
"""

from __future__ import annotations

import contextlib
import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysift.errors import DataError
from raysift.storage import Location

Arrays = dict[str, NDArray[Any]]


def save_tensors(place: Location, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write arrays and their metadata, whole or not at all."""
    from safetensors.numpy import save

    # Not `ascontiguousarray`, which adds a dimension to a single number.
    content = save({name: np.asarray(value, order="C") for name, value in tensors.items()}, dict(metadata) or None)
    header, body = _split(content)
    place.write(b"".join((_packed(header), body)))


def write_floats(
    place: Location | None,
    shapes: Mapping[str, tuple[int, ...]],
    value_of: Callable[[str], NDArray[Any]],
    metadata: Mapping[str, str],
) -> None:
    """The file that `save_tensors` would write of float32 arrays, with one of them in memory at a time.

    Without a place all are only asked for: where a value is spread over processes, each of them must take part.
    """
    names, end = sorted(shapes), 0
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    for name in names:
        start, end = end, end + 4 * math.prod(shapes[name])
        header[name] = {"dtype": "F32", "shape": list(shapes[name]), "data_offsets": [start, end]}
    with contextlib.nullcontext() if place is None else place.whole() as stream:
        if stream is not None:
            stream.write(_packed(header))
        for name in names:
            value = np.asarray(value_of(name), "<f4", order="C")
            if stream is not None:
                stream.write(value.reshape(-1).view(np.uint8).data)


@contextlib.contextmanager
def writing_rows(
    place: Location, name: str, shape: tuple[int, ...], metadata: Mapping[str, str]
) -> Iterator[Callable[[NDArray[Any]], None]]:
    """Inside the block, each call writes the next row (along the last axis) of one float32 array; the same file as
    `save_tensors` of all rows.

    The array is never in memory. The file appears when the block ends, and must have all rows then.
    """
    rows, size = math.prod(shape[:-1]), 4 * math.prod(shape)
    left = rows
    header: dict[str, Any] = {name: {"dtype": "F32", "shape": list(shape), "data_offsets": [0, size]}}
    with place.whole() as stream:
        stream.write(_packed(header | ({"__metadata__": dict(metadata)} if metadata else {})))

        def write(row: NDArray[Any]) -> None:
            nonlocal left
            if row.shape != shape[-1:]:
                raise DataError(f"tensors: a row of {place} has shape {row.shape}, expected {shape[-1:]}.")
            stream.write(np.ascontiguousarray(row, "<f4").data.cast("B"))
            left -= 1

        yield write
        if left:
            raise DataError(f"tensors: {left} of {rows} rows of {place} were not written.")


def map_tensor(path: str, name: str) -> NDArray[Any]:
    """A float32 tensor of a file on this disk, read only where it is looked at; processes that map it share the memory."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        found = json.loads(file.read(length)).get(name)
    if not found or found["dtype"] != "F32":
        raise DataError(f"tensors: {path} has no float32 tensor '{name}'.")
    # Copy on write, because torch has no tensors that refuse to be written to.
    return np.memmap(path, "<f4", "c", 8 + length + found["data_offsets"][0], tuple(found["shape"]))


def load_tensors(place: Location, what: str) -> tuple[Arrays, dict[str, str]]:
    """The arrays and the metadata of a file; `what` names it in the message if it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    content = place.read_bytes()
    try:
        return load(content), _split(content)[0].get("__metadata__", {})
    except (SafetensorError, struct.error, ValueError) as error:
        raise DataError(f"{what}: {place} is no safetensors file or is damaged: {error}.") from error


def _packed(header: Mapping[str, Any]) -> bytes:
    """Length and text of a header, filled up with blanks to a multiple of eight bytes."""
    text = json.dumps(header, sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _split(content: bytes) -> tuple[dict[str, Any], memoryview]:
    """Header and body of a safetensors file: the header's length in eight bytes, then JSON, then numbers."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), memoryview(content)[8 + length :]

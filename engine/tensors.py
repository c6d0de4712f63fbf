"""Tensors in safetensors files whose bytes follow from their content; the library by itself writes metadata in random order.

Files of equal tensors and metadata are equal, so two results are the same if their hashes are.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
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
    text = json.dumps(header, sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    place.write(b"".join((struct.pack("<Q", len(text)), text, body)))


def load_tensors(place: Location, what: str) -> tuple[Arrays, dict[str, str]]:
    """The arrays and the metadata of a file; `what` names it in the message if it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    content = place.read_bytes()
    try:
        return load(content), _split(content)[0].get("__metadata__", {})
    except (SafetensorError, struct.error, ValueError) as error:
        raise DataError(f"{what}: {place} is no safetensors file or is damaged: {error}.") from error


def _split(content: bytes) -> tuple[dict[str, Any], memoryview]:
    """Header and body of a safetensors file: the header's length in eight bytes, then JSON, then numbers."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), memoryview(content)[8 + length :]

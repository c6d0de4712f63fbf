"""What identifies a result: a hash of the settings and inputs that decide it, and the fields in which two differ.

Only plain values are hashed. Anything else raises instead of guessing, because a fingerprint that changes by accident
throws work away, and one that fails to change serves an old result as a new one.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

from pydantic import BaseModel

from raysift.errors import ConfigError
from raysift.storage import Location

WHOLE_FILE_BYTES = 64 * 2**20
SAMPLE_BYTES = 2**20


def canonical(value: Any, path: str = "") -> Any:
    """The value as plain JSON types with sorted keys; raises on what has no single spelling."""
    if isinstance(value, BaseModel):
        return canonical(value.model_dump(mode="json"), path)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ConfigError(f"fingerprint: '{path}' is {value}; only finite numbers can identify a result.")
        return value
    if isinstance(value, list | tuple):
        return [canonical(item, f"{path}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict):
        return {str(key): canonical(value[key], f"{path}.{key}".lstrip(".")) for key in sorted(value, key=str)}
    raise ConfigError(
        f"fingerprint: '{path}' is a {type(value).__name__}; only numbers, text, booleans, lists and mappings can "
        "identify a result. Convert it to one of them."
    )


def fingerprint(value: Any) -> str:
    """Sixteen hexadecimal digits that change when, and only when, a value inside changes."""
    text = json.dumps(canonical(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode("utf-8"), digest_size=8).hexdigest()


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """One line per field in which two canonical values differ: `section.key: 1 -> 2`."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines: list[str] = []
        for key in sorted(old.keys() | new.keys()):
            here = f"{path}.{key}".lstrip(".")
            if key not in old:
                lines.append(f"{here}: (absent) -> {new[key]!r}")
            elif key not in new:
                lines.append(f"{here}: {old[key]!r} -> (absent)")
            else:
                lines.extend(differences(old[key], new[key], here))
        return lines
    return [] if old == new else [f"{path}: {old!r} -> {new!r}"]


def file_fingerprint(location: Location) -> str:
    """Identity of a file's content, without its name or place.

    Files up to 64 MiB are hashed whole. Of larger ones the size, the modification time and three samples are hashed:
    reading terabytes twice would cost more than it protects from.
    """
    size = location.size()
    digest = hashlib.blake2b(str(size).encode(), digest_size=8)
    with location.open_input() as stream:
        if size <= WHOLE_FILE_BYTES:
            digest.update(stream.read())
        else:
            for offset in (0, size // 2, size - SAMPLE_BYTES):
                stream.seek(offset)
                digest.update(stream.read(SAMPLE_BYTES))
            digest.update(str(location.fs.get_file_info(location.path).mtime_ns).encode())
    return digest.hexdigest()

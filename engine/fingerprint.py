"""What identifies a result: a hash of the settings and of the content of the inputs that decide it, and nothing else.

Clocks, paths, spellings and stray files do not enter it. Only plain values are hashed; anything else raises instead of
guessing. A fingerprint that changes by accident throws work away; one that fails to change passes off an old result as new.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel

from raysift.errors import ConfigError
from raysift.storage import Location, open_location

BLOCK_BYTES = 8 * 2**20
CACHED_BYTES = 64 * 2**20  # hashing a smaller file is faster than finding its entry
SETTLED_NS = 10 * 10**9

Part = Literal["all", "tokenizer", "weights"]

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack")
_ADAPTER_NOTES = ("base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping")


def canonical(value: Any, path: str = "") -> Any:
    """The value as plain JSON types with sorted keys; raises on values without a unique spelling."""
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
    """Hash of a file's content; independent of its name, place and age.

    Hashes of large local files are kept in the user's cache, so that models are not read again and again.
    """
    entry = _cache_entry(location)
    if entry and (known := _known_hash(*entry)):
        return known
    digest = hashlib.blake2b(digest_size=8)
    with location.open_input() as stream:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
    found = digest.hexdigest()
    if entry and entry == _cache_entry(location):  # else it changed while it was read
        with contextlib.suppress(OSError):  # an unwritable home costs only time
            open_location(entry[0]).write(json.dumps({"file": entry[1], "hash": found}))
    return found


def folder_fingerprint(folder: Location, part: Part = "all") -> str:
    """Hash of a model folder's files, each under the name by which loading finds it.

    Hidden files (a download's notes) and `.md` descriptions are left out. `tokenizer` is everything but the weights.
    """
    found = {}
    for file in folder.files(recursive=True):
        name = file.path[len(folder.path.rstrip("/")) + 1 :]
        if is_of_model(name) and part in ("all", "weights" if is_weights(name) else "tokenizer"):
            found[name] = file_fingerprint(file)
    return fingerprint(found)


def adapter_fingerprint(folder: Location, known: Mapping[str, str] | None = None) -> str:
    """Hash of a PEFT adapter's weights and of the settings they are used with; `known` are hashes of files, by name.

    PEFT's notes on the base model's place, its own version and how the adapter was loaded are left out.
    """
    settings = json.loads((folder / "adapter_config.json").read_text())
    decides = {name: _sorted_names(value) for name, value in settings.items() if name not in _ADAPTER_NOTES}
    files = [file for file in folder.files() if file.name.startswith("adapter_model.")]
    weights = {file.name: (known or {}).get(file.name) or file_fingerprint(file) for file in files}
    return fingerprint({"weights": weights, "settings": decides})


def is_of_model(name: str) -> bool:
    """Whether a file below a model's folder belongs to the model: not hidden, and no description."""
    hidden = any(step.startswith((".", "__pycache__")) for step in name.split("/"))
    return not hidden and not name.endswith(".md")


def is_weights(name: str) -> bool:
    """Whether a file holds weights, by its name."""
    return name.endswith(_WEIGHTS)


def _sorted_names(value: Any) -> Any:
    """A list of names sorted, because PEFT keeps them in sets and writes them in any order; other values as they are."""
    return sorted(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else value


def _cache_entry(location: Location) -> tuple[str, list[Any]] | None:
    """Where the hash of a large local file is kept, and the state that identifies the file as it is now.

    Nobody can set the inode's change time, so a file whose content was replaced never passes for the old one. A file
    that changed a moment ago is not remembered: the next write may get the same time.
    """
    if not location.is_local:
        return None
    info = os.stat(location.path)
    if info.st_size < CACHED_BYTES or time.time_ns() - info.st_ctime_ns < SETTLED_NS:
        return None
    state = [location.path, info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino, info.st_dev]
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return f"{home}/raysift/hashes/{fingerprint(state)}.json", state


def _known_hash(place: str, state: list[Any]) -> str | None:
    """The hash in a cache entry, if the entry is of exactly this file; None for anything else in its place."""
    try:
        with open(place, encoding="utf-8") as stream:
            entry = json.load(stream)
        return str(entry["hash"]) if entry["file"] == state else None
    except (OSError, ValueError, TypeError, KeyError):
        return None

"""A pool's trainable rows as tokens in files that the processes of a machine map into memory once, however large they are.

    8 bytes MAGIC | rows, tokens, longest int64 | ids int64[rows], rising | starts int64[rows + 1] | labels int32[rows]
    | tokens int32[tokens]

A token that counts for the loss is stored as its complement, below zero. Files follow each other by rising id. A file's name
holds the hash of its content; from an object store, each machine fetches it once under that name.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raysift.actors.encoded_rows import COUNTED, INPUT_IDS, EncodedRows, by_id
from raysift.errors import StageError
from raysift.records import ID
from raysift.storage import COPIED_BYTES, Location
from raysift.topk import Ids

MAGIC = b"raysift1"
SUFFIX = ".tokens"
HEAD_BYTES = 32


@dataclass(frozen=True)
class TokenFiles:
    """The files, in order of their rows' ids; picklable, and as small as their names."""

    parts: tuple[Location, ...]

    def ids(self) -> Ids:
        """The ids of all rows, in rising order; reads nothing else."""
        found = [np.empty(0, np.int64)]
        for part in self.parts:
            with part.open_input() as stream:
                rows = _head(part, stream.read(HEAD_BYTES))[0]
                found.append(np.frombuffer(stream.read(8 * rows), np.int64))
        return np.concatenate(found)

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        found = [0]
        for part in self.parts:
            with part.open_input() as stream:
                found.append(_head(part, stream.read(HEAD_BYTES))[2])
        return max(found)

    def open(self) -> EncodedRows:
        """The rows, mapped into memory."""
        return MappedRows(self.parts)


def write_part(folder: Location, number: int, rows: pa.Table) -> Location:
    """Write trainable rows, sorted by id, as the file with this number; the same rows give the same file."""
    rows = by_id(rows)
    lists, marks = (rows[name].combine_chunks() for name in (INPUT_IDS, COUNTED))
    tokens = lists.flatten().to_numpy().astype(np.int32)
    counted = marks.flatten().to_numpy(zero_copy_only=False)
    lengths = lists.value_lengths().to_numpy()
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    labels = np.add.reduceat(counted, starts[:-1], dtype=np.int32) if len(rows) else np.empty(0, np.int32)
    head = np.array([len(rows), len(tokens), lengths.max(initial=0)], np.int64)
    parts = [MAGIC, head, rows[ID].to_numpy(), starts, labels, np.where(counted, ~tokens, tokens)]
    content = b"".join(part if isinstance(part, bytes) else part.tobytes() for part in parts)
    place = folder / f"{number:05d}-{blake2b(content, digest_size=16).hexdigest()}{SUFFIX}"
    place.write(content)
    return place


class MappedRows(EncodedRows):
    """Rows of token files; in memory are id, length and label count of each, 20 bytes, and what the system keeps of the map."""

    def __init__(self, parts: Sequence[Location]) -> None:
        maps = [_map(place) for place in parts]
        self.ids = np.concatenate([ids for ids, *_ in maps])
        self.lengths = np.concatenate([np.diff(starts).astype(np.int32) for _, starts, *_ in maps])
        self.labels_per_row = np.concatenate([labels for *_, labels, _ in maps])
        self._first = np.cumsum([0, *(len(ids) for ids, *_ in maps)])
        self._maps = [(starts, tokens) for _, starts, _, tokens in maps]

    def _row(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        part = int(np.searchsorted(self._first, position, side="right")) - 1
        starts, tokens = self._maps[part]
        own = position - self._first[part]
        stored = np.asarray(tokens[starts[own] : starts[own + 1]])
        counted = stored < 0
        return np.where(counted, ~stored, stored), counted


def _map(place: Location) -> tuple[Any, ...]:
    """Ids, starts, label counts and tokens of a file."""
    path = place.path if place.is_local else _fetched(place)
    with open(path, "rb") as file:
        rows, tokens, _ = _head(place, file.read(HEAD_BYTES))
    sizes, found, start = (("<i8", rows), ("<i8", rows + 1), ("<i4", rows), ("<i4", tokens)), [], HEAD_BYTES
    for kind, count in sizes:
        # numpy cannot map nothing
        found.append(np.memmap(path, kind, "r", start, (count,)) if count else np.empty(0, kind))
        start += count * np.dtype(kind).itemsize
    return tuple(found)


def _head(place: Location, head: bytes) -> tuple[int, int, int]:
    if len(head) < HEAD_BYTES or head[:8] != MAGIC:
        raise StageError(
            f"encode: {place} is no token file of this version. Delete the stage's folder and run it again."
        )
    rows, tokens, longest = np.frombuffer(head, np.int64, 3, 8).tolist()
    return rows, tokens, longest


def cache_folder() -> Path:
    """Where this machine keeps fetched token files."""
    return Path(tempfile.gettempdir(), f"raysift-tokens-{os.getuid()}")


def _fetched(place: Location) -> str:
    """The file's copy on this machine, fetched by the first process that asks."""
    folder = cache_folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    copy = folder / place.name
    with _locked(folder / f"{place.name}.lock"):
        if not copy.exists():
            partial, content = folder / f"{place.name}.part", blake2b(digest_size=16)
            with place.open_input() as source, partial.open("wb") as target:
                while block := source.read(COPIED_BYTES):
                    content.update(block)
                    target.write(block)
            if content.hexdigest() not in place.name:
                partial.unlink()
                raise StageError(
                    f"encode: what was read of {place} is not what was written there. Run it again; if it fails again, delete "
                    "the stage's folder."
                )
            partial.rename(copy)
    return str(copy)


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    """One process of this machine at a time; the system frees the lock of a process that dies."""
    with place.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def forget_copies(names: Sequence[str]) -> None:
    """Delete this machine's copies of these files; processes that have mapped them keep them until they end."""
    for name in names:
        for place in cache_folder().glob(f"{name}*"):
            place.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        cache_folder().rmdir()

"""Models on an object store (`s3://`, `gs://`, ...): each machine copies one to its disk once, for all of its processes.

A model is identified by the names of its files and the content of each, as the store tells it (ETag); where a store tells
nothing, the files are read. `URI#IDENTITY` names one content of a place that may be written again. The copies lie in
RAYSIFT_CACHE, or in `raysift` in the user's cache, below `models`, and may be deleted while no run uses them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.fs as pafs

from raysift.actors.smol import cache_folder
from raysift.errors import ModelError, system_words
from raysift.fingerprint import Part, file_fingerprint, fingerprint, is_of_model, is_weights
from raysift.storage import Location, in_parallel, open_location

PIECE_BYTES, PIECES = 32 * 2**20, 8
LOOK_S, WAIT_S = 0.2, 4 * 3600.0


class Stored(NamedTuple):
    """What a store holds of a model."""

    name: str
    place: Location
    sizes: dict[str, int]
    contents: dict[str, str]

    def identity(self, part: Part = "all") -> str:
        """Hash of the files of this part."""
        return fingerprint({name: content for name, content in self.contents.items() if _is_of(name, part)})


def is_remote(model: str) -> bool:
    """Whether the name is that of a model on a store."""
    return "://" in model


def unpinned(model: str) -> str:
    """The place alone."""
    return model.partition("#")[0] if is_remote(model) else model


def look_at(model: str) -> Stored:
    """The model's files as they are now; raises if there are none."""
    name = unpinned(model)
    try:
        place = open_location(name)
        start = len(place.path.rstrip("/")) + 1
        infos = place.fs.get_file_info(pafs.FileSelector(place.path, allow_not_found=True, recursive=True))
        files = {i.path[start:]: i.size for i in infos if i.type == pafs.FileType.File and is_of_model(i.path[start:])}
        names = sorted(files)
        contents = dict(zip(names, in_parallel(lambda file: _content(place / file), names), strict=True))
    except OSError as error:
        raise ModelError(f"model: '{name}' cannot be read: {system_words(error)}") from None
    if not files:
        raise ModelError(f"model: there are no files below '{name}'. Check the name, and the credentials.")
    return Stored(name, place, {file: files[file] for file in names}, contents)


def pin(stored: Stored) -> str:
    """The name under which every process finds this very content."""
    return f"{stored.name}#{stored.identity()}"


def fetched(model: str, part: Part = "all") -> str:
    """The folder on this machine that holds the model, or all but its weights (`tokenizer`), copied if need be."""
    name, _, pinned = model.partition("#")
    if pinned and (there := _find(pinned, part)):
        return str(there)
    stored = look_at(name)
    if pinned and stored.identity() != pinned:
        raise ModelError(
            f"model: the files below '{name}' have changed since the run began. Put them back, or begin a new run."
        )
    return str(_find(stored.identity(), part) or _fetch(stored, part))


def _find(identity: str, part: Part) -> Path | None:
    return next((folder for folder in _folders(identity, part) if folder.is_dir()), None)


def _folders(identity: str, part: Part) -> list[Path]:
    """Where the part may be: in the whole model, or in a folder of its own."""
    whole = cache_folder() / "models" / identity
    return [whole] if part == "all" else [whole, whole.with_name(f"{identity}-{part}")]


def _fetch(stored: Stored, part: Part) -> Path:
    """Copy the model's files beside their place and rename the folder, so that it is complete or not there."""
    folder = _folders(stored.identity(), part)[-1]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder.with_name(f"{folder.name}.lock"), stored.name):
        if folder.is_dir():
            return folder
        partial = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(partial, ignore_errors=True)  # of a process that died
        sizes = {name: size for name, size in stored.sizes.items() if _is_of(name, part)}
        free = shutil.disk_usage(folder.parent).free
        if sum(sizes.values()) > free:
            raise ModelError(
                f"model: '{stored.name}' has {sum(sizes.values()) / 2**30:.1f} GiB, and {folder.parent} has room for "
                f"{free / 2**30:.1f} GiB. Make room, or name another disk (RAYSIFT_CACHE)."
            )
        try:
            _copy(stored.place, sizes, partial)
            if look_at(stored.name).identity() != stored.identity():
                raise ModelError(f"model: '{stored.name}' changed while it was fetched. Run the same command again.")
            partial.rename(folder)
        except OSError as error:
            raise ModelError(
                f"model: '{stored.name}' could not be fetched to {folder.parent}: {system_words(error)}"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def _copy(source: Location, sizes: dict[str, int], folder: Path) -> None:
    """Copy files, several pieces at a time, and flush them to disk."""
    with contextlib.ExitStack() as stack:
        pieces: list[tuple[Location, Any, int, int, int]] = []
        for name, size in sizes.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            target = os.open(folder / name, os.O_WRONLY | os.O_CREAT, 0o644)
            stack.callback(os.close, target)
            content = stack.enter_context((source / name).open_input()) if size else None
            starts = range(0, size, PIECE_BYTES)
            pieces += [(source / name, content, target, start, min(PIECE_BYTES, size - start)) for start in starts]
        targets = {piece[2] for piece in pieces}
        for _ in in_parallel(_copy_piece, pieces, PIECES):
            pass
        for target in targets:
            os.fsync(target)


def _copy_piece(piece: tuple[Location, Any, int, int, int]) -> None:
    place, content, target, start, size = piece
    with place.named():
        found = content.read_at(size, start)
    if len(found) != size:
        raise OSError(f"{place} ended after {start + len(found)} bytes.")
    done = 0
    while done < size:
        done += os.pwrite(target, memoryview(found)[done:], start + done)


@contextlib.contextmanager
def _alone(lock: Path, name: str) -> Iterator[None]:
    """No other process of this machine is in such a block; the lock of a process that dies is free."""
    with open(lock, "w") as file:
        end = time.monotonic() + WAIT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise ModelError(
                        f"model: another process has been fetching '{name}' for {WAIT_S / 3600:g} hours ({lock}). End it."
                    ) from None
                time.sleep(LOOK_S)
        yield


def _content(file: Location) -> str:
    """The store's own mark of a file's content, else its hash."""
    return file.mark() or file_fingerprint(file)


def _is_of(name: str, part: Part) -> bool:
    return part in ("all", "weights" if is_weights(name) else "tokenizer")

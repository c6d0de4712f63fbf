"""One copy of a remote file on each machine, which all its processes share."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from pathlib import Path
from typing import IO

from raysift.storage import Location, open_location

_IN_USE: list[IO[str]] = []
"""Open files whose locks say that this process, as long as it lives, uses a copy."""


def on_this_disk(place: Location) -> str:
    """A path of the file on this machine: its own, or that of a copy, which the first process to ask makes.

    A copy that no process uses any more goes when the next one is made.
    """
    if place.is_local:
        return place.path
    folder = Path(tempfile.gettempdir()) / f"raysift-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    info = place.fs.get_file_info(place.path)
    content = f"{place.fs.type_name} {place.path} {info.size} {info.mtime_ns}"
    copy = folder / hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
    _drop_unused(folder, copy)
    used = copy.with_suffix(".used").open("a")
    fcntl.flock(used, fcntl.LOCK_SH)
    _IN_USE.append(used)
    with copy.with_suffix(".made").open("a") as made:
        fcntl.flock(made, fcntl.LOCK_EX)
        if not copy.exists():
            open_location(copy).copy_from(place)
    return str(copy)


def _drop_unused(folder: Path, wanted: Path) -> None:
    for file in folder.glob("*.used"):
        other = file.with_suffix("")
        if other == wanted or not other.exists():
            continue
        with file.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue  # in use
            other.unlink(missing_ok=True)

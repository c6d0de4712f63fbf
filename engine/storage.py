"""Files on a local disk or behind any pyarrow / fsspec URI, through one small class.

Everything a run writes goes through `Location`, so that `runs/NAME` and `s3://bucket/runs/NAME` are the same to the
rest of the code. An object store has no rename: there, a single PUT of a manifest is the commit. On a disk, it is a
write to a temporary name followed by a rename.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow.fs as pafs

from raysift.errors import ConfigError, DataError

COPIED_BYTES = 2**24

_PASSWORD = re.compile(r"(?!github:)\b([a-z][a-z0-9+.-]*)://[^\s/?#@]*:[^\s/?#@]*@([^\s/?#]*)", re.IGNORECASE)


@dataclass(frozen=True)
class Location:
    """A path on a filesystem; picklable, so that it travels to workers."""

    fs: pafs.FileSystem
    path: str

    def __truediv__(self, name: str) -> Location:
        return Location(self.fs, f"{self.path.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.path if self.is_local else f"{self.fs.type_name}:{self.path}"

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rsplit("/", 1)[-1]

    @property
    def parent(self) -> Location:
        return Location(self.fs, self.path.rstrip("/").rpartition("/")[0])

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, pafs.LocalFileSystem)

    def exists(self) -> bool:
        return bool(self.fs.get_file_info(self.path).type != pafs.FileType.NotFound)

    def is_folder(self) -> bool:
        return bool(self.fs.get_file_info(self.path).type == pafs.FileType.Directory)

    def size(self) -> int:
        return self.fs.get_file_info(self.path).size or 0

    def files(self, suffix: str = "", recursive: bool = False) -> list[Location]:
        """Files below this folder, sorted by path, so that no result depends on the order a store lists them in."""
        infos = self.fs.get_file_info(pafs.FileSelector(self.path, allow_not_found=True, recursive=recursive))
        found = [i.path for i in infos if i.type == pafs.FileType.File and i.path.endswith(suffix)]
        return [Location(self.fs, path) for path in sorted(found)]

    def first_entry(self) -> str | None:
        """The alphabetically first name in this folder, hidden ones aside; None if there is none, or no folder."""
        found = self.fs.get_file_info(pafs.FileSelector(self.path, allow_not_found=True))
        return min((info.base_name for info in found if not info.base_name.startswith(".")), default=None)

    def make_folder(self) -> Location:
        self.fs.create_dir(self.path, recursive=True)
        return self

    def open_input(self) -> BinaryIO:
        """The file, opened for reading and seeking."""
        stream: BinaryIO = self.fs.open_input_file(self.path)
        return stream

    def open_output(self) -> BinaryIO:
        """The file, opened for writing from its start; what a crash leaves behind counts only if a manifest names it."""
        stream: BinaryIO = self.fs.open_output_stream(self.path)
        return stream

    def read_bytes(self) -> bytes:
        with self.fs.open_input_stream(self.path, compression=None) as stream:
            return bytes(stream.read())

    def read_text(self) -> str:
        return self.read_bytes().decode("utf-8")

    def write(self, content: bytes | str) -> None:
        """Write whole or not at all: a reader never sees half a file, even after a crash or on a full disk."""
        with self.whole() as stream:
            stream.write(content.encode("utf-8") if isinstance(content, str) else content)

    def copy_from(self, source: Location) -> None:
        """Copy another file here, whole or not at all, with bounded memory."""
        with source.open_input() as content, self.whole() as stream:
            shutil.copyfileobj(content, stream, COPIED_BYTES)

    def sync(self) -> None:
        """Flush a local file that was written piece by piece to disk, before a manifest names it."""
        if self.is_local:
            with open(self.path, "rb") as file:
                os.fsync(file.fileno())

    @contextlib.contextmanager
    def whole(self) -> Iterator[BinaryIO]:
        """A stream whose content becomes the file when the block ends without an error, as with `write`."""
        if not self.is_local:
            # A remote stream commits what it has when an error closes it, so it is opened only once all is at hand.
            with tempfile.SpooledTemporaryFile(COPIED_BYTES) as held:
                yield held  # type: ignore[misc]
                held.seek(0)
                with self.fs.open_output_stream(self.path) as stream:
                    shutil.copyfileobj(held, stream, COPIED_BYTES)
            return
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        temporary = f"{self.path}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        finally:
            if os.path.exists(temporary):
                os.remove(temporary)

    def delete(self) -> None:
        """Remove a file, or a folder with its content; does nothing if neither exists."""
        kind = self.fs.get_file_info(self.path).type
        if kind == pafs.FileType.Directory:
            self.fs.delete_dir(self.path)
        elif kind == pafs.FileType.File:
            self.fs.delete_file(self.path)


def extend_name(name: str, text: str) -> str:
    """A path or URI with text appended, before the query of a URI."""
    path, mark, query = name.partition("?") if "://" in name else (name, "", "")
    return f"{path.rstrip('/')}{text}{mark}{query}"


def refuse_passwords(text: str) -> None:
    """Refuses URIs such as `s3://KEY:SECRET@bucket`, because names of files and runs end up in runs, logs and tables."""
    if found := _PASSWORD.search(text):
        raise ConfigError(
            f"storage: '{found[1]}://...@{found[2]}' holds a password, and names of files and runs are written down in runs and "
            "logs. Leave it out of the name; credentials belong in the environment (AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS, ...)."
        )


def open_location(uri: str | os.PathLike[str] | Location) -> Location:
    """A local path (relative ones are made absolute), or any URI that pyarrow or an installed fsspec driver knows."""
    if isinstance(uri, Location):
        return uri
    text = os.fspath(uri)
    refuse_passwords(text)
    if "://" not in text:
        return Location(pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(text)))
    try:
        filesystem, path = pafs.FileSystem.from_uri(text)
    except (ValueError, NotImplementedError, OSError) as arrow_error:
        try:
            import fsspec

            driver, path = fsspec.core.url_to_fs(text)
        except (ImportError, ValueError) as error:
            raise DataError(
                f"storage: cannot open '{text}': {arrow_error}; fsspec: {error}. Use a local path, or a URI whose "
                "filesystem pyarrow or an installed fsspec driver knows (s3://, gs://, hdfs://, memory://)."
            ) from error
        filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(driver))
    return Location(filesystem, path)

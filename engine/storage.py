"""Files on a local disk or behind any pyarrow / fsspec URI, through one small class.

Everything a run writes goes through `Location`, so that `runs/NAME` and `s3://bucket/runs/NAME` are the same to the
rest of the code. An object store has no rename: there, a single PUT of a manifest is the commit. On a disk, it is a
write to a temporary name followed by a rename.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import tempfile
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from raysift.errors import ConfigError, DataError

Given = TypeVar("Given")
Found = TypeVar("Found")

COPIED_BYTES = 2**24
STREAMS = 32  # requests in flight: at 30 ms each 1,000 a second, less than a store allows for a folder (S3: 5,500)
MOST_COPIED_BYTES = 5 * 2**30  # by S3 itself, in one request
LISTED_FROM = 4  # files of a folder whose sizes are wanted: as many requests as a listing of a thousand, or more

S3_TIMEOUT, S3_ATTEMPTS = "RAYSIFT_S3_TIMEOUT", "AWS_MAX_ATTEMPTS"
CONNECT_S, SILENT_S, ATTEMPTS = 10.0, 30.0, 6
"""Seconds until a store that does not answer is asked again, and how often; the pauses between grow to 20 s."""

_PASSWORD = re.compile(r"(?!github:)\b([a-z][a-z0-9+.-]*)://[^\s/?#@]*:[^\s/?#@]*@([^\s/?#]*)", re.IGNORECASE)


@dataclass(frozen=True)
class Location:
    """A path on a filesystem; picklable, so that it travels to workers."""

    fs: pafs.FileSystem
    path: str

    def __reduce__(self) -> tuple[Any, ...]:
        """pyarrow's own pickle forgets how often an S3 filesystem tries."""
        if isinstance(self.fs, pafs.S3FileSystem):
            return _on_s3, (self.fs.__reduce__()[1][0], int(_number(S3_ATTEMPTS, ATTEMPTS)), self.path)
        return Location, (self.fs, self.path)

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

    def infos(self, names: Sequence[str]) -> list[pafs.FileInfo | None]:
        """What there is under each of these names in this folder, None where nothing is.

        Files that lie side by side are listed, not asked for one by one.
        """
        paths = [f"{self.path.rstrip('/')}/{name}" for name in names]
        above = Counter(path.rpartition("/")[0] for path in paths)
        crowded = {folder for folder, count in above.items() if count >= LISTED_FROM}
        selectors = [pafs.FileSelector(folder, allow_not_found=True) for folder in sorted(crowded)]
        found = {info.path: info for listed in in_parallel(self.fs.get_file_info, selectors) for info in listed}
        alone = [path for path in paths if path.rpartition("/")[0] not in crowded]
        found |= dict(zip(alone, in_parallel(self.fs.get_file_info, alone), strict=True))
        infos = [found.get(path) for path in paths]
        return [None if info is None or info.type == pafs.FileType.NotFound else info for info in infos]

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

    def open_stream(self) -> BinaryIO:
        """The file, opened for reading from start to end, COPIED_BYTES at a time however little is asked for."""
        stream: BinaryIO = self.fs.open_input_stream(self.path, compression=None, buffer_size=COPIED_BYTES)
        return stream

    def open_output(self) -> BinaryIO:
        """The file, opened for writing from its start; what a crash leaves behind counts only if a manifest names it."""
        stream: BinaryIO = self.fs.open_output_stream(self.path)
        return stream

    def read_bytes(self) -> bytes:
        with self.named(), self.fs.open_input_stream(self.path, compression=None) as stream:
            return bytes(stream.read())

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Puts this place before what a store says of a request that failed: of a body that broke off it names nothing."""
        try:
            yield
        except OSError as error:
            if "AWS Error" not in str(error) or self.path in str(error):
                raise
            raise OSError(f"{self}: {error}") from error

    def read_text(self) -> str:
        return self.read_bytes().decode("utf-8")

    def write(self, content: bytes | str) -> None:
        """Write whole or not at all: a reader never sees half a file, even after a crash or on a full disk."""
        with self.whole() as stream:
            stream.write(content.encode("utf-8") if isinstance(content, str) else content)

    def mark(self) -> str | None:
        """The store's own mark of the file's content (ETag), which is the same for the same bytes; None if it tells none."""
        with self.open_input() as stream:
            told = stream.metadata() if isinstance(stream, pa.NativeFile) else None
        found = {_text(key).lower(): _text(value) for key, value in dict(told or {}).items()}
        return found.get("etag")

    def copy_from(self, source: Location) -> None:
        """Copy another file here, whole or not at all, with bounded memory; within a store, nothing passes through here."""
        if isinstance(self.fs, pafs.S3FileSystem) and self.fs == source.fs and source.size() < MOST_COPIED_BYTES:
            self.fs.copy_file(source.path, self.path)
            return
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


def in_parallel(work: Callable[[Given], Found], given: Iterable[Given], streams: int = STREAMS) -> Iterator[Found]:
    """The result of each call, in order; at most `streams` results are held or in work at a time.

    The first error in that order is raised, and no further call is started.
    """
    ahead: deque[Future[Found]] = deque()
    with ThreadPoolExecutor(streams, "raysift-io") as pool:
        try:
            for one in given:
                ahead.append(pool.submit(work, one))
                if len(ahead) == streams:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


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
    return Location(_patient(filesystem), path)


def _patient(filesystem: pafs.FileSystem) -> pafs.FileSystem:
    """The same filesystem with bounded waits; without them a request to a store that has gone silent may wait for ever."""
    return _reopened(filesystem.__reduce__()[1][0]) if isinstance(filesystem, pafs.S3FileSystem) else filesystem


def _reopened(options: dict[str, Any]) -> pafs.S3FileSystem:
    """One filesystem for all places with these options, so that they share its connections."""
    ours = {"connect_timeout": CONNECT_S, "request_timeout": _number(S3_TIMEOUT, SILENT_S)}
    ours["allow_delayed_open"] = True  # a small file is then one request, not three
    return _s3(json.dumps(options | ours), int(_number(S3_ATTEMPTS, ATTEMPTS)), _credentials())


@functools.lru_cache(maxsize=64)
def _s3(options: str, attempts: int, _: str) -> pafs.S3FileSystem:
    return pafs.S3FileSystem(retry_strategy=pafs.AwsStandardS3RetryStrategy(attempts), **json.loads(options))


def _on_s3(options: dict[str, Any], attempts: int, path: str) -> Location:
    """The place with the waits of the process that it comes from."""
    return Location(_s3(json.dumps(options), attempts, _credentials()), path)


def _credentials() -> str:
    return json.dumps({name: value for name, value in sorted(os.environ.items()) if name.startswith("AWS_")})


def _number(variable: str, usual: float) -> float:
    given = os.environ.get(variable)
    try:
        number = float(given) if given else usual
    except ValueError:
        number = 0.0
    if number < 1:
        raise ConfigError(f"storage: {variable}={given}, expected a number of at least 1. Correct it, or unset it.")
    return number

"""From paths, globs, folders and URIs to files, and their bytes.

Pools, targets and tests are all found here. See `chunks` for how files are split into independently readable parts.
"""

from __future__ import annotations

import fnmatch
import gzip
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.ipc

from raysift.errors import DataError
from raysift.fingerprint import file_fingerprint
from raysift.storage import Location, in_parallel, open_location

BLOCK_BYTES = 4 * 2**20
HASHED_AT_ONCE = 16  # each holds a block of some MiB
MAX_RECORD_BYTES = 64 * 2**20
SUFFIXES = {
    ".jsonl": "text",
    ".ndjson": "text",
    ".json": "text",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
NOT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"}


class BadFile(DataError):
    """A file that cannot be read as a whole; the message names it, where known the line, and the reason."""

    def __init__(self, file: str, reason: str, line: int | None = None) -> None:
        super().__init__(file, reason, line)
        self.file, self.reason, self.line = file, reason, line

    def __str__(self) -> str:
        place = f"{self.file}, line {self.line}" if self.line else self.file
        return f"ingest: {place}: {self.reason}"


@dataclass(frozen=True)
class SourceFile:
    """One file of a pool; `name` is what the user calls it, `stem` the name of its source where rows do not say."""

    location: Location
    name: str
    stem: str
    size: int
    modified_ns: int
    fault: str | None = None
    """Why it cannot be read, where looking for it has already told."""

    @property
    def suffix(self) -> str:
        """The ending in lower case, without that of a compression: `.jsonl` of `A.JSONL.GZ`."""
        return _suffix(self.location.path)

    @property
    def compression(self) -> str | None:
        path = self.location.path.lower()
        return next((codec for suffix, codec in COMPRESSIONS.items() if path.endswith(suffix)), None)

    @property
    def family(self) -> str | None:
        return SUFFIXES.get(self.suffix)


@dataclass(frozen=True)
class Chunk:
    """A part of a file: bytes for text, row groups for Parquet, record batches for Arrow; end -1 is the file's end."""

    file: SourceFile
    kind: str  # jsonl, json, csv, parquet, arrow, arrow_stream
    start: int = 0
    end: int = -1


def find_files(sources: Sequence[str]) -> list[SourceFile]:
    """The data files that paths, folders, globs and URIs stand for: in the order given, sorted within each."""
    if not sources:
        raise DataError("ingest: no pool was given. Name files, folders or globs.")
    found: dict[str, SourceFile] = {}
    for source in sources:
        for file in _expand(source):
            found.setdefault(file.location.path, file)
    return list(found.values())


def fingerprint_files(files: Sequence[SourceFile], quarantine: bool = False) -> list[list[str]]:
    """Name and content hash of each file. One that cannot be read raises BadFile, or is `unreadable` under quarantine."""

    def look(file: SourceFile) -> list[str]:
        content = "unreadable"
        try:
            if file.fault:
                raise BadFile(file.name, file.fault)
            content = file_fingerprint(file.location)
        except BadFile:
            if not quarantine:
                raise
        except OSError as error:
            if not quarantine:
                raise BadFile(file.name, f"cannot be read: {one_line(error)}") from None
        return [file.location.name, content]

    return list(in_parallel(look, files, HASHED_AT_ONCE))


def changed_files(files: Sequence[SourceFile]) -> list[str]:
    """Those whose size or time differ from when they were found, each with what changed."""

    def look(file: SourceFile) -> list[str]:
        info = file.location.fs.get_file_info(file.location.path) if not file.fault else None
        if info and (info.size or 0, info.mtime_ns or 0) != (file.size, file.modified_ns):
            sizes = f"{file.size} -> {info.size} bytes" if info.size != file.size else "written again"
            return [f"{file.name} ({sizes})"]
        return []

    return [changed for found in in_parallel(look, files) for changed in found]


def open_stream(file: SourceFile) -> BinaryIO:
    """The file's bytes from the start, decompressed."""
    stream = file.location.open_input()
    if file.compression == "gzip":  # tar and tape tools pad with zeros, which Arrow's reader takes for a broken member
        return gzip.GzipFile(fileobj=stream)  # type: ignore[return-value]
    return pa.CompressedInputStream(stream, file.compression) if file.compression else stream


def read_blocks(file: SourceFile, start: int = 0, end: int = -1) -> Iterator[bytes]:
    """The bytes from start to end of an uncompressed file, or all of a compressed one, in blocks."""
    with open_stream(file) as stream:
        if start:
            stream.seek(start)
        left = end - start if end >= 0 else None
        while left is None or left > 0:
            block = stream.read(BLOCK_BYTES if left is None else min(BLOCK_BYTES, left))
            if not block:
                return
            left = None if left is None else left - len(block)
            yield block


def line_of(file: SourceFile, offset: int) -> int:
    """The line, from 1, in which a byte lies; reads the file up to there, so only for messages about errors."""
    lines = 1
    for block in read_blocks(file):
        lines += block[:offset].count(b"\n") if offset < len(block) else block.count(b"\n")
        offset -= len(block)
        if offset <= 0:
            break
    return lines


def one_line(error: BaseException) -> str:
    """What an error says, in one line of bounded length."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _expand(source: str) -> list[SourceFile]:
    try:
        place = open_location(source)
        path, query = _without_query(source)
        info = place.fs.get_file_info(place.path)
        if info.type == pafs.FileType.Directory:
            return _expand_folder(place, path)
        if info.type == pafs.FileType.File:
            if _suffix(place.path) not in SUFFIXES:
                raise DataError(
                    f"ingest: '{path}' has an unknown ending. Known: {', '.join(sorted(SUFFIXES))}, text also with "
                    f"{' or '.join(COMPRESSIONS)}."
                )
            return [_source_file(place, path, info)]
        if any(sign in path for sign in "*?["):
            return _expand_glob(path, query)
    except (OSError, ValueError) as error:  # no right to look, a NUL or thousands of characters in the name
        raise DataError(f"ingest: '{_printable(source)}' cannot be opened: {_printable(one_line(error))}") from None
    raise DataError(f"ingest: '{path}' does not exist.")


def _printable(name: str) -> str:
    shown = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in name)
    return shown if len(shown) <= 300 else f"{shown[:200]}... ({len(name)} characters)"


def _without_query(source: str) -> tuple[str, str]:
    """A URI's path and its options (`?region=...`), which are no part of a name and no wildcard."""
    found = re.search(r"\?\w+=.*$", source) if "://" in source else None
    return (source[: found.start()], found.group()) if found else (source, "")


def _expand_glob(pattern: str, query: str) -> list[SourceFile]:
    fixed = re.split(r"[*?\[]", pattern, maxsplit=1)[0].rpartition("/")[0] or ("/" if pattern.startswith("/") else ".")
    root = open_location(fixed + query)
    rest = pattern[len(fixed) + 1 :] if pattern.startswith(fixed + "/") else pattern.lstrip("/")
    wanted = re.compile(_glob_to_regex(rest))
    below = "" if fixed == "." and not pattern.startswith("./") else f"{fixed.rstrip('/')}/"
    found = _data_files(root, below, wanted, None if "**" in rest else rest.count("/"))
    if not found:
        raise DataError(f"ingest: no data file matches '{pattern}'. Endings read: {', '.join(sorted(SUFFIXES))}.")
    return found


def _glob_to_regex(pattern: str) -> str:
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    tokens = re.findall(r"\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\]|[^*?\[]+|\[", pattern)
    return "".join(
        # The library knows that [z-a] matches nothing and that a backslash stands for itself.
        parts[token] if token in parts
        else fnmatch.translate(token).removeprefix("(?s:").removesuffix(")\\Z") if token.startswith("[")
        else re.escape(token)
        for token in tokens
    )  # fmt: skip


def _expand_folder(folder: Location, name: str) -> list[SourceFile]:
    """Data files below a folder, or those that a Hugging Face `save_to_disk` folder names."""
    name = name.rstrip("/")
    if (folder / "dataset_dict.json").exists():
        splits = _described(folder, name, "dataset_dict.json", "splits")
        if "train" not in splits:
            raise DataError(f"ingest: '{name}' holds the splits {splits} and no 'train'; name one: '{name}/SPLIT'.")
        folder, name = folder / "train", f"{name}/train"
    if (folder / "state.json").exists() and (entries := _described(folder, name, "state.json", "_data_files")):
        return [_named_file(folder, name, entry) for entry in entries]
    found = _data_files(folder, f"{name}/")
    if not found:
        raise DataError(f"ingest: the folder '{name}' holds no data file. Endings read: {', '.join(sorted(SUFFIXES))}.")
    return found


def _described(folder: Location, name: str, file: str, field: str) -> list[Any]:
    """A list in one of the files in which Hugging Face's `datasets` describes a folder; empty where it has none."""
    try:
        found = json.loads((folder / file).read_text())
        listed = found.get(field) or [] if isinstance(found, dict) else None
    except (ValueError, RecursionError):
        listed = None
    if not isinstance(listed, list):
        raise BadFile(
            f"{name}/{file}", f"does not hold an object whose '{field}' is a list. Name the data files themselves."
        )
    return listed


def _named_file(folder: Location, name: str, entry: Any) -> SourceFile:
    file = entry.get("filename") if isinstance(entry, dict) else None
    # `datasets` writes plain names. Another path could lead out of the folder to any file of the machine.
    if not isinstance(file, str) or file.strip(".") == "" or "/" in file or "\\" in file or "\0" in file:
        raise BadFile(f"{name}/state.json", "names a data file by something other than its plain name.")
    place = folder / file
    info = folder.fs.get_file_info(place.path)
    if info.type != pafs.FileType.File:
        raise DataError(f"ingest: '{name}' names the file {file}, which is not there.")
    return replace(_source_file(place, f"{name}/{file}", info), stem=folder.name)


def _data_files(
    folder: Location, below: str, wanted: re.Pattern[str] | None = None, levels: int | None = None
) -> list[SourceFile]:
    """The data files of a folder in the order of their paths; `below` comes before the path in a file's name."""
    found = []
    for relative, info in sorted(_listed(folder, levels)):
        if _is_data(relative) and (wanted is None or wanted.fullmatch(relative)):
            found.append(_source_file(folder / relative, below + relative, info))
    return found


def _listed(folder: Location, levels: int | None) -> Iterator[tuple[str, pafs.FileInfo | None]]:
    """Files below a folder, down to a number of levels, by their paths in it."""
    if not folder.is_local:
        start = len(folder.path.rstrip("/")) + 1
        for info in folder.fs.get_file_info(pafs.FileSelector(folder.path, allow_not_found=True, recursive=True)):
            if info.type == pafs.FileType.File:
                yield info.path[start:], info
        return
    for path, folders, names in os.walk(folder.path, onerror=_refuse_folder, followlinks=True):
        relative = os.path.relpath(path, folder.path)
        deepest = levels is not None and (0 if relative == "." else relative.count("/") + 1) >= levels
        real, above = os.path.realpath(path), os.path.realpath(os.path.dirname(path))
        leads_back = relative != "." and f"{above}/".startswith(f"{real.rstrip('/')}/")
        folders[:] = [] if deepest or leads_back else sorted(folders)
        if leads_back:
            continue
        for name in names:
            inside = os.path.normpath(f"{relative}/{name}")
            if _suffix(name) not in SUFFIXES:
                continue
            try:
                info = folder.fs.get_file_info(f"{folder.path}/{inside}")
            except UnicodeEncodeError:
                yield inside, None
                continue
            if info.type == pafs.FileType.File:
                yield inside, info


def _refuse_folder(error: OSError) -> None:
    if isinstance(error, FileNotFoundError):
        return
    raise BadFile(str(error.filename), f"cannot be listed: {error.strerror}")


def _is_data(relative: str) -> bool:
    """Whether a file of a folder or glob is meant: known ending, not hidden, no description of other files."""
    *folders, name = relative.split("/")
    hidden = any(part.startswith((".", "_")) for part in (*folders, name))
    return _suffix(name) in SUFFIXES and not hidden and name not in NOT_DATA


def _source_file(place: Location, name: str, info: pafs.FileInfo | None) -> SourceFile:
    stem = place.name
    for ending in (*COMPRESSIONS, *SUFFIXES):
        if stem.lower().endswith(ending):
            stem = stem[: -len(ending)]
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", stem)
    if info is None:
        fault = "its name is not valid UTF-8. Rename it."
        return SourceFile(place, _printable(name), _printable(stem), 0, 0, fault)
    return SourceFile(place, name, stem, info.size or 0, info.mtime_ns or 0)


def _suffix(path: str) -> str:
    name = path.rsplit("/", 1)[-1].lower()
    ending = next((suffix for suffix in COMPRESSIONS if name.endswith(suffix)), "")
    inner = name.removesuffix(ending)
    suffix = inner[inner.rfind(".") :] if "." in inner else ""
    return suffix if not ending or SUFFIXES.get(suffix) in ("text", "csv") else ""

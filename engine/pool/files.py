"""From paths, globs, folders and URIs to the files of a pool, and their bytes.

How a file is cut into parts that are read independently says `chunks`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.ipc

from raysift.errors import DataError
from raysift.storage import Location, open_location

BLOCK_BYTES = 4 * 2**20
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

    @property
    def compression(self) -> str | None:
        return next((codec for suffix, codec in COMPRESSIONS.items() if self.location.path.endswith(suffix)), None)

    @property
    def family(self) -> str | None:
        return SUFFIXES.get(_suffix(self.location.path))


def find_files(sources: Sequence[str]) -> list[SourceFile]:
    """The data files that paths, folders, globs and URIs stand for: in the order given, sorted within each."""
    if not sources:
        raise DataError("ingest: no pool was given. Name files, folders or globs.")
    found: dict[str, SourceFile] = {}
    for source in sources:
        for file in _expand(str(source)):
            found.setdefault(file.location.path, file)
    return list(found.values())


def open_stream(file: SourceFile) -> BinaryIO:
    """The file's bytes from the start, decompressed."""
    stream = file.location.open_input()
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


def _expand(source: str) -> list[SourceFile]:
    place = open_location(source)
    source, query = _without_query(source)
    info = place.fs.get_file_info(place.path)
    if info.type == pafs.FileType.Directory:
        return _expand_folder(place, source)
    if info.type == pafs.FileType.File:
        if _suffix(place.path) not in SUFFIXES:
            raise DataError(
                f"ingest: '{source}' has an unknown ending. Known: {', '.join(sorted(SUFFIXES))}, text also with "
                f"{' or '.join(COMPRESSIONS)}."
            )
        return [_source_file(place, source, info)]
    if any(sign in source for sign in "*?["):
        return _expand_glob(source, query)
    raise DataError(f"ingest: '{source}' does not exist.")


def _without_query(source: str) -> tuple[str, str]:
    """A URI's path and its options (`?region=...`), which are no part of a name and no wildcard."""
    found = re.search(r"\?\w+=.*$", source) if "://" in source else None
    return (source[: found.start()], found.group()) if found else (source, "")


def _expand_glob(pattern: str, query: str) -> list[SourceFile]:
    fixed = re.split(r"[*?\[]", pattern, maxsplit=1)[0].rpartition("/")[0] or ("/" if pattern.startswith("/") else ".")
    root = open_location(fixed + query)
    rest = pattern[len(fixed) + 1 :] if pattern.startswith(fixed + "/") else pattern.lstrip("/")
    wanted = re.compile(_glob_to_regex(rest))
    found = []
    for info in _list(root):
        relative = info.path[len(root.path.rstrip("/")) + 1 :]
        if wanted.fullmatch(relative) and _is_data(relative):
            name = relative if fixed == "." and not pattern.startswith("./") else f"{fixed.rstrip('/')}/{relative}"
            found.append(_source_file(Location(root.fs, info.path), name, info))
    if not found:
        raise DataError(f"ingest: no data file matches '{pattern}'. Endings read: {', '.join(sorted(SUFFIXES))}.")
    return found


def _glob_to_regex(pattern: str) -> str:
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    tokens = re.findall(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]|[^*?\[]+|\[", pattern)
    return "".join(
        parts[token] if token in parts
        else token.replace("[!", "[^") if token.startswith("[") and token.endswith("]")
        else re.escape(token)
        for token in tokens
    )  # fmt: skip


def _expand_folder(folder: Location, name: str) -> list[SourceFile]:
    """Data files below a folder, or those that a Hugging Face `save_to_disk` folder names."""
    name = name.rstrip("/")
    splits = folder / "dataset_dict.json"
    if splits.exists():
        names = json.loads(splits.read_text()).get("splits", [])
        if "train" not in names:
            raise DataError(f"ingest: '{name}' holds the splits {names} and no 'train'; name one: '{name}/SPLIT'.")
        return _expand_folder(folder / "train", f"{name}/train")
    state = folder / "state.json"
    if state.exists() and (files := json.loads(state.read_text()).get("_data_files")):
        stem = folder.name
        found = []
        for entry in files:
            place = folder / entry["filename"]
            info = folder.fs.get_file_info(place.path)
            if info.type != pafs.FileType.File:
                raise DataError(f"ingest: '{name}' names the file {entry['filename']}, which is not there.")
            found.append(replace(_source_file(place, f"{name}/{entry['filename']}", info), stem=stem))
        return found
    found = []
    for info in _list(folder):
        relative = info.path[len(folder.path.rstrip("/")) + 1 :]
        if _is_data(relative):
            found.append(_source_file(Location(folder.fs, info.path), f"{name}/{relative}", info))
    if not found:
        raise DataError(f"ingest: the folder '{name}' holds no data file. Endings read: {', '.join(sorted(SUFFIXES))}.")
    return found


def _is_data(relative: str) -> bool:
    """Whether a file of a folder or glob is meant: known ending, not hidden, no description of other files."""
    *folders, name = relative.split("/")
    hidden = any(part.startswith((".", "_")) for part in (*folders, name))
    return _suffix(name) in SUFFIXES and not hidden and name not in NOT_DATA


def _list(folder: Location) -> list[pafs.FileInfo]:
    infos = folder.fs.get_file_info(pafs.FileSelector(folder.path, allow_not_found=True, recursive=True))
    return sorted((info for info in infos if info.type == pafs.FileType.File), key=lambda info: info.path)


def _source_file(place: Location, name: str, info: pafs.FileInfo) -> SourceFile:
    stem = place.name
    for ending in (*COMPRESSIONS, *SUFFIXES):
        stem = stem.removesuffix(ending)
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", stem)
    return SourceFile(place, name, stem, info.size or 0, info.mtime_ns or 0)


def _suffix(path: str) -> str:
    name = path.rsplit("/", 1)[-1].lower()
    ending = next((suffix for suffix in COMPRESSIONS if name.endswith(suffix)), "")
    inner = name.removesuffix(ending)
    suffix = inner[inner.rfind(".") :] if "." in inner else ""
    return suffix if not ending or SUFFIXES.get(suffix) in ("text", "csv") else ""

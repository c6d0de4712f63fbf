"""From paths, globs, folders and URIs to *chunks*: parts of files that can be read independently, in bounded memory.

JSON lines are cut by bytes, JSON arrays at the ends of elements, Parquet by row groups, Arrow files by record batches.
Compressed text, CSV and Arrow streams can only be read from the start and are one chunk each. What a text file holds is
decided by its first characters, not by its name: many a `.json` holds JSON lines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.ipc
import pyarrow.parquet as pq

from raysift.errors import DataError
from raysift.json_arrays import ArrayScanner
from raysift.storage import Location, open_location

BLOCK_BYTES = 4 * 2**20
SAMPLE_BYTES = 2**20
SAMPLE_RECORDS = 20
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


@dataclass(frozen=True)
class Chunk:
    """A part of a file: bytes for text, row groups for Parquet, record batches for Arrow; end -1 is the file's end."""

    file: SourceFile
    kind: str  # jsonl, json, csv, parquet, arrow, arrow_stream
    start: int = 0
    end: int = -1


@dataclass(frozen=True)
class FilePlan:
    """The chunks of a file, none if it is empty, and the columns that its first records have."""

    file: SourceFile
    chunks: tuple[Chunk, ...]
    columns: tuple[str, ...]


def find_files(sources: Sequence[str]) -> list[SourceFile]:
    """The data files that paths, folders, globs and URIs stand for: in the order given, sorted within each."""
    if not sources:
        raise DataError("ingest: no pool was given. Name files, folders or globs.")
    found: dict[str, SourceFile] = {}
    for source in sources:
        for file in _expand(str(source)):
            found.setdefault(file.location.path, file)
    return list(found.values())


def chunk_bytes_for(total_bytes: int) -> int:
    """Size of a chunk: some 32 chunks for a pool, within bounds that keep tasks worth their start and memory low.

    It follows from the pool alone: chunks, and with them shards, do not depend on the number of workers.
    """
    return min(max(total_bytes // 32, 4 * 2**20), 64 * 2**20)


def plan_file(file: SourceFile, chunk_bytes: int) -> FilePlan:
    """How to read a file; raises BadFile where not even its beginning can be read."""
    if file.size == 0:
        return FilePlan(file, (), ())
    try:
        if file.family == "parquet":
            return _plan_parquet(file, chunk_bytes)
        if file.family == "arrow":
            return _plan_arrow(file)
        if file.family == "csv":
            return _plan_csv(file)
        return _plan_text(file, chunk_bytes)
    except (pa.ArrowException, OSError, EOFError) as error:
        raise BadFile(file.name, f"cannot be read as {file.family}: {_one_line(error)}") from None


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
                f"ingest: '{_shown(source)}' has an unknown ending. Known: {', '.join(sorted(SUFFIXES))}, text also with "
                f"{' or '.join(COMPRESSIONS)}."
            )
        return [_source_file(place, source, info)]
    if any(sign in source for sign in "*?["):
        return _expand_glob(source, query)
    raise DataError(f"ingest: '{_shown(source)}' does not exist.")


def _without_query(source: str) -> tuple[str, str]:
    """A URI's path and its options (`?region=...`), which are no part of a name and no wildcard."""
    found = re.search(r"\?\w+=.*$", source) if "://" in source else None
    return (source[: found.start()], found.group()) if found else (source, "")


def _shown(source: str) -> str:
    """A URI as it may stand in logs and tables: without the keys that some carry (`s3://KEY:SECRET@bucket`)."""
    return re.sub(r"(?<=://)[^/@]*@", "", source)


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
        raise DataError(
            f"ingest: no data file matches '{_shown(pattern)}'. Endings read: {', '.join(sorted(SUFFIXES))}."
        )
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
        raise DataError(
            f"ingest: the folder '{_shown(name)}' holds no data file. Endings read: {', '.join(sorted(SUFFIXES))}."
        )
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
    return SourceFile(place, _shown(name), stem, info.size or 0, info.mtime_ns or 0)


def _suffix(path: str) -> str:
    name = path.rsplit("/", 1)[-1].lower()
    ending = next((suffix for suffix in COMPRESSIONS if name.endswith(suffix)), "")
    inner = name.removesuffix(ending)
    suffix = inner[inner.rfind(".") :] if "." in inner else ""
    return suffix if not ending or SUFFIXES.get(suffix) in ("text", "csv") else ""


def _plan_parquet(file: SourceFile, chunk_bytes: int) -> FilePlan:
    with file.location.open_input() as stream:
        metadata = pq.ParquetFile(stream)
        columns = tuple(metadata.schema_arrow.names)
        sizes = [metadata.metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
    chunks, start, held = [], 0, 0
    for group, size in enumerate(sizes):
        if held and held + size > chunk_bytes:
            chunks.append(Chunk(file, "parquet", start, group))
            start, held = group, 0
        held += size
    if sizes:
        chunks.append(Chunk(file, "parquet", start, len(sizes)))
    return FilePlan(file, tuple(chunks), columns)


def _plan_arrow(file: SourceFile) -> FilePlan:
    with file.location.open_input() as stream:
        is_file = stream.read(6) == b"ARROW1"
        stream.seek(0)
        if not is_file:
            return FilePlan(file, (Chunk(file, "arrow_stream"),), tuple(pa.ipc.open_stream(stream).schema.names))
        reader = pa.ipc.open_file(stream)
        columns, batches = tuple(reader.schema.names), reader.num_record_batches
    step = max(1, -(-batches // 32))
    chunks = tuple(Chunk(file, "arrow", i, min(i + step, batches)) for i in range(0, batches, step))
    return FilePlan(file, chunks, columns)


def _plan_csv(file: SourceFile) -> FilePlan:
    from raysift.reading import csv_header

    return FilePlan(file, (Chunk(file, "csv"),), csv_header(file))


def _plan_text(file: SourceFile, chunk_bytes: int) -> FilePlan:
    with open_stream(file) as stream:
        sample = stream.read(SAMPLE_BYTES)
    if sample[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\x00" in sample[:4]:
        raise BadFile(file.name, "is UTF-16 or UTF-32 text. Convert it to UTF-8.", 1)
    skip = 3 if sample.startswith(b"\xef\xbb\xbf") else 0
    text = sample[skip:].lstrip()
    if not text:
        return FilePlan(file, (), ())
    opens_array = text.startswith(b"[") and _parsed(text.split(b"\n", 1)[0]) is None
    if opens_array or _is_array_of_objects(text):
        return _plan_array(file, chunk_bytes, sample[skip:])
    if _holds_one_object(text, len(sample) == SAMPLE_BYTES):
        raise BadFile(
            file.name,
            "holds one object or several written over many lines; expected one record a line, or an array of records.",
            1,
        )
    lines = text.split(b"\n")[: SAMPLE_RECORDS + 1]
    records = [_parsed(line) for line in (lines[:-1] if len(lines) > 1 else lines)]
    columns = _union(records)
    if not any(isinstance(record, dict) for record in records):
        raise BadFile(file.name, f"none of its first records is a JSON object: {_why_not(lines[0])}", 1)
    if file.compression:
        return FilePlan(file, (Chunk(file, "jsonl"),), columns)
    ends = [*range(skip + chunk_bytes, file.size, chunk_bytes), file.size]
    starts = [skip, *ends[:-1]]
    return FilePlan(file, tuple(Chunk(file, "jsonl", s, e) for s, e in zip(starts, ends, strict=True)), columns)


def _is_array_of_objects(text: bytes) -> bool:
    """An array that stands whole on the first line: `[{...}, {...}]`."""
    record = _parsed(text.split(b"\n", 1)[0])
    return isinstance(record, list) and (not record or isinstance(record[0], dict))


def _holds_one_object(text: bytes, cut: bool) -> bool:
    """Whether the first line is only the beginning of an object."""
    first = text.split(b"\n", 1)[0]
    if not first.startswith(b"{") or _parsed(first) is not None:
        return False
    return first.strip() == b"{" or (not cut and _parsed(text) is not None)


def _plan_array(file: SourceFile, chunk_bytes: int, sample: bytes) -> FilePlan:
    from raysift.json_arrays import split_elements

    texts, _ = next(split_elements([sample], depth=0))
    columns = _union([_parsed(text) for text in texts[:SAMPLE_RECORDS]])
    if len(texts) == 1 and not texts[0].strip():
        return FilePlan(file, (), ())
    if file.compression:
        return FilePlan(file, (Chunk(file, "json"),), columns)
    scanner, cuts, target = ArrayScanner(), [], 0
    for block in read_blocks(file):
        commas = scanner.feed(block)
        target = max(target, (scanner.opened_at or 0) + chunk_bytes)
        while len(commas) and commas[-1] >= target:
            cuts.append(int(commas[commas.searchsorted(target)]))
            target = cuts[-1] + chunk_bytes
    closed = scanner.closed_at
    if closed is not None and b"".join(read_blocks(file, closed + 1, closed + 1 + SAMPLE_BYTES)).strip():
        raise BadFile(file.name, "text after the end of the array; expected one array.", line_of(file, closed))
    starts = [(scanner.opened_at or 0) + 1, *(cut + 1 for cut in cuts)]
    ends = [*cuts, -1 if closed is None else closed]
    return FilePlan(file, tuple(Chunk(file, "json", s, e) for s, e in zip(starts, ends, strict=True)), columns)


def _parsed(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        # Python's own writer leaves NaN and lone surrogates in files, which orjson refuses.
        return json.loads(text.decode("utf-8", "replace"))
    except ValueError:
        return None


def _why_not(text: bytes) -> str:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        return _one_line(error)
    return f"it is a {type(value).__name__}"


def _union(records: Sequence[Any]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(key for record in records if isinstance(record, dict) for key in record))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__

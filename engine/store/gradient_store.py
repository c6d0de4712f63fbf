"""The gradient store on disk: its identity, the rows it holds at each checkpoint, and its shards.

    store.json                  the identity: vectors may be compared only within one identity
    segments/HASH/index.parquet per row of one pass: id, whether it was cut, length of its input, why it failed
    segments/HASH/shards/       id and, per checkpoint, the row's unit vector (`vectors`), loss and gradient norm
    segments/HASH/segment.json  written last: without it the segment does not count

HASH covers the store's identity, the pass's row ids and its checkpoints, so a killed pass finds its own folder again.
A row's vector depends on whether the template shows its input separately (raysift.pool.given_input); its id does not.
So the index records it, a stored vector counts only for rows shown in the same way, and HASH includes inputs, if any.
Vectors lie in columns of fixed width, uncompressed and without dictionary: random numbers do not compress, and a
memory-mapped file is scored at nearly the speed of an array. A row takes checkpoints x dimension x 2 bytes, or a
sixteenth of that as signs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from raysift.errors import StaleRunError
from raysift.fingerprint import adapter_fingerprint, differences, file_fingerprint, fingerprint
from raysift.ids import look_up
from raysift.records import ERROR, ID
from raysift.settings.gradients import AdamSettings, ProjectionSettings
from raysift.storage import Location
from raysift.store.vectors import Stored, VectorForm
from raysift.topk import Ids

CODE_VERSION = 1
"""Increased when a code change alters the content of vectors."""
STORE, SEGMENT, INDEX = "store.json", "segment.json", "index.parquet"
CUT = "cut"
INPUT_CHARS = "input_chars"
INDEX_COLUMNS = pa.schema([(ID, pa.int64()), (CUT, pa.bool_()), (ERROR, pa.string()), (INPUT_CHARS, pa.int32())])

_NUMBERS = b"numbers"  # metadata key: numpy's name of the number type in a shard's cells; default half precision
_PRODUCT_ROWS = 1024  # rows that `influence.match_rows` multiplies at once; a row group is a multiple of this
_ROW_GROUP_BYTES = 32 * 2**20


class StoreIdentity(BaseModel):
    """Everything that determines a row's vector at a given checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    """Fingerprint of the base model (raysift.jobs.runs.models)."""
    layout: str
    """Hash of names, shapes and order of the adapter's tensors."""
    projection: str
    """Hash of the projection, which `projection_settings` and `layout` determine."""
    projection_settings: ProjectionSettings
    adam: AdamSettings
    template: str
    max_length: int
    dtype: str
    code_version: int = CODE_VERSION

    @property
    def hash(self) -> str:
        return fingerprint(self)


class Segment(BaseModel):
    """The record of one finished pass: some rows at some checkpoints."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    store: str
    """Hash of the identity under which it was computed."""
    checkpoints: tuple[str, ...]
    dimension: int
    rows: int
    failed: int
    shards: tuple[str, ...]


@dataclass(frozen=True)
class Share:
    """Rows (sorted ids) to compute or read together at these checkpoints."""

    checkpoints: tuple[str, ...]
    ids: Ids


class Inputs(NamedTuple):
    """Rows whose input is shown separately, sorted by id, and the number of characters of each input."""

    ids: Ids
    chars: NDArray[np.int32]

    def of(self, ids: Ids) -> NDArray[np.int32]:
        """Number of characters of each row's input; 0 for rows without one."""
        chars = look_up(ids, self.ids, pa.array(self.chars, pa.int32()))
        return np.asarray(chars.fill_null(0).to_numpy())


NO_INPUTS = Inputs(np.empty(0, np.int64), np.empty(0, np.int32))


def open_store(place: Location, identity: StoreIdentity) -> None:
    """Create the store, or check that the existing one holds vectors of this identity."""
    file = place / STORE
    if not file.exists():
        file.write(identity.model_dump_json(indent=2) + "\n")
        return
    found = json.loads(file.read_text())
    here, wanted = fingerprint(found), identity.hash
    if here != wanted:
        changed = differences(found, identity.model_dump(mode="json"))
        raise StaleRunError(
            f"store: {place} is {here}, asked for is {wanted}; their vectors cannot be compared. They differ in\n"
            + "\n".join(f"  {line}" for line in changed)
            + "\nName another folder with resources.store=..., or go back to the settings of the store."
        )


def holds_store(place: Location, identity: str) -> bool:
    """Whether a store with this identity (its hash) exists there."""
    file = place / STORE
    return file.exists() and fingerprint(json.loads(file.read_text())) == identity


def segments_of(place: Location, identity: StoreIdentity) -> list[Segment]:
    """The finished segments, sorted by name; segments of another identity are ignored."""
    files = (place / "segments").files(f"/{SEGMENT}", recursive=True)
    found = [Segment.model_validate_json(file.read_bytes()) for file in files]
    return sorted((s for s in found if s.store == identity.hash), key=lambda segment: segment.name)


def segment_name(identity: StoreIdentity, share: Share, inputs: Inputs = NO_INPUTS) -> str:
    """Name of the segment for the vectors of these rows at these checkpoints."""
    wanted: dict[str, Any] = {
        "store": identity.hash,
        "ids": _digest(share.ids.astype("<i8")),
        "checkpoints": share.checkpoints,
    }
    if (chars := inputs.of(share.ids)).any():
        wanted["inputs"] = _digest(chars.astype("<i4"))
    return fingerprint(wanted)


def _digest(numbers: NDArray[np.signedinteger]) -> str:
    return hashlib.blake2b(numbers.tobytes(), digest_size=8).hexdigest()


def checkpoint_hash(adapter: Location, moments: Location | None) -> str:
    """Identity of a checkpoint: adapter and moments, by the hashes that its training recorded, if any."""
    record = Location(adapter.fs, adapter.path.removesuffix("/adapter")) / "epoch.json"
    known = json.loads(record.read_bytes()).get("hashes", {}) if record.exists() else {}
    weights = {name.removeprefix("adapter/"): content for name, content in known.items()}
    steps = (known.get(moments.name) or file_fingerprint(moments)) if moments else None
    return fingerprint({"adapter": adapter_fingerprint(adapter, weights), "moments": steps})


def share_missing(wanted: Ids, checkpoints: Sequence[str], held: Iterable[tuple[Segment, Ids]]) -> list[Share]:
    """What remains to be computed: rows that no segment holds. Checkpoints that lack the same rows share a pass."""
    left = dict.fromkeys(checkpoints, np.sort(wanted))
    for segment, ids in held:
        for name in set(segment.checkpoints) & left.keys():
            left[name] = np.setdiff1d(left[name], ids, assume_unique=True)
    return _grouped(left)


def share_reading(
    wanted: Ids, checkpoints: Sequence[str], held: Iterable[tuple[Segment, Ids]]
) -> list[tuple[Segment, Share]]:
    """Which rows and checkpoints to read from which segment; each is read once, from the first segment that has it."""
    left = dict.fromkeys(checkpoints, np.sort(wanted))
    plan: list[tuple[Segment, Share]] = []
    for segment, ids in held:
        given = {
            name: np.intersect1d(left[name], ids, assume_unique=True)
            for name in checkpoints
            if name in segment.checkpoints
        }
        for name, own in given.items():
            left[name] = np.setdiff1d(left[name], own, assume_unique=True)
        plan += [(segment, share) for share in _grouped(given)]
    return plan


def _grouped(ids_of: Mapping[str, Ids]) -> list[Share]:
    """Puts checkpoints with equal rows into one share and drops shares without rows."""
    groups: dict[bytes, list[str]] = {}
    for name, ids in ids_of.items():
        groups.setdefault(ids.tobytes(), []).append(name)
    shares = [Share(tuple(names), ids_of[names[0]]) for names in groups.values()]
    return [share for share in shares if len(share.ids)]


def read_index(place: Location, segment: Segment) -> pa.Table:
    """INDEX_COLUMNS of every row of the segment; an index from before inputs were recorded gives input length 0."""
    file = place / "segments" / segment.name / INDEX
    found = pq.read_table(file.path, filesystem=file.fs)
    if INPUT_CHARS not in found.column_names:
        found = found.append_column(INPUT_CHARS, pa.array(np.zeros(len(found), np.int32)))
    return found


def group_rows(checkpoints: int, form: VectorForm) -> int:
    """Rows per row group: about 32 MiB, a multiple of the rows of one product."""
    return _PRODUCT_ROWS * max(1, _ROW_GROUP_BYTES // (_PRODUCT_ROWS * checkpoints * form.bytes))


def shard_schema(checkpoints: Sequence[str], form: VectorForm) -> pa.Schema:
    """Columns of a shard."""
    fields = [(ID, pa.int64())]
    for name in checkpoints:
        fields += [(f"vector_{name}", pa.binary(form.bytes)), (f"loss_{name}", pa.float32())]
        fields += [(f"norm_{name}", pa.float32())]
    return pa.schema(fields, metadata={_NUMBERS: form.dtype.str.encode()})


def shard_table(
    ids: Ids,
    vectors: Stored,
    losses: NDArray[np.float32],
    norms: NDArray[np.float32],
    checkpoints: Sequence[str],
    form: VectorForm,
) -> pa.Table:
    """A piece of a shard; `vectors` is (rows, checkpoints, items of the form), the others (rows, checkpoints)."""
    columns: list[pa.Array] = [pa.array(ids)]
    for i in range(len(checkpoints)):
        part = pa.py_buffer(np.ascontiguousarray(vectors[:, i], dtype=form.dtype).reshape(-1))
        columns.append(pa.FixedSizeBinaryArray.from_buffers(pa.binary(form.bytes), len(ids), [None, part]))
        columns += [pa.array(np.ascontiguousarray(values[:, i])) for values in (losses, norms)]
    return pa.Table.from_arrays(columns, schema=shard_schema(checkpoints, form))


def write_shard(place: Location, checkpoints: Sequence[str], form: VectorForm, tables: Iterable[pa.Table]) -> int:
    """Write one shard from any number of pieces, in row groups of equal size; returns the number of rows."""
    size, rows = group_rows(len(checkpoints), form), 0
    schema = shard_schema(checkpoints, form)
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    with pq.ParquetWriter(place.path, schema, filesystem=place.fs, **plain) as writer:
        for table in _in_groups(tables, size):
            writer.write_table(table, row_group_size=size)
            rows += len(table)
    return rows


def _in_groups(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """Regroups the rows into tables of `size` rows; the last one may be shorter."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(map(len, held)) >= size:
            joined = pa.concat_tables(held)
            for start in range(0, len(joined) - size + 1, size):
                yield joined.slice(start, size)
            held = [joined.slice(len(joined) // size * size)]
    if held and sum(map(len, held)):
        yield pa.concat_tables(held)


def read_shard(place: Location, checkpoints: Sequence[str]) -> Iterator[tuple[Ids, list[Stored]]]:
    """Ids and one array of stored vectors per checkpoint, a row group at a time, without a copy."""
    names = [f"vector_{name}" for name in checkpoints]
    source = {"memory_map": True} if place.is_local else {"filesystem": place.fs}
    with pq.ParquetFile(place.path, **source) as file:
        dtype = np.dtype((file.schema_arrow.metadata or {}).get(_NUMBERS, b"<f2").decode())
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=[ID, *names], use_threads=False).combine_chunks()
            yield table[ID].to_numpy(), [_cells(table[name], dtype) for name in names]


def _cells(column: pa.ChunkedArray, dtype: np.dtype) -> Stored:
    """A column of fixed width as a view of Arrow's memory, without a copy."""
    cells = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    view = np.frombuffer(cells.buffers()[1], dtype=dtype).reshape(-1, cells.type.byte_width // dtype.itemsize)
    return view[cells.offset : cells.offset + len(cells)]

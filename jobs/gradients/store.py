"""Fills the gradient store: plans passes over missing vectors, computes them in actors, seals them into segments.

See `raysift.store.gradient_store` for a store's files and identity, and `store_match.py` for scoring from it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysift.actors.checkpointed import Checkpoint
from raysift.actors.row_gradients import LOSSES, NORMS, VECTORS, GradientVectors
from raysift.config import CommonConfig
from raysift.errors import StageError
from raysift.fingerprint import fingerprint
from raysift.ids import is_among
from raysift.jobs.cluster.machines import for_role
from raysift.jobs.gradients.room import SIGNS, moments_of, room_needed, warmup_recipe
from raysift.jobs.gradients.stages import checkpoints_of, gradient_loading, handed_over
from raysift.jobs.runs.models import find_model
from raysift.jobs.runs.reuse import lineage
from raysift.jobs.runs.run import Run, StageResult, open_run
from raysift.jobs.runs.tables import columns_of, count_answers, read_chunks, read_ids, relative
from raysift.manifest import Manifest, settle
from raysift.methods.gradient import GradientConfig
from raysift.pool.given_input import INPUT, conversation_of, split_input
from raysift.records import ERROR, ID, MESSAGES, META
from raysift.settings.resources import Resources
from raysift.storage import Location, extend_name, open_location
from raysift.store.distortion import estimate_distortion
from raysift.store.gradient_store import (
    CUT,
    INDEX,
    INDEX_COLUMNS,
    INPUT_CHARS,
    NO_INPUTS,
    SEGMENT,
    Inputs,
    Segment,
    Share,
    StoreIdentity,
    checkpoint_hash,
    holds_store,
    open_store,
    read_index,
    segment_name,
    segments_of,
    shard_table,
    share_missing,
    share_reading,
    write_shard,
)
from raysift.store.vectors import VectorForm
from raysift.topk import Ids

SHARD_BYTES = 256 * 2**20
PIECE_ROWS = 1024


@dataclass(frozen=True)
class Store:
    """A gradient store as one run uses it, with the checkpoints that the run needs."""

    name: str
    """A name that works from any folder."""
    identity: StoreIdentity
    points: dict[str, Checkpoint]
    """By hash, in training order."""
    parameters: int
    """Length of an unprojected gradient."""

    @cached_property
    def place(self) -> Location:
        return open_location(self.name)

    @property
    def form(self) -> VectorForm:
        """What its vectors look like on disk."""
        projection = self.identity.projection_settings
        return VectorForm.of(projection, self.parameters if projection.kind == "none" else projection.dimension)

    def held(self) -> list[tuple[Segment, pa.Table]]:
        """Finished segments with their indexes."""
        return [(segment, read_index(self.place, segment)) for segment in segments_of(self.place, self.identity)]

    def folder(self, segment: str) -> Location:
        return self.place / "segments" / segment


def own_store(run: Run, config: CommonConfig) -> str:
    """Where a run's own store is: in its folder unless `resources.store` names another."""
    return config.resources.store or extend_name(run.name, "/store")


def find_store(run: Run, config: CommonConfig, identity: str) -> str:
    """The store to read and fill: the run's own, or, if none is named or filled yet, one that a reused run has filled
    with such vectors."""
    own = own_store(run, config)
    if config.resources.store or holds_store(open_location(own), identity):
        return own
    others = [open_run(name) for name in lineage(run.reuse)]
    names = (own_store(other, other.config()) for other in others if other.manifest("gradients"))
    return next((name for name in names if holds_store(open_location(name), identity)), own)


def filled_store(run: Run, stored: Manifest) -> str:
    """Where the vectors of a finished fill are: where it wrote them, or where the run that did it has its store now."""
    identity, name = fingerprint(stored.settings["store"]), stored.values.get("store")
    if name and holds_store(open_location(name), identity):
        return str(name)
    filler = open_run(stored.reused_from) if stored.reused_from else run
    return find_store(filler, filler.config(), identity)


def as_filled(run: Run, store: Store, stored: Manifest) -> Store:
    """The store that a finished fill wrote; if it has moved, the one that the run's settings name."""
    name = filled_store(run, stored)
    return replace(store, name=name) if holds_store(open_location(name), store.identity.hash) else store


def store_of(
    run: Run,
    config: CommonConfig,
    settings: GradientConfig,
    trained: Manifest,
    target: Manifest,
    name: str | None = None,
) -> Store:
    """The store that the run needs, the one called `name` if given; nothing is opened yet."""
    points = checkpoints_of(run, trained, settings.checkpoints)
    train = warmup_recipe(config, settings)
    with_moments = settings.adam.form != "none"
    identity = StoreIdentity(
        model=fingerprint(find_model(run, config).identity),
        layout=target.values["layout"],
        projection=target.values["projection"],
        projection_settings=settings.projection,
        adam=settings.adam,
        template=train.template,
        max_length=train.max_length,
        dtype=train.dtype if train.quantization == "none" else f"{train.dtype} over {train.quantization}",
    )
    named = {checkpoint_hash(p.adapter, p.moments if with_moments else None): p for p in points}
    return Store(name or find_store(run, config, identity.hash), identity, named, target.values["parameters"])


def fill(run: Run, config: CommonConfig, settings: GradientConfig, rows: Manifest, store: Store) -> Manifest:
    """Compute the vectors that the store lacks for this run's rows and checkpoints; the manifest accounts for all."""

    def body(folder: Location) -> StageResult:
        with _writing_into(store):
            open_store(store.place, store.identity)
        wanted, names = row_ids(run.files(rows, "rows")), list(store.points)
        inputs = read_inputs(run.files(rows, "rows"), store)
        missing = share_missing(wanted, names, ids_of(store.held(), inputs))
        computed = sum(len(share.ids) * len(share.checkpoints) for share in missing)
        if computed < len(wanted) * len(names):
            run.console.note(f"gradients: {len(wanted) * len(names) - computed:,} vectors are in {store.place} already")
        if missing and store.name != own_store(run, config):
            run.console.note(
                f"gradients: new vectors go to {store.name}, which is not this run's own store; name another with "
                "resources.store=..."
            )
        if missing and (distortion := estimate_distortion(settings.projection, store.parameters)):
            run.console.note(f"gradients: {distortion}")
        for share in missing:
            compute_segment(run, config, settings, rows, store, share, inputs)
        held = store.held()
        if share_missing(wanted, names, ids_of(held, inputs)):
            raise StageError(f"gradients: rows are still missing in {store.place} after all passes; run again.")
        plan = share_reading(wanted, names, ids_of(held, inputs))
        indexes = {segment.name: index for segment, index in held}
        failed = _ids_where(plan, indexes, lambda index: index[ERROR].is_valid())
        cut = _ids_where(plan, indexes, lambda index: index[CUT])
        counts = {
            "rows_in": len(wanted),
            "kept": len(wanted) - len(failed),
            "failed": len(failed),
            "truncated": len(cut),
        }
        values = {"identity": store.identity.hash, "checkpoints": names, "segments": [s.name for s, _ in plan]}
        values["store"] = store.name
        return StageResult(counts=counts, values=values | {"vectors_computed": computed}, rows=len(wanted))

    inputs: dict[str, Any] = {"rows": rows.fingerprint, "checkpoints": list(store.points)}
    inputs |= {"model": find_model(run, config).identity}
    return run.stage("gradients", {"store": store.identity}, inputs, body)


def compute_segment(
    run: Run,
    config: CommonConfig,
    settings: GradientConfig,
    rows: Manifest,
    store: Store,
    share: Share,
    inputs: Inputs,
) -> None:
    """Run one pass over rows at some checkpoints and seal it into a segment; a killed pass resumes in its folder."""
    from raysift.jobs.on_ray.fitting import longest_row, with_room
    from raysift.jobs.on_ray.raydata import map_rows

    name = segment_name(store.identity, share, inputs)
    with _writing_into(store):
        folder = store.folder(name).make_folder()
    model = find_model(run, config).name
    arguments = {
        "model": model,
        "checkpoints": [store.points[name] for name in share.checkpoints],
        "adam": settings.adam,
        "projection": settings.projection,
    }
    files = run.files(rows, "rows")
    if len(share.ids) < rows.counts["kept"]:
        columns = columns_of(files, GradientVectors, arguments | gradient_loading(config, settings))
        files = [_write_subset(files, columns, share.ids, folder / "rows.parquet")]

    def compute(own: CommonConfig) -> list[Location]:
        loaded, total = arguments | gradient_loading(own, settings), len(share.ids)
        handed = handed_over(own.resources)
        return map_rows(files, GradientVectors, loaded, folder, handed, rows=total, progress=run.progress)

    per_checkpoint, points = moments_of(settings) + SIGNS, len(share.checkpoints)
    longest = longest_row(run, rows, warmup_recipe(config, settings))
    need = room_needed(config, settings, model, points, per_checkpoint, store.form.dimension, longest)
    answers = with_room(run, "gradients", config, need, compute, "gradients")
    counts = count_answers("gradients", answers, len(share.ids))
    shards = seal(answers, share.checkpoints, store.form, folder, for_role(config, "reduce").resources)
    _write_index(answers, inputs, folder / INDEX)
    settle(folder, [INDEX, "shards"])
    segment = Segment(
        name=name,
        store=store.identity.hash,
        checkpoints=share.checkpoints,
        dimension=store.form.dimension,
        rows=counts["rows_in"],
        failed=counts["failed"],
        shards=tuple(relative(shards, folder)),
    )
    (folder / SEGMENT).write(segment.model_dump_json(indent=2) + "\n")
    for leftover in ("answers", "done", "rows.parquet"):
        (folder / leftover).delete()


def seal(
    answers: Sequence[Location], checkpoints: Sequence[str], form: VectorForm, folder: Location, resources: Resources
) -> list[Location]:
    """Turn the answers of a pass into the store's shards, of similar size."""
    from raysift.jobs.on_ray.ray_tasks import run_tasks

    (folder / "shards").make_folder()
    groups = _groups(answers, SHARD_BYTES)
    places = [folder / "shards" / f"part-{number:05d}.parquet" for number in range(len(groups))]
    tasks = [(group, tuple(checkpoints), form, place) for group, place in zip(groups, places, strict=True)]
    for _ in run_tasks(seal_shard, tasks, resources, "gradients: sealing the store's shards"):
        pass
    return places


def seal_shard(answers: Sequence[Location], checkpoints: Sequence[str], form: VectorForm, place: Location) -> int:
    """Write one shard of the rows that have a vector; return their number."""

    def pieces() -> Iterator[pa.Table]:
        for file in answers:
            with pq.ParquetFile(file.path, filesystem=file.fs) as source:
                for batch in source.iter_batches(PIECE_ROWS, columns=[ID, VECTORS, LOSSES, NORMS, ERROR]):
                    good = pa.Table.from_batches([batch.filter(batch[ERROR].is_null())])
                    if len(good):
                        yield _piece(good.combine_chunks(), checkpoints, form)

    return write_shard(place, checkpoints, form, pieces())


def row_ids(files: Sequence[Location]) -> Ids:
    """All row ids, sorted."""
    return np.sort(read_ids(files))


def read_inputs(files: Sequence[Location], store: Store) -> Inputs:
    """Rows whose input the store's template shows separately."""
    if META not in columns_of(files, GradientVectors, {"template": store.identity.template}):
        return NO_INPUTS
    found: dict[int, int] = {}
    for chunk in read_chunks(files, [ID, MESSAGES, META]):
        for row in chunk.filter(pc.match_substring(chunk[META], f'"{INPUT}"')).to_pylist():
            if chars := sum(len(split_input(message)[1]) for message in conversation_of(row)):
                found[row[ID]] = chars
    ids = sorted(found)
    return Inputs(np.array(ids, np.int64), np.array([found[id_] for id_ in ids], np.int32))


def ids_of(held: Sequence[tuple[Segment, pa.Table]], inputs: Inputs) -> list[tuple[Segment, Ids]]:
    """Ids in each segment of the rows that were shown as this run shows them."""
    found = []
    for segment, index in held:
        ids = index[ID].to_numpy()
        found.append((segment, ids[index[INPUT_CHARS].to_numpy() == inputs.of(ids)]))
    return found


@contextlib.contextmanager
def _writing_into(store: Store) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StageError(
            f"gradients: cannot write into the store {store.name}: {error}. Name one that this run may write into with "
            "resources.store=...; a copy of that one has its vectors."
        ) from error


def _ids_where(plan: Sequence[tuple[Segment, Share]], indexes: dict[str, pa.Table], test: Any) -> set[int]:
    """Ids of planned rows that pass the test in a segment from which they are read."""
    found: set[int] = set()
    for segment, share in plan:
        index = indexes[segment.name]
        chosen = index.filter(test(index))[ID].to_numpy()
        found.update(chosen[is_among(chosen, share.ids)].tolist())
    return found


def _write_index(answers: Sequence[Location], inputs: Inputs, place: Location) -> None:
    found = pa.concat_tables(read_chunks(answers, [ID, CUT, ERROR])).sort_by(ID)
    found = found.append_column(INPUT_CHARS, pa.array(inputs.of(found[ID].to_numpy())))
    pq.write_table(found.select(INDEX_COLUMNS.names).cast(INDEX_COLUMNS), place.path, filesystem=place.fs)


def _write_subset(files: Sequence[Location], columns: Sequence[str], ids: Ids, place: Location) -> Location:
    """Write the rows with these ids, for a pass that skips the others."""
    writer = None
    for chunk in read_chunks(files, columns):
        writer = writer or pq.ParquetWriter(place.path, chunk.schema, filesystem=place.fs, compression="zstd")
        writer.write_table(chunk.filter(pa.array(is_among(chunk[ID].to_numpy(), ids))))
    if writer:
        writer.close()
    return place


def _groups(files: Sequence[Location], size: int) -> list[list[Location]]:
    """Group neighbouring files until each group reaches the size."""
    groups: list[list[Location]] = []
    room = 0
    for file in files:
        if room <= 0:
            groups.append([])
            room = size
        groups[-1].append(file)
        room -= file.size()
    return groups


def _piece(good: pa.Table, checkpoints: Sequence[str], form: VectorForm) -> pa.Table:
    """An actor's answers as a piece of a shard."""
    rows, count = len(good), len(checkpoints)
    cells = good[VECTORS].combine_chunks().cast(pa.binary(form.bytes * count))
    cells = cells.chunk(0) if isinstance(cells, pa.ChunkedArray) else cells
    items = np.frombuffer(cells.buffers()[1], form.dtype).reshape(-1, count, form.items)
    vectors = items[cells.offset : cells.offset + rows]
    losses, norms = (good[name].combine_chunks().flatten().to_numpy().reshape(rows, count) for name in (LOSSES, NORMS))
    return shard_table(good[ID].to_numpy(), vectors, losses, norms, checkpoints, form)

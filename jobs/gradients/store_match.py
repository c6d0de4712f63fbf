"""The sharded reduce over the store: Ray tasks match shards with the target vectors, without the model.

The result has the form of exact matching: cosines per row, checkpoint and column (a subtask's target, or a null one), which
`influence` reduces to scores.
A row's numbers depend neither on the number of tasks nor on the order of the shards. If a row's checkpoints are in
several segments, they are joined by id.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysift.actors.row_gradients import MATCHES
from raysift.actors.target_files import load_targets
from raysift.config import CommonConfig
from raysift.errors import StageError
from raysift.gradients.influence import match_rows
from raysift.ids import is_among
from raysift.jobs.cluster.machines import for_role
from raysift.jobs.gradients.store import Store, ids_of, read_inputs, row_ids
from raysift.jobs.runs.run import Run, StageResult
from raysift.jobs.runs.tables import read_chunks, relative
from raysift.manifest import Manifest
from raysift.records import ERROR, ID
from raysift.settings.resources import Resources
from raysift.storage import Location
from raysift.store.gradient_store import Segment, Share, holds_store, read_shard, share_missing, share_reading
from raysift.topk import Ids

MERGED_ROWS = 2_000_000  # rows joined at once if their checkpoints are in several segments
MATCH_COLUMNS = pa.schema([(ID, pa.int64()), (MATCHES, pa.list_(pa.list_(pa.float32()))), (ERROR, pa.string())])


def match(run: Run, config: CommonConfig, rows: Manifest, target: Manifest, stored: Manifest, store: Store) -> Manifest:
    """Cosines of all rows with the targets, from the store; the model is not needed."""

    def body(folder: Location) -> StageResult:
        wanted, names = row_ids(run.files(rows, "rows")), list(store.points)
        held, inputs = store.held(), read_inputs(run.files(rows, "rows"), store)
        if share_missing(wanted, names, ids_of(held, inputs)):
            raise StageError(f"match: {_tell_lost(run, stored, store, len(wanted))}")
        plan = share_reading(wanted, names, ids_of(held, inputs))
        failed = _failures(plan, {segment.name: index for segment, index in held})
        place = run.files(target, "targets")[0]
        targets = load_targets(place.parent, list(store.points.values()), null=True)
        vectors = {name: matrix.numpy() for name, matrix in zip(names, targets, strict=True)}
        own = for_role(config, "reduce").resources
        parts = match_segments(store, plan, vectors, folder, own)
        if all(share.checkpoints == tuple(names) for _, share in plan):
            files = [file for file, _ in parts]
        else:
            files = merge(parts, names, len(targets[0]), wanted, failed, folder, own)
        files.append(_write_failures(failed, folder / "failed.parquet"))
        counts = {"rows_in": len(wanted), "kept": len(wanted) - len(failed), "failed": len(failed)}
        return StageResult(files={"answers": relative(files, folder)}, counts=counts, rows=len(wanted))

    inputs = {"rows": rows.fingerprint, "gradients": stored.fingerprint, "targets": target.fingerprint}
    return run.stage("match", {}, inputs, body)


def match_segments(
    store: Store,
    plan: Sequence[tuple[Segment, Share]],
    targets: dict[str, NDArray[np.float32]],
    out: Location,
    resources: Resources,
) -> list[tuple[Location, tuple[str, ...]]]:
    """Score every shard of the plan in tasks; return the files of cosines, each with its checkpoints."""
    import ray

    from raysift.jobs.on_ray.ray_tasks import run_tasks

    tasks: list[tuple[Any, ...]] = []
    parts: list[tuple[Location, tuple[str, ...]]] = []
    for segment, share in plan:
        wanted, vectors = ray.put(share.ids), ray.put([targets[name] for name in share.checkpoints])
        for shard in segment.shards:
            place = out / f"part-{len(parts):05d}.parquet"
            tasks.append((store.folder(segment.name) / shard, share.checkpoints, vectors, wanted, place))
            parts.append((place, share.checkpoints))
    advice = "If the shard is damaged, delete its segment's folder and run again."
    for _ in run_tasks(match_shard, tasks, resources, "match: scoring the store's shards", advice):
        pass
    return parts


def match_shard(
    shard: Location, checkpoints: Sequence[str], targets: Sequence[NDArray[np.float32]], wanted: Ids, out: Location
) -> int:
    """Write the cosines of one shard's rows with the targets of each checkpoint; return the number of rows."""
    written = 0
    # Cosines neither repeat nor compress; trying to would take a quarter of the time.
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    with pq.ParquetWriter(out.path, MATCH_COLUMNS, filesystem=out.fs, **plain) as writer:
        for ids, units in read_shard(shard, checkpoints):
            scores = np.stack([match_rows(u, t) for u, t in zip(units, targets, strict=True)], axis=1)
            mine = is_among(ids, wanted)
            writer.write_table(match_table(ids[mine], scores[mine]))
            written += int(mine.sum())
    return written


def merge(
    parts: Sequence[tuple[Location, tuple[str, ...]]],
    names: Sequence[str],
    columns: int,
    wanted: Ids,
    failed: dict[int, str],
    out: Location,
    resources: Resources,
) -> list[Location]:
    """Join each row's checkpoints from all segments, a bounded number of rows at a time."""
    from raysift.jobs.on_ray.ray_tasks import run_tasks

    good = wanted[~is_among(wanted, np.array(sorted(failed), np.int64))]
    tasks: list[tuple[Any, ...]] = []
    for start in range(0, len(good), MERGED_ROWS):
        place = out / f"merged-{len(tasks):05d}.parquet"
        tasks.append((list(parts), tuple(names), columns, good[start : start + MERGED_ROWS], place))
    for _ in run_tasks(merge_rows, tasks, resources, "match: bringing checkpoints together"):
        pass
    return [task[-1] for task in tasks]


def merge_rows(
    parts: Sequence[tuple[Location, tuple[str, ...]]], names: Sequence[str], columns: int, wanted: Ids, out: Location
) -> None:
    """Write the cosines of the wanted rows at all checkpoints into one file."""
    matches = np.zeros((len(wanted), len(names), columns), np.float32)
    seen = np.zeros((len(wanted), len(names)), bool)
    for place, own in parts:
        points = [names.index(name) for name in own]
        for chunk in read_chunks([place], [ID, MATCHES]):
            ids = chunk[ID].to_numpy()
            mine = is_among(ids, wanted)
            where = np.searchsorted(wanted, ids[mine])[:, None]
            numbers = chunk[MATCHES].combine_chunks().flatten().flatten().to_numpy()
            matches[where, points] = numbers.reshape(len(ids), len(own), columns)[mine]
            seen[where, points] = True
    if not seen.all():
        raise StageError(f"match: {int((~seen.all(axis=1)).sum())} rows lack a checkpoint in the store; run again.")
    pq.write_table(match_table(wanted, matches), out.path, filesystem=out.fs)


def match_table(ids: Ids, matches: NDArray[np.float32]) -> pa.Table:
    """Answers in the form of exact matching; `matches` is (rows, checkpoints, columns)."""
    rows, checkpoints, columns = matches.shape
    inner = pa.ListArray.from_arrays(np.arange(rows * checkpoints + 1, dtype=np.int32) * columns, matches.reshape(-1))
    outer = pa.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32) * checkpoints, inner)
    return pa.Table.from_arrays([pa.array(ids), outer, pa.nulls(rows, pa.string())], schema=MATCH_COLUMNS)


def _tell_lost(run: Run, stored: Manifest, store: Store, rows: int) -> str:
    """What a filled store now lacks, and what to do about it."""
    if not holds_store(store.place, store.identity.hash):
        looked = " or ".join(dict.fromkeys([str(stored.values.get("store", store.name)), store.name]))
        return (
            f"the store with the run's gradients is not in {looked}. Put it back, or name the folder where it is now with "
            "resources.store=..."
        )
    done = " and ".join(dict.fromkeys([str(run.folder / stored.stage), str(stored.home)]))
    return f"{store.name} no longer holds all {rows} rows of the run. Delete {done} to compute what is missing."


def _failures(plan: Sequence[tuple[Segment, Share]], indexes: dict[str, pa.Table]) -> dict[int, str]:
    """Error messages of rows without a vector, by id."""
    found: dict[int, str] = {}
    for segment, share in plan:
        bad = indexes[segment.name].filter(indexes[segment.name][ERROR].is_valid())
        mine = bad.filter(pa.array(is_among(bad[ID].to_numpy(), share.ids)))
        found.update(zip(mine[ID].to_pylist(), mine[ERROR].to_pylist(), strict=True))
    return found


def _write_failures(failed: dict[int, str], place: Location) -> Location:
    ids = sorted(failed)
    columns = [pa.array(ids, pa.int64()), pa.nulls(len(ids), MATCH_COLUMNS.field(MATCHES).type)]
    errors = pa.array([failed[i] for i in ids], pa.string())
    pq.write_table(pa.Table.from_arrays([*columns, errors], schema=MATCH_COLUMNS), place.path, filesystem=place.fs)
    return place

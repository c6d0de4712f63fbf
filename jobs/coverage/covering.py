"""Cover a table of embeddings by k of its rows: k-center over shards, with a checkpoint of the centres found so far.

    FOLDER/centers.parquet   id, rank from 1, radius (distance to the centres before it; null for a first one without any)
    FOLDER/picked.parquet    the same columns of an unfinished run: restarted, it resumes there and finds the same centres

FOLDER belongs to one cover alone: the caller names it by everything that decides the centres, as `Run.stage` does.

The exact mode holds all rows in shards (`shards.py`); the labelled approximation by core-sets (`raysift.kcenter.coresets`)
reads one part of the pool at a time, each in a Ray task, or one after the other in this process if Ray does not run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysift.errors import DataError, StageError
from raysift.ids import is_among
from raysift.jobs.commands.progress import Bar
from raysift.jobs.coverage.shards import Load, make_shards
from raysift.kcenter.coresets import core_set, cover_union, farthest_row, part_of, with_radius
from raysift.kcenter.forecast import Speed, forecast_bytes, forecast_seconds
from raysift.kcenter.picking import Centers, Picked, greedy, seed_first, start_from
from raysift.kcenter.settings import CoverageSettings
from raysift.records import ID, RADIUS, RANK
from raysift.scoring.embeddings import EmbeddingTable, find_vectors, read_embeddings, survey
from raysift.settings.resources import Resources
from raysift.storage import Location
from raysift.topk import Ids

CENTERS, PICKED = "centers.parquet", "picked.parquet"
CHECKPOINT_S = 20.0
CURVE_POINTS = 200
TRIAL_WORTH = 1e11  # multiplications; below that, a forecast takes longer than the work it forecasts


@dataclass(frozen=True)
class CoverageReport:
    """The account of a cover."""

    centers: Centers
    points: int
    """Rows that could be chosen."""
    failed: int
    """Rows of the table without a vector."""
    notes: tuple[str, ...]
    """Remarks that the user should read."""
    values: dict[str, Any]
    """For a manifest: radius, bound and ratio, radius curve, passes, share of products, seconds forecast and measured."""

    @property
    def ids(self) -> Ids:
        """The centres, in the order in which they were found."""
        return self.centers.ids

    @property
    def counts(self) -> dict[str, int]:
        """For a manifest."""
        return {"rows_in": self.points + self.failed, "failed": self.failed, "kept": len(self.ids)}


def cover(
    files: Sequence[Location],
    k: int,
    settings: CoverageSettings | None = None,
    resources: Resources | None = None,
    *,
    folder: Location,
    seed: int = 0,
    initial: Ids | tuple[Ids, Any] | None = None,
    among: Ids | None = None,
    progress: Bar | None = None,
    section: str = "centers",
) -> CoverageReport:
    """Choose k rows that cover a table of embeddings, and write them to `folder`.

    `initial` are centres to start from, by id if they are rows of the table, else (ids, vectors); they are not chosen again.
    `among` are the ids of the rows to cover and to choose from (default: all with a vector). Uses Ray if it runs and the
    table is large or `resources.workers` is set, else this process. `section` names the settings' section in messages.
    """
    settings, resources = settings or CoverageSettings(), resources or Resources()
    clock = time.perf_counter()
    if k < 1:
        raise DataError(f"coverage: {k} centres asked; ask for at least 1.")
    table = survey(files)
    points = _points(table, among)
    if initial is not None and not isinstance(initial, tuple):
        initial = find_vectors(files, initial)
    picked = start_from(initial, settings.metric)
    wanted = None if among is None else points
    work = _Work(table, points, wanted, k, settings, resources, folder.make_folder(), seed, picked, progress)
    centers, values = _cover_exactly(work) if settings.mode == "exact" else _cover_by_coresets(work)
    shortage = _shortage(points, initial, centers)
    if shortage and not settings.allow_fewer:
        raise DataError(
            f"coverage: {shortage}, and {section}.allow_fewer is off. Lower the budget, or set {section}.allow_fewer=true."
        )
    _write(folder / CENTERS, centers.ids, centers.radii)
    (folder / PICKED).delete()
    seconds = time.perf_counter() - clock
    lost = [f"{table.failed} rows without a vector were left out"] if table.failed else []
    return CoverageReport(
        centers,
        len(points),
        table.failed,
        (*lost, *([shortage] if shortage else []), *_how_near(centers)),
        _values(centers) | values | {"seconds": round(seconds, 3)},
    )


@dataclass(frozen=True)
class _Work:
    table: EmbeddingTable
    points: Ids
    among: Ids | None
    k: int
    settings: CoverageSettings
    resources: Resources
    folder: Location
    seed: int
    picked: Picked
    progress: Bar | None

    def say(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress.update(done, total)

    def forecast(self, shards: int, speed: Speed) -> dict[str, Any]:
        return {
            "forecast_seconds": round(forecast_seconds(len(self.points), self.k, shards, speed), 1),
            "forecast_bytes_a_shard": forecast_bytes(len(self.points), self.table.dimension, self.k, shards),
        }


def _points(table: EmbeddingTable, among: Ids | None) -> Ids:
    """Ids of the rows to cover, ascending; those asked for must have a vector or have failed to get one."""
    if among is None:
        return table.ids
    points = np.sort(np.asarray(among, np.int64))
    points = points[is_among(points, table.ids)]
    lost = len(among) - len(points)
    if lost > table.failed:
        raise DataError(
            f"coverage: {lost} of {len(among)} rows to choose from have no vector, and only {table.failed} failed to get one. "
            "The embeddings are of another pool."
        )
    if not len(points):
        raise DataError("coverage: none of the rows to choose from has a vector.")
    return points


def _cover_exactly(work: _Work) -> tuple[Centers, dict[str, Any]]:
    picked = work.picked
    shards = make_shards(work.table, work.among, work.settings.metric, picked, work.resources)
    try:
        if shards.rows != len(work.points):
            raise StageError(
                f"coverage: shards hold {shards.rows} rows of {len(work.points)}; the files are being changed."
            )
        worth_it = len(work.points) * work.k * work.table.dimension > TRIAL_WORTH
        values = work.forecast(shards.count, shards.measure_speed()) if worth_it else {}
        resumed = _resume(work, shards.ask)
        if not len(picked):
            seed_first(picked, shards.ask("first", work.seed))
        clock, last = time.perf_counter(), time.perf_counter()

        def on_pass(so_far: Picked) -> None:
            nonlocal last
            if time.perf_counter() - last >= CHECKPOINT_S:
                own = slice(so_far.initial, None)
                _write(work.folder / PICKED, np.array(so_far.ids[own]), np.array(so_far.radii[own]))
                last = time.perf_counter()
            work.say(len(so_far) - so_far.initial, work.k)

        centers = greedy(shards.exchange, work.k, picked, on_pass)
        values |= {"seconds_picking": round(time.perf_counter() - clock, 3), "resumed": resumed}
        return centers, values | {"shards": shards.count, "restarts": shards.restarts}
    finally:
        shards.close()


def _cover_by_coresets(work: _Work) -> tuple[Centers, dict[str, Any]]:
    parts = work.settings.coreset_parts
    count = max(1, math.ceil(work.settings.coreset_factor * work.k / parts))
    load = Load(
        work.table.pieces, work.table.dimension, work.settings.metric, work.resources.placed_on, work.resources.threads
    )
    shared = (load, work.among, work.seed, parts)
    while True:
        tasks = [(number, *shared, count, work.picked) for number in range(parts)]
        found = _each_part(core_set_of_part, tasks, work, 0)
        centers, picked = cover_union(found, work.k, work.seed, work.picked, load.options())
        # Fewer than k centres is final only if each part has sent all its different rows.
        if len(centers.ids) == work.k or all(len(part) < count for part in found):
            break
        count *= 2
    batch = picked.since(0)
    radii = _each_part(radius_of_part, [(number, *shared, batch) for number in range(parts)], work, parts)
    size = sum(len(part) for part in found)
    return with_radius(centers, max(radii)), {"parts": parts, "rows_of_core_sets": size}


def core_set_of_part(
    number: int, load: Load, among: Ids | None, seed: int, parts: int, count: int, initial: Picked
) -> Picked:
    """Read one part of the pool and return its core-set."""
    ids, vectors = _read_part(number, load, among, seed, parts)
    return core_set(ids, vectors, count, seed, initial, load.options())


def radius_of_part(number: int, load: Load, among: Ids | None, seed: int, parts: int, centers: Any) -> float:
    """Distance of the farthest row of one part of the pool from the centres."""
    ids, vectors = _read_part(number, load, among, seed, parts)
    return farthest_row(ids, vectors, centers, load.options())


def _read_part(number: int, load: Load, among: Ids | None, seed: int, parts: int) -> tuple[Ids, Any]:
    def keep(ids: Ids) -> Any:
        mine = part_of(ids, parts, seed) == number
        return mine if among is None else mine & is_among(ids, among)

    return read_embeddings(load.pieces, load.dimension, keep)


def _each_part(body: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], work: _Work, done: int) -> list[Any]:
    """The answers of all parts, in their order."""
    import ray

    answers: list[Any] = [None] * len(tasks)
    if ray.is_initialized():
        from raysift.jobs.on_ray.ray_tasks import run_tasks

        results = run_tasks(body, tasks, work.resources, "coverage: parts of the pool")
    else:
        results = ((number, body(*task)) for number, task in enumerate(tasks))
    for ended, (number, answer) in enumerate(results, 1):
        answers[number] = answer
        work.say(done + ended, 2 * len(tasks))
    return answers


def _resume(work: _Work, ask: Callable[..., list[Any]]) -> int:
    """Take over the centres of an interrupted run; returns their number."""
    place = work.folder / PICKED
    if not place.exists():
        return 0
    with place.open_input() as stream:
        table = pq.read_table(stream)
    table = table.slice(0, work.k)
    ids, radii = table[ID].to_numpy(), table[RADIUS].fill_null(math.inf).to_numpy()
    answers = ask("vectors_of", ids)
    rows = {row: vector for some, vectors in answers for row, vector in zip(some.tolist(), vectors, strict=True)}
    if len(rows) != len(ids):
        raise StageError(
            f"coverage: {len(ids) - len(rows)} centres of {place} are no rows of the table. Delete that file."
        )
    work.picked.add(ids, np.stack([rows[row] for row in ids.tolist()]), radii.tolist())
    return len(ids)


def _write(place: Location, ids: Ids, radii: Any) -> None:
    """Write the centres in their order, whole or not at all."""
    table = pa.table(
        {
            ID: pa.array(ids, pa.int64()),
            RANK: np.arange(1, len(ids) + 1),
            RADIUS: pa.array(radii, pa.float64(), mask=np.isinf(radii)),
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    place.write(sink.getvalue().to_pybytes())


def _values(centers: Centers) -> dict[str, Any]:
    count = len(centers.ids)
    ranks = np.unique(np.linspace(1, count, min(count, CURVE_POINTS)).astype(int)).tolist()
    curve = [[rank, float(centers.radii[rank - 1])] for rank in ranks]
    return {
        "exact": centers.exact,
        "asked": centers.asked,
        "radius": centers.final_radius,
        "lower_bound": centers.lower_bound,
        "ratio": round(centers.ratio, 4),
        "curve": [[rank, radius] for rank, radius in curve if math.isfinite(radius)],
        "passes": centers.passes,
        "products_share": round(centers.products / centers.possible, 4) if centers.possible else 1.0,
    }


def _shortage(points: Ids, initial: Any, centers: Centers) -> str | None:
    """Why there are fewer centres than asked for: too few rows, or too few different ones."""
    asked, given = centers.asked, len(centers.ids)
    if given >= asked:
        return None
    left = len(points) if initial is None else int((~np.isin(points, initial[0])).sum())
    found = f"{asked} rows asked, {given} found"
    if left == given:
        return f"{found}: there are no more rows with a vector to choose from"
    return f"{found}: the other {left - given} have the same vector as a row that is chosen"


def _how_near(centers: Centers) -> list[str]:
    if centers.exact:
        return []
    return [
        f"approximate, by core-sets: radius {centers.final_radius:.4g}, at most {centers.ratio:.2f} times the smallest possible"
    ]

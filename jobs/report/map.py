"""The map of a report: the pool's vectors on the plane in which they differ most, the chosen rows, and k-center's radii."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from raysift.draws import seed_for, uniform_of
from raysift.errors import DataError
from raysift.jobs.runs.run import Run
from raysift.jobs.runs.tables import read_ids
from raysift.manifest import Manifest
from raysift.pool.id_text import id_text
from raysift.report.blocks import MAP_POINTS, Block, Line, Lines, Map, Point, Section
from raysift.report.projection import Numbers, Plane, density_of, extent, fit_plane
from raysift.scoring.embeddings import EmbeddingTable, embedding_batches, survey
from raysift.topk import Ids

FIT_ROWS, FIT_PRODUCTS = 200_000, 2**35  # rows the plane is fitted to: a few seconds for vectors of any length
SHOWN_ROWS = 1_000_000  # rows whose density is drawn
CURVES = {
    "centers": "chosen rows",
    "seeds": "seeds",
    "augmented": "rows added to the seeds",
}


def map_of(run: Run) -> Section | None:
    """The section `map`; None for a run that has embedded no rows."""
    embedded = run.manifest("embed")
    if embedded is None:
        return None
    try:
        table = survey(run.files(embedded, "answers"))
    except DataError:
        return None
    drawn, curve = _map(run, table), _radii(run)
    blocks: list[Block] = [block for block in (drawn, curve) if block]
    if not blocks:
        return None
    lead = "Rows that lie close together are alike to the encoder. Chosen rows should reach wherever the pool is dense."
    return Section(key="map", title="Map", lead=lead, blocks=tuple(blocks))


def lowest(ids: Ids, most: int) -> Callable[[Ids], np.ndarray]:
    """Keeps at most so many rows, those with the lowest ids: ids are hashes, so this is a random sample, always the same."""
    if len(ids) <= most:
        return lambda some: np.ones(len(some), bool)
    bar = ids[most]
    return lambda some: some < bar


def _map(run: Run, table: EmbeddingTable) -> Map | None:
    fitted = max(2, min(FIT_ROWS, FIT_PRODUCTS // table.dimension**2))
    keep = lowest(table.ids, fitted)
    plane = fit_plane(vectors for _, vectors in embedding_batches(table.pieces, table.dimension, keep))
    if plane is None:
        return None
    shown = lowest(table.ids, SHOWN_ROWS)

    def positions() -> Iterator[Numbers]:
        for _, vectors in embedding_batches(table.pieces, table.dimension, shown):
            yield plane.place(vectors)

    chosen = run.manifest("choose")
    points = _points(run, table, plane, chosen) if chosen else ()
    spots = np.array([[point.x, point.y] for point in points]).reshape(-1, 2)
    low, high = extent(part for part in [*_once(positions), spots] if len(part))
    density = density_of(positions(), low, high)
    return Map(
        title="Pool and chosen rows",
        x=tuple(density.x.tolist()),
        y=tuple(density.y.tolist()),
        density=tuple(tuple(line) for line in density.counts.tolist()),
        points=points,
        explained=plane.explained,
        how=_how(table, fitted, plane),
        note=_left_out(run, table, chosen, len(points)),
    )


def _once(positions: Callable[[], Iterator[Numbers]]) -> Iterator[Numbers]:
    """The lowest and highest positions of each batch alone, which is all that an extent needs."""
    for part in positions():
        yield np.stack([part.min(axis=0), part.max(axis=0)])


def _points(run: Run, table: EmbeddingTable, plane: Plane, chosen: Manifest) -> tuple[Point, ...]:
    """At most MAP_POINTS of the chosen rows that have a vector, drawn by id."""
    order = read_ids(run.files(chosen, "selection"))
    there = np.flatnonzero(np.isin(order, table.ids))
    drawn = there[np.argsort(uniform_of(order[there], seed_for(0, "map")), kind="stable")[:MAP_POINTS]]
    wanted = np.sort(order[drawn])
    rank = {int(order[place]): int(place) for place in drawn}
    found = {}
    for ids, vectors in embedding_batches(table.pieces, table.dimension, lambda some: np.isin(some, wanted)):
        for row, (x, y) in zip(ids.tolist(), plane.place(vectors).tolist(), strict=True):
            found[rank[row]] = Point(x=x, y=y, id=id_text(row), rank=rank[row])
    return tuple(found[place] for place in sorted(found))


def _how(table: EmbeddingTable, fitted: int, plane: Plane) -> str:
    of = f"{min(fitted, len(table.ids)):,} of {len(table.ids):,}" if fitted < len(table.ids) else f"{len(table.ids):,}"
    first, second = (f"{100 * share:.0f} %" for share in plane.explained)
    return (
        f"The two directions in which the vectors of {of} rows differ most (principal components); they hold {first} and "
        f"{second} of the variance, so rows that look close may still differ in other directions."
    )


def _left_out(run: Run, table: EmbeddingTable, chosen: Manifest | None, points: int) -> str:
    told, rows = [], run.manifest("ingest")
    if rows and len(table.ids) < rows.counts["kept"]:
        told.append(f"{len(table.ids):,} of {rows.counts['kept']:,} rows have a vector; the others are not on the map.")
    if len(table.ids) > SHOWN_ROWS:
        told.append(f"The density is that of {SHOWN_ROWS:,} rows, drawn by id.")
    if chosen and points < chosen.counts["kept"]:
        told.append(f"{points:,} of {chosen.counts['kept']:,} chosen rows are drawn as points.")
    return " ".join(told)


def _radii(run: Run) -> Lines | None:
    """How the distance of the farthest row falls as rows are chosen."""
    series, marks = [], []
    for stage, name in CURVES.items():
        found = run.manifest(stage)
        curve = found.values.get("curve") if found else None
        if found and curve:
            series.append(Line(name=name, points=tuple((float(rank), float(radius)) for rank, radius in curve)))
            marks.append(f"{name}: {found.values['radius']:.3g}")
    if not series:
        return None
    return Lines(
        title="Distance of each chosen row to the rows chosen before it",
        x="rows chosen",
        y="distance",
        series=tuple(series),
        note=f"At the end no row is farther from a chosen one than this: {'; '.join(marks)}. "
        "Where the curve is flat, more rows add little that is new.",
    )

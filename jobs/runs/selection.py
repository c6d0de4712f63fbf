"""Writes what was chosen: ranks and scores, the rows themselves in rank order, their export, and a summary by source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysift.jobs.runs.run import Run, StageResult
from raysift.jobs.runs.tables import read_chunks, relative
from raysift.manifest import Manifest
from raysift.methods import Selector
from raysift.pool.export import write_export
from raysift.records import ID, RANK, ROWS, SCORE, SOURCE
from raysift.settings.config import CommonConfig
from raysift.storage import Location
from raysift.topk import Ids, Scores

ROWS_A_PASS = 100_000


def write_selection(
    run: Run,
    config: CommonConfig,
    selector: Selector,
    rows: Manifest,
    score_files: Sequence[Location],
    ids: Ids,
    scores: Scores,
    folder: Location,
) -> StageResult:
    """All files of the choose stage; `ids` are in order of rank."""
    parts = (folder / "rows").make_folder()
    files, sources = [], []
    for number, table in enumerate(rows_in_order(run.files(rows, "rows"), ids)):
        place = parts / f"part-{number:05d}.parquet"
        pq.write_table(table, place.path, filesystem=place.fs, compression="zstd")
        files.append(place)
        sources.append(table[SOURCE])
    source = pa.chunked_array(sources)
    own = columns_in_order(score_files, selector.columns, ids)
    ranks = pa.array(np.arange(1, len(ids) + 1))
    selection = pa.table({ID: ids, RANK: ranks, SCORE: scores, SOURCE: source, **own})
    place = folder / "selection.parquet"
    pq.write_table(selection, place.path, filesystem=place.fs, compression="zstd")
    exported = write_export(files, (folder / "selected").make_folder(), config.output_format)
    return StageResult(
        files={
            "selection": ["selection.parquet"],
            "rows": relative(files, folder),
            "selected": relative(exported, folder),
        },
        counts={"rows_in": rows.counts["kept"], "kept": len(ids)},
        values={"by_source": summary_by_source(rows.values["by_source"], source)},
        rows=rows.counts["kept"],
    )


def rows_in_order(files: Sequence[Location], ids: Ids) -> Iterator[pa.Table]:
    """The rows of the given ids in the order of the ids, at most ROWS_A_PASS in memory at a time."""
    for start in range(0, len(ids), ROWS_A_PASS):
        wanted = ids[start : start + ROWS_A_PASS]
        order = np.argsort(wanted)
        found = []
        for chunk in read_chunks(files, ROWS.names):
            found.append(chunk.filter(pa.array(np.isin(chunk[ID].to_numpy(), wanted))))
        table = pa.concat_tables(found)
        place = np.empty(len(wanted), dtype=np.int64)
        place[order] = np.argsort(table[ID].to_numpy())
        yield table.take(pa.array(place)).combine_chunks()


def write_rows(files: Sequence[Location], ids: np.ndarray, folder: Location) -> list[str]:
    """The rows of these ids, in their order, as files in the folder; gives their names."""
    names = []
    for number, table in enumerate(rows_in_order(files, ids)):
        place = folder / f"rows-{number:05d}.parquet"
        pq.write_table(table, place.path, filesystem=place.fs, compression="zstd")
        names.append(place.name)
    return names


def columns_in_order(files: Sequence[Location], schema: pa.Schema, ids: Ids) -> dict[str, pa.Array]:
    """Columns of the rows of the given ids, in the order of the ids, from files that hold each of them."""
    if not schema.names:
        return {}
    chunks = read_chunks(files, [ID, *schema.names])
    table = pa.concat_tables([c.filter(pa.array(np.isin(c[ID].to_numpy(), ids))) for c in chunks])
    place = np.empty(len(ids), dtype=np.int64)
    place[np.argsort(ids)] = np.argsort(table[ID].to_numpy())
    table = table.take(pa.array(place))
    return {name: table[name].combine_chunks() for name in schema.names}


def summary_by_source(pool: dict[str, int], chosen: pa.ChunkedArray) -> dict[str, dict[str, float]]:
    """Per source: rows in the pool, rows chosen, and lift, the share among the chosen over the share in the pool."""
    picked = Counter(chosen.to_pylist())
    pool_rows, chosen_rows = sum(pool.values()), max(1, len(chosen))
    return {
        source: {
            "pool": count,
            "selected": picked[source],
            "lift": round((picked[source] / chosen_rows) / (count / pool_rows), 3),
        }
        for source, count in sorted(pool.items())
    }

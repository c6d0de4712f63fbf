"""Writes a selection: ranks and scores, the rows in rank order, their export, and a summary by source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysift.config import CommonConfig
from raysift.errors import ConfigError, DataError
from raysift.jobs.runs.chosen_rows import rows_in_order
from raysift.jobs.runs.reuse import is_run
from raysift.jobs.runs.run import Run, StageResult
from raysift.jobs.runs.tables import publish, relative
from raysift.manifest import Manifest, read_manifest
from raysift.methods import Selector
from raysift.pool.card import Card
from raysift.pool.export import write_export
from raysift.records import FILE, ID, KEPT_ROWS, POSITION, RANK, ROWS, SCORE, SOURCE
from raysift.storage import Location, extend_name, open_location
from raysift.topk import Ids, Scores

SELECTED, SELECTION = "selected", "selection.parquet"
HASH_DIGITS = 16  # of a file's content, in a card


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
    """Write all files of the choose stage; `ids` are in rank order."""
    if not len(ids):
        raise DataError(
            f"choose: no row was chosen of {rows.counts['kept']} with a budget of {config.budget}: none has a score, or none "
            "is as short as a budget in tokens. Raise the budget, or see the failures of the stages before."
        )
    parts = (folder / "rows").make_folder()
    files: list[Location] = []
    picked: Counter[str] = Counter()
    own, pool, done = selector.columns.names, run.files(rows, "rows"), 0
    with pq.ParquetWriter(
        (folder / SELECTION).path, selection_schema(selector), filesystem=folder.fs, compression="zstd"
    ) as selection:
        for table in rows_in_order(pool, ids, KEPT_ROWS.names, folder / "work", score_files, own):
            place, end = parts / f"part-{len(files):05d}.parquet", done + len(table)
            pq.write_table(table.select(ROWS.names), place.path, filesystem=place.fs, compression="zstd")
            files.append(place)
            ranks = {RANK: np.arange(done + 1, end + 1), SCORE: scores[done:end]}
            columns = ranks | {name: table[name] for name in (ID, SOURCE, *own, FILE, POSITION)}
            selection.write_table(pa.table([columns[name] for name in selection.schema.names], schema=selection.schema))
            picked.update({entry["values"]: entry["counts"] for entry in pc.value_counts(table[SOURCE]).to_pylist()})
            done = end
    by_source = summary_by_source(rows.values["by_source"], picked)
    card = card_of(config, rows, by_source, scores, rows.counts["kept"])
    exported = write_export(files, (folder / SELECTED).make_folder(), config.output_format, card)
    return StageResult(
        files={
            "selection": [SELECTION],
            "rows": relative(files, folder),
            "selected": relative(exported, folder),
        },
        counts={"rows_in": rows.counts["kept"], "kept": len(ids)},
        values={"by_source": by_source} | ({"toys": run.toys} if run.toys else {}),
        rows=rows.counts["kept"],
    )


def card_of(
    config: CommonConfig,
    rows: Manifest | None,
    by_source: Mapping[str, Mapping[str, float]],
    scores: Scores,
    pool_rows: int,
) -> Card:
    """What a selection's card tells; `rows` is the ingest of its pool."""
    read = rows.inputs.get("pool", []) if rows else []
    settings: dict[str, Any] = {
        "model": config.model,
        "budget": config.budget,
        "seed": config.seed,
        "pool": list(config.pool) or ["a Ray dataset"],
        "content of the pool": [f"{name} {content[:HASH_DIGITS]}" for name, content in read],
        "target": list(config.target),
    }
    span = (float(np.min(scores)), float(np.max(scores)))
    return Card(str(config.method), settings, by_source, span, pool_rows)


def publish_selection(run: Run, chosen: Manifest) -> None:
    """Copy the table and the export to the top of the run folder, and delete an earlier selection's files in `selected/`.

    The card and `dataset_info.json` are copied after the data that they name; the old data is deleted last.
    """
    publish(run.files(chosen, "selection")[0], run.folder / SELECTION)
    folder, files = run.folder / SELECTED, run.files(chosen, "selected")
    for file in files:
        publish(file, folder / file.name)
    for old in folder.files():
        if old.name not in {file.name for file in files}:
            old.delete()


def rows_of_run(source: str) -> list[str]:
    """The files of the chosen rows if the pool is named by a run folder or its `selection.parquet`; else the name itself."""
    name = source.removesuffix(f"/{SELECTION}")
    if not open_location(name).is_folder() or not is_run(name):
        return [source]
    chosen = read_manifest(open_location(name) / "choose")
    if chosen is None:
        raise ConfigError(
            f"pool: '{source}' is a run without a finished selection, so it has no rows to read. Finish it with the command "
            "that began it, or name the files themselves."
        )
    home = extend_name(chosen.reused_from or name, f"/{chosen.stage}")
    return [extend_name(home, f"/{file}") for file in chosen.files["rows"]]


def selection_schema(selector: Selector) -> pa.Schema:
    """Columns of `selection.parquet`."""
    first = [(ID, pa.int64()), (RANK, pa.int64()), (SCORE, pa.float64()), (SOURCE, pa.string())]
    return pa.schema([*first, *selector.columns, (FILE, pa.string()), (POSITION, pa.int64())])


def summary_by_source(pool: Mapping[str, int], picked: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """Per source: rows in the pool, rows chosen, and lift (share of the chosen rows / share of the pool)."""
    pool_rows, chosen_rows = sum(pool.values()), max(1, sum(picked.values()))
    return {
        source: {
            "pool": count,
            "selected": picked.get(source, 0),
            "lift": round((picked.get(source, 0) / chosen_rows) / (count / pool_rows), 3),
        }
        for source, count in sorted(pool.items())
    }

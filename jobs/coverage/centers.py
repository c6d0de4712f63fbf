"""Coverage: an embedding of every row, and the rows that k-center takes (see `covering.py` for how)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysift.actors.embedder import Embedder
from raysift.config import CommonConfig
from raysift.errors import DataError
from raysift.jobs.cluster.machines import for_role
from raysift.jobs.runs.chosen_rows import write_rows
from raysift.jobs.runs.models import computing, find_model, without_models
from raysift.jobs.runs.run import Run, StageResult
from raysift.jobs.runs.tables import Tally, count_answers, publish, read_chunks, read_ids, read_numbers, relative
from raysift.jobs.stages import loading, require_answers
from raysift.kcenter.settings import CoverageSettings
from raysift.manifest import Manifest
from raysift.methods.coverage import place_centers
from raysift.records import ERROR, ID, RADIUS, RANK
from raysift.scoring.columns import TRUNCATED
from raysift.scoring.settings import EmbeddingSettings
from raysift.storage import Location


def embed(run: Run, config: CommonConfig, settings: EmbeddingSettings, rows: Manifest) -> Manifest:
    """A vector for every row, on a pool of actors."""
    from raysift.jobs.on_ray.fitting import need_to_answer, with_room
    from raysift.jobs.on_ray.raydata import map_rows

    model = find_model(run, config, settings.model)

    def body(folder: Location) -> StageResult:
        def work(own: CommonConfig) -> list[Location]:
            arguments = {"settings": settings.model_copy(update={"model": model.name})} | loading(own, model.name)
            files, total = run.files(rows, "rows"), rows.counts["kept"]
            return map_rows(files, Embedder, arguments, folder, own.resources, rows=total, progress=run.progress)

        answers = with_room(run, "embed", config, need_to_answer(config, model.name), work, "embed", model.name)
        cut = Tally(TRUNCATED)
        counts = count_answers("embed", answers, rows.counts["kept"], [TRUNCATED], cut)
        counts["truncated"] = cut.counts[TRUNCATED]
        require_answers("embed", run, answers, counts, folder)
        return StageResult(files={"answers": relative(answers, folder)}, counts=counts, rows=counts["rows_in"])

    inputs = {"rows": rows.fingerprint, "encoder": computing(config, model)}
    return run.stage("embed", {"embedding": without_models(settings)}, inputs, body)


def choose_centers(
    run: Run,
    config: CommonConfig,
    name: str,
    settings: CoverageSettings,
    rows: Manifest,
    vectors: Manifest,
    count: int,
    beside: Manifest | None = None,
    apart: bool = True,
) -> Manifest:
    """Cover the rows by `count` of them, or all there are; rows of `beside` are not taken again and, if `apart`, count as
    existing centres."""
    from raysift.jobs.coverage.covering import cover

    def body(folder: Location) -> StageResult:
        ids, taken = read_ids(run.files(rows, "rows")), np.empty(0, np.int64)
        if beside:
            taken = read_ids(run.files(beside, "centers"))
            ids = np.setdiff1d(ids, taken)
        section = f"{config.method}.centers"
        if not len(ids):
            found = f"{name}: {count} rows asked, and there are none left to choose from"
            if not settings.allow_fewer:
                raise DataError(f"{found}. Move the threshold before it, or set {section}.allow_fewer=true.")
            run.console.note(found)
            write_centers(ids, folder)
            return chosen_rows(run, rows, ids, count, folder, {})
        with run.progress(count, "centres") as bar:
            report = cover(
                run.files(vectors, "answers"),
                count,
                settings,
                for_role(config, "embed").resources,
                folder=folder,
                seed=config.seed,
                initial=taken if apart and beside else None,
                among=ids,
                progress=bar,
                section=section,
            )
        for note in report.notes:
            run.console.note(f"{name}: {note}")
        return chosen_rows(run, rows, report.ids, count, folder, report.values)

    decides = {"centers": settings, "count": count, "seed": config.seed, "apart": apart}
    inputs = {"rows": rows.fingerprint, "vectors": vectors.fingerprint}
    return run.stage(name, decides, inputs | ({"beside": beside.fingerprint} if beside else {}), body)


def chosen_rows(
    run: Run, rows: Manifest, ids: np.ndarray, asked: int, folder: Location, values: dict[str, Any]
) -> StageResult:
    """The result of a stage that chose these rows, apart from `centers.parquet`."""
    return StageResult(
        files={"centers": ["centers.parquet"], "rows": write_rows(run.files(rows, "rows"), ids, folder)},
        counts={"rows_in": rows.counts["kept"], "kept": len(ids), "asked": asked},
        values=values,
        rows=rows.counts["kept"],
    )


def write_centers(ids: np.ndarray, folder: Location) -> None:
    """Write rows that no k-center chose, in the form in which `cover` writes its centres."""
    table = pa.table({ID: ids, RANK: np.arange(1, len(ids) + 1), RADIUS: pa.nulls(len(ids), pa.float64())})
    pq.write_table(table, (folder / "centers.parquet").path, filesystem=folder.fs)


def rows_without_vector(run: Run, vectors: Manifest) -> np.ndarray:
    """Ids of the rows whose embedding failed."""
    answers = read_chunks(run.files(vectors, "answers"), [ID, ERROR])
    return np.concatenate([np.empty(0, np.int64), *(c.filter(c[ERROR].is_valid())[ID].to_numpy() for c in answers)])


def order_centers(run: Run, rows: Manifest, vectors: Manifest, chosen: Manifest) -> Manifest:
    """The centres in their order, and every other row marked as none."""

    def body(folder: Location) -> StageResult:
        ids = read_ids(run.files(rows, "rows"))
        radii = read_numbers(run.files(chosen, "centers"), RADIUS, RADIUS)
        table = place_centers(ids, radii, rows_without_vector(run, vectors))
        pq.write_table(table, (folder / "scores.parquet").path, filesystem=folder.fs, compression="zstd")
        counts = {"rows_in": len(table), "kept": chosen.counts["kept"]}
        return StageResult(files={"scores": ["scores.parquet"]}, counts=counts, rows=len(table))

    manifest = run.stage("order", {}, {"rows": rows.fingerprint, "centers": chosen.fingerprint}, body)
    publish(run.files(manifest, "scores")[0], run.folder / "scores.parquet")
    return manifest

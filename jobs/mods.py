"""The stages of MoDS, of which its two yardsticks share the first: quality, thresholds, embeddings, centres, necessity.

Each is a call of `Run.stage` (see `stages.py`). Rows that a stage sets aside keep their scores in its tables, and the last
stage, `order`, says of every row of the pool what became of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysift.actors.contract import RowActor
from raysift.actors.embedder import Embedder
from raysift.actors.generator import ANSWER, FINISHED
from raysift.actors.ifd import Ifd
from raysift.actors.judge import Judge
from raysift.actors.reward import Reward
from raysift.config import CommonConfig
from raysift.coverage_settings import CoverageSettings
from raysift.jobs.run import Run, StageResult
from raysift.jobs.selection import rows_in_order
from raysift.jobs.stages import model_fingerprint, trained_model
from raysift.jobs.tables import count_answers, publish, read_chunks, relative
from raysift.manifest import Manifest
from raysift.methods import Selector
from raysift.methods.coverage import place_centers
from raysift.methods.mods import CHOSEN, NECESSITY, QUALITY, ModsConfig, Stages, place_rows
from raysift.quality_columns import SCORE_COLUMN, TRUNCATED
from raysift.quality_settings import EmbeddingSettings, QualitySettings, Threshold
from raysift.questions import split_exchange
from raysift.records import ERROR, FATE, ID, MESSAGES, ORDER, RADIUS, RANK, ROWS
from raysift.storage import Location
from raysift.thresholds import Cut, cut_above, cut_below, describe_cut, describe_scale, gather_scores, histogram

SCORERS: dict[str, type[RowActor]] = {"reward": Reward, "judge": Judge, "ifd": Ifd}


def quality(run: Run, config: CommonConfig, settings: QualitySettings, rows: Manifest) -> Manifest:
    """Score every row's own answer, on a pool of actors."""

    def body(folder: Location) -> StageResult:
        return _scored("quality", run, config, settings, run.files(rows, "rows"), rows.counts["kept"], folder)

    inputs = {"rows": rows.fingerprint, "scorer": model_fingerprint(settings.scorer)}
    return run.stage("quality", {"scorer": settings}, inputs, body)


def keep(
    run: Run, name: str, threshold: Threshold, side: str, rows: Manifest, scored: Manifest, column: str
) -> Manifest:
    """The rows strictly beyond a bar, as files of their own; the bar, and how scores lie, are in the manifest."""

    def body(folder: Location) -> StageResult:
        files = run.files(scored, "answers")
        scores, unscored = gather_scores(chunk[column] for chunk in read_chunks(files, [column]))
        cut = (cut_above if side == "above" else cut_below)(scores, threshold, unscored)
        for warning in [*describe_scale(name, scores), *describe_cut(name, cut, threshold)]:
            run.console.note(warning)
        passing = _passing_ids(files, column, cut)
        names = _write_rows(run.files(rows, "rows"), passing, folder)
        counts = {"rows_in": cut.passed + cut.failed + unscored, "kept": cut.passed, "failed": unscored}
        return StageResult(
            files={"rows": names},
            counts=counts | {"rejected": {f"not {side} the threshold": cut.failed}},
            values={"cut": cut.as_dict(), "histogram": [vars(bin) for bin in histogram(scores)]},
            rows=counts["rows_in"],
        )

    inputs = {"rows": rows.fingerprint, "scores": scored.fingerprint}
    return run.stage(name, {"threshold": threshold, "side": side, "column": column}, inputs, body)


def embed(run: Run, config: CommonConfig, settings: EmbeddingSettings, rows: Manifest) -> Manifest:
    """A vector for every row, on a pool of actors."""
    from raysift.jobs.raydata import map_rows

    def body(folder: Location) -> StageResult:
        arguments = {"settings": settings} | _loading(config)
        files = run.files(rows, "rows")
        answers = map_rows(files, Embedder, arguments, folder, config.resources, progress=run.console.shows_progress)
        counts = count_answers("embed", answers, rows.counts["kept"]) | {"truncated": _count_true(answers, TRUNCATED)}
        return StageResult(files={"answers": relative(answers, folder)}, counts=counts, rows=counts["rows_in"])

    inputs = {"rows": rows.fingerprint, "encoder": model_fingerprint(settings.model)}
    return run.stage("embed", {"embedding": settings}, inputs, body)


def centers(
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
    """Cover the rows by `count` of them, or all there are; those of `beside` are not taken again and, if `apart`, count as
    centres that are there already."""
    from raysift.jobs.coverage import cover

    def body(folder: Location) -> StageResult:
        ids, taken = _ids(run.files(rows, "rows")), np.empty(0, np.int64)
        if beside:
            taken = _ids(run.files(beside, "centers"))
            ids = np.setdiff1d(ids, taken)
        if not len(ids):
            _write_centers(ids, folder)
            return _chosen(run, name, rows, ids, count, folder, {})
        report = cover(
            run.files(vectors, "answers"),
            count,
            settings,
            config.resources,
            folder=folder,
            seed=config.seed,
            initial=taken if apart and beside else None,
            among=ids,
        )
        for note in report.notes:
            run.console.note(f"{name}: {note}")
        return _chosen(run, name, rows, report.ids, count, folder, report.values)

    decides = {"centers": settings, "count": count, "seed": config.seed, "apart": apart}
    inputs = {"rows": rows.fingerprint, "vectors": vectors.fingerprint}
    return run.stage(name, decides, inputs | ({"beside": beside.fingerprint} if beside else {}), body)


def augment(
    run: Run,
    config: CommonConfig,
    settings: ModsConfig,
    needed: Manifest,
    vectors: Manifest,
    seeds: Manifest,
    count: int,
) -> Manifest:
    """The needed rows that are taken beside the seeds: `count` by k-center, or all of them (`second_coverage` off)."""
    if settings.second_coverage:
        apart = settings.second_from == "seeds"
        return centers(run, config, "augmented", settings.centers, needed, vectors, count, seeds, apart)

    def body(folder: Location) -> StageResult:
        ids = np.setdiff1d(_ids(run.files(needed, "rows")), _ids(run.files(seeds, "centers")))
        _write_centers(ids, folder)
        return _chosen(run, "augmented", needed, ids, len(ids), folder, {})

    return run.stage(
        "augmented", {"second_coverage": False}, {"needed": needed.fingerprint, "seeds": seeds.fingerprint}, body
    )


def _chosen(
    run: Run, name: str, rows: Manifest, ids: np.ndarray, asked: int, folder: Location, values: dict[str, Any]
) -> StageResult:
    """What a stage that chose these rows leaves, `centers.parquet` aside."""
    if len(ids) < asked:
        run.console.note(
            f"{name}: {asked} rows asked, {len(ids)} given: there are no more different ones to choose from"
        )
    return StageResult(
        files={"centers": ["centers.parquet"], "rows": _write_rows(run.files(rows, "rows"), ids, folder)},
        counts={"rows_in": rows.counts["kept"], "kept": len(ids), "asked": asked},
        values=values,
        rows=rows.counts["kept"],
    )


def generate(run: Run, config: CommonConfig, settings: ModsConfig, rows: Manifest, tuned: Manifest) -> Manifest:
    """Let the model that was tuned on the seeds answer the question of every good row."""
    from raysift.jobs.generation import generate as answer_all
    from raysift.jobs.generation import recorded_backend

    model, adapter = trained_model(run, tuned, config.model)

    def body(folder: Location) -> StageResult:
        answers = answer_all(
            run.files(rows, "rows"),
            model,
            folder,
            settings.generation,
            config.resources,
            adapter=adapter,
            trust_remote_code=config.trust_remote_code,
            progress=run.console.shows_progress,
        )
        backend = recorded_backend(folder)
        run.console.note(f"generate: answered by {backend['backend']} {backend['version']}")
        counts = count_answers("generate", answers, rows.counts["kept"])
        cut_off = counts["kept"] - _count_true(answers, FINISHED)
        if cut_off:
            run.console.note(
                f"generate: {cut_off} of {counts['kept']} answers reached max_new_tokens="
                f"{settings.generation.max_new_tokens} and were cut off"
            )
        return StageResult(
            files={"answers": relative(answers, folder)},
            counts=counts | {"cut_off": cut_off},
            values=backend,
            rows=counts["rows_in"],
        )

    inputs = {"rows": rows.fingerprint, "model": model_fingerprint(config.model), "tuned": tuned.fingerprint}
    return run.stage("generate", {"generation": settings.generation}, inputs, body)


def necessity(run: Run, config: CommonConfig, settings: ModsConfig, rows: Manifest, answers: Manifest) -> Manifest:
    """Score the model's own answers as the rows' were scored; a row without one has no necessity."""
    scorer = settings.scorer.model_copy(update={"trailing_newline": settings.necessity_newline})

    def body(folder: Location) -> StageResult:
        asked, failed = _own_conversations(run.files(rows, "rows"), run.files(answers, "answers"), folder)
        result = _scored("necessity", run, config, scorer, asked, rows.counts["kept"] - failed, folder)
        counts = {**result.counts, "rows_in": rows.counts["kept"], "failed": result.counts["failed"] + failed}
        return StageResult(files=result.files, counts=counts, rows=rows.counts["kept"])

    inputs = {"rows": rows.fingerprint, "answers": answers.fingerprint, "scorer": model_fingerprint(scorer.scorer)}
    return run.stage("necessity", {"scorer": scorer}, inputs, body)


def score_column(settings: Any) -> str:
    """The column of the scorer's answers that counts."""
    return SCORE_COLUMN[settings.scorer.kind]


def order_centers(run: Run, rows: Manifest, chosen: Manifest) -> Manifest:
    """The centres in their order, and of every other row that it is none."""

    def body(folder: Location) -> StageResult:
        ids = _ids(run.files(rows, "rows"))
        table = place_centers(ids, _named(run.files(chosen, "centers"), RADIUS, RADIUS))
        pq.write_table(table, (folder / "scores.parquet").path, filesystem=folder.fs, compression="zstd")
        counts = {"rows_in": len(table), "kept": chosen.counts["kept"]}
        return StageResult(files={"scores": ["scores.parquet"]}, counts=counts, rows=len(table))

    manifest = run.stage("order", {}, {"rows": rows.fingerprint, "centers": chosen.fingerprint}, body)
    publish(run.files(manifest, "scores")[0], run.folder / "scores.parquet")
    return manifest


def order(
    run: Run,
    selector: Selector,
    scored: Manifest,
    good: Manifest,
    seeds: Manifest,
    needed: Sequence[Manifest] = (),
) -> Manifest:
    """Seeds, then augmented rows, and of every row what became of it; `needed`: necessity, needed rows, augmented rows."""
    settings: Any = selector.config
    column = score_column(settings)

    def body(folder: Location) -> StageResult:
        found = Stages(
            _named(run.files(scored, "answers"), column, QUALITY),
            _ids(run.files(good, "rows")),
            _named(run.files(seeds, "centers"), RADIUS, RADIUS),
        )
        if needed:
            answers, unknown, augmented = needed
            found = replace(
                found,
                necessity=_named(run.files(answers, "answers"), column, NECESSITY),
                needed=_ids(run.files(unknown, "rows")),
                augmented=_named(run.files(augmented, "centers"), RADIUS, RADIUS),
            )
        table = place_rows(found)
        pq.write_table(table, (folder / "scores.parquet").path, filesystem=folder.fs, compression="zstd")
        fates = dict(sorted(Counter(table[FATE].to_pylist()).items()))
        chosen = len(table) - table[ORDER].null_count
        return StageResult(
            files={"scores": ["scores.parquet"]},
            counts={
                "rows_in": len(table),
                "kept": chosen,
                "rejected": {k: n for k, n in fates.items() if k not in CHOSEN},
            },
            values={"fates": fates},
            rows=len(table),
        )

    parts = {"quality": scored, "good": good, "seeds": seeds}
    parts |= dict(zip(("necessity", "needed", "augmented"), needed, strict=False))
    manifest = run.stage("order", {"method": selector.name}, {name: m.fingerprint for name, m in parts.items()}, body)
    publish(run.files(manifest, "scores")[0], run.folder / "scores.parquet")
    return manifest


def _scored(
    stage: str,
    run: Run,
    config: CommonConfig,
    settings: QualitySettings,
    files: Sequence[Location],
    expected: int,
    folder: Location,
) -> StageResult:
    """Every row of the files, scored by the actor of that kind."""
    from raysift.jobs.raydata import map_rows

    arguments = {"model": settings.scorer, "max_length": settings.max_length} | _loading(config)
    part: Any = settings if settings.kind == "reward" else getattr(settings, settings.kind)
    answers = map_rows(
        files,
        SCORERS[settings.kind],
        arguments | {"settings": part},
        folder,
        config.resources,
        progress=run.console.shows_progress,
    )
    counts = count_answers(stage, answers, expected) | {"truncated": _count_true(answers, TRUNCATED)}
    if counts["truncated"]:
        run.console.note(
            f"{stage}: {counts['truncated']} of {expected} rows were longer than the scorer reads, and cut"
        )
    return StageResult(files={"answers": relative(answers, folder)}, counts=counts, rows=expected)


def _loading(config: CommonConfig) -> dict[str, Any]:
    """Where an actor loads its model, and whether code that ships with it may run."""
    resources = config.resources
    return {
        "device": resources.device,
        "threads": resources.threads,
        "trust_remote_code": config.trust_remote_code,
    }


def _own_conversations(
    rows: Sequence[Location], answers: Sequence[Location], folder: Location
) -> tuple[list[Location], int]:
    """The rows with the model's own answer in place of theirs, as files, and how many have none."""
    parts = (folder / "conversations").make_folder()
    files: list[Location] = []
    failed = 0
    for chunk in read_chunks(answers, [ID, ANSWER, ERROR]):
        sound = chunk.filter(chunk[ERROR].is_null())
        failed += len(chunk) - len(sound)
        own = sound[ANSWER].to_pylist()
        done = 0
        for table in rows_in_order(rows, sound[ID].to_numpy()):
            texts = own[done : done + len(table)]
            talks = [
                split_exchange(m, text).messages for m, text in zip(table[MESSAGES].to_pylist(), texts, strict=True)
            ]
            place = parts / f"part-{len(files):05d}.parquet"
            columns = {ID: table[ID], MESSAGES: pa.array(talks, ROWS.field(MESSAGES).type)}
            pq.write_table(pa.table(columns), place.path, filesystem=place.fs, compression="zstd")
            files.append(place)
            done += len(table)
    return files, failed


def _write_rows(files: Sequence[Location], ids: np.ndarray, folder: Location) -> list[str]:
    """The rows of these ids, in their order, as files in the folder; gives their names."""
    names = []
    for number, table in enumerate(rows_in_order(files, ids)):
        place = folder / f"rows-{number:05d}.parquet"
        pq.write_table(table, place.path, filesystem=place.fs, compression="zstd")
        names.append(place.name)
    return names


def _write_centers(ids: np.ndarray, folder: Location) -> None:
    """Rows that no k-center chose, in the form in which `cover` writes its centres."""
    table = pa.table({ID: ids, RANK: np.arange(1, len(ids) + 1), RADIUS: pa.nulls(len(ids), pa.float64())})
    pq.write_table(table, (folder / "centers.parquet").path, filesystem=folder.fs)


def _ids(files: Sequence[Location]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int64), *(chunk[ID].to_numpy() for chunk in read_chunks(files, [ID]))])


def _passing_ids(files: Sequence[Location], column: str, cut: Cut) -> np.ndarray:
    """Ids whose score is beyond the bar, in rising order."""
    found = [np.empty(0, np.int64)]
    for chunk in read_chunks(files, [ID, column]):
        scored = chunk.filter(chunk[column].is_valid())
        found.append(scored[ID].to_numpy()[cut.passes(scored[column].to_numpy())])
    return np.sort(np.concatenate(found))


def _named(files: Sequence[Location], column: str, name: str) -> pa.Table:
    """Ids and one column, under the name that the engine knows it by, in the order of the files."""
    schema = pa.schema([(ID, pa.int64()), (name, pa.float64())])
    parts = [
        pa.table([chunk[ID], chunk[column].cast(pa.float64())], schema=schema)
        for chunk in read_chunks(files, [ID, column])
    ]
    return pa.concat_tables([schema.empty_table(), *parts]).combine_chunks()


def _count_true(files: Sequence[Location], column: str) -> int:
    return sum(pc.sum(chunk[column]).as_py() or 0 for chunk in read_chunks(files, [column]))

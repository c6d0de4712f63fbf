"""Stages for RAISE's inputs: the difficulty of each row, and the features computed from difficulty and vectors.

The fit uses at most `fit_rows` rows, those whose ids hash lowest. Vectors are read in Ray tasks, SHARD_BYTES of them each. The
driver has sums over them, which are exact whatever the shards, and the 4 + k features of each row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from raysift.actors.difficulty import Difficulty
from raysift.config import CommonConfig
from raysift.draws import seed_for, uniform_of
from raysift.errors import ConfigError, DataError, StageError
from raysift.fingerprint import canonical, differences, file_fingerprint
from raysift.ids import is_among
from raysift.jobs.runs.models import computing, find_model
from raysift.jobs.runs.run import Run, StageResult
from raysift.jobs.runs.tables import count_answers, count_true, read_chunks, relative
from raysift.jobs.stages import loading
from raysift.kcenter.distances import Vectors
from raysift.manifest import Manifest
from raysift.policy.features import (
    DIFFICULTY,
    FittedFeatures,
    Transformed,
    difficulty_block,
    fitted_on,
    input_names,
    load_fitted,
    save_fitted,
    transform,
)
from raysift.policy.pool import PolicyPool, write_pool
from raysift.policy.semantic import Components, Matrix, Range, Sums, components_of, project
from raysift.policy.settings import FeatureSettings
from raysift.records import ERROR, ID
from raysift.scoring.columns import ANSWER_TOKENS, LOGPROB_ALONE, LOGPROB_GIVEN, PROMPT_TOKENS, TRUNCATED
from raysift.scoring.embeddings import EmbeddingTable, RowGroup, deal, read_embeddings, survey
from raysift.settings.resources import Resources
from raysift.storage import Location
from raysift.topk import Ids

SHARD_BYTES = 2**28
"""Vectors that a task has in memory."""
MEASURES = (PROMPT_TOKENS, ANSWER_TOKENS, LOGPROB_GIVEN, LOGPROB_ALONE)


class Known(NamedTuple):
    """The rows with both a difficulty and a vector, by rising id."""

    ids: Ids
    difficulty: Matrix


def difficulty(run: Run, config: CommonConfig, settings: FeatureSettings, rows: Manifest) -> Manifest:
    """Lengths and log-probabilities of every row under the auxiliary model, on a pool of actors."""
    from raysift.jobs.on_ray.fitting import need_to_answer, with_room
    from raysift.jobs.on_ray.raydata import map_rows

    decides = {"template": settings.template, "max_length": settings.max_length}
    model = find_model(run, config, settings.model)

    def body(folder: Location) -> StageResult:
        def work(own: CommonConfig) -> list[Location]:
            arguments = {"model": model.name} | decides | loading(own, model.name)
            files, total = run.files(rows, "rows"), rows.counts["kept"]
            return map_rows(files, Difficulty, arguments, folder, own.resources, rows=total, progress=run.progress)

        answers = with_room(run, "difficulty", config, need_to_answer(config, model.name), work, "score", model.name)
        expected = rows.counts["kept"]
        counts = count_answers("difficulty", answers, expected) | {"truncated": count_true(answers, TRUNCATED)}
        if counts["truncated"]:
            run.console.note(
                f"difficulty: {counts['truncated']} of {expected} answers were longer than the auxiliary model reads, and cut"
            )
        return StageResult(files={"answers": relative(answers, folder)}, counts=counts, rows=expected)

    inputs = {"rows": rows.fingerprint, "model": computing(config, model)}
    return run.stage("difficulty", decides, inputs, body)


def features(
    run: Run,
    config: CommonConfig,
    settings: FeatureSettings,
    classes: int,
    rows: Manifest,
    measured: Manifest,
    vectors: Manifest,
    fitted: Location | None = None,
) -> Manifest:
    """The features and class of every row that has both a difficulty and a vector.

    The fit is made here, unless `fitted` gives the `fitted.safetensors` of another pool's features. Its components and
    classes then override the settings.
    """
    origin = origin_of(settings, measured, vectors)

    def body(folder: Location) -> StageResult:
        answers, expected = run.files(measured, "answers"), rows.counts["kept"]
        table = survey(run.files(vectors, "answers"))
        known = read_known(answers, table.ids, settings)
        _check_counts(expected, measured, table, known)
        if fitted:
            fit, fit_rows = load_fitted(fitted), 0
            require_origin(fitted, fit, origin)
        else:
            sample = fit_sample(known.ids, settings.fit_rows, config.seed)
            fit, fit_rows = fit_all(sample, known, table, settings, classes, config, origin), len(sample)
        pool = transform_all(fit, known, table, config.resources)
        write_pool(folder / "features.parquet", pool)
        save_fitted(folder / "fitted.safetensors", fit)
        for note in _notes(settings, classes, fit, expected - len(pool)):
            run.console.note(f"features: {note}")
        return StageResult(
            files={"features": ["features.parquet"], "fitted": ["fitted.safetensors"]},
            counts={"rows_in": expected, "kept": len(pool), "failed": expected - len(pool)},
            values=describe(fit, pool) | {"fit_rows": fit_rows},
            rows=expected,
        )

    decides: dict[str, Any] = {"logprob": settings.logprob}
    inputs = {"rows": rows.fingerprint, "difficulty": measured.fingerprint, "vectors": vectors.fingerprint}
    if fitted:
        inputs["fitted"] = file_fingerprint(fitted)
    else:
        decides |= {"semantic_dimensions": settings.semantic_dimensions, "fit_rows": settings.fit_rows}
        decides |= {"classes": classes, "seed": config.seed}
    return run.stage("features", decides, inputs, body)


def origin_of(settings: FeatureSettings, measured: Manifest, vectors: Manifest) -> dict[str, Any]:
    """Models and settings that made the log-probabilities and vectors."""
    origin: dict[str, Any] = canonical(
        {
            "difficulty": {"model": measured.inputs["model"], "logprob": settings.logprob, **measured.settings},
            "embedding": {"model": vectors.inputs["encoder"], **vectors.settings["embedding"]},
        }
    )
    return origin


def require_origin(place: Location, fit: FittedFeatures, origin: dict[str, Any]) -> None:
    """Refuse a fit made with other models or settings, because its numbers are not comparable."""
    changed = differences(fit.origin, origin)
    if changed:
        raise ConfigError(
            f"features: {place} was fitted on rows measured otherwise; it has -> asked for here:\n  "
            + "\n  ".join(changed)
            + "\nMeasure and embed these rows as that pool's were."
        )


def read_known(answers: Sequence[Location], with_vector: Ids, settings: FeatureSettings) -> Known:
    """The rows measured without error that also have a vector."""
    ids, parts = [np.empty(0, np.int64)], [np.empty((0, DIFFICULTY))]
    for chunk in read_chunks(answers, [ID, *MEASURES, ERROR]):
        sound = chunk.filter(chunk[ERROR].is_null())
        mine = sound[ID].to_numpy()
        keep = is_among(mine, with_vector)
        ids.append(mine[keep])
        prompt, answer, given, alone = (sound[name].to_numpy()[keep] for name in MEASURES)
        parts.append(difficulty_block(prompt, answer, given, alone, settings))
    every = np.concatenate(ids)
    order = np.argsort(every, kind="stable")
    return Known(every[order], np.concatenate(parts)[order])


def fit_sample(ids: Ids, count: int, seed: int) -> Ids:
    """At most `count` of the ids, those that hash lowest, in rising order."""
    drawn = np.lexsort((ids, uniform_of(ids, seed_for(seed, "policy-fit"))))[:count]
    return np.sort(ids[drawn])


def fit_all(
    sample: Ids,
    known: Known,
    table: EmbeddingTable,
    settings: FeatureSettings,
    classes: int,
    config: CommonConfig,
    origin: dict[str, Any],
) -> FittedFeatures:
    """`fit_features` on the rows of the sample, whose vectors are read three times: for range, sums and scores."""
    resources, sums = config.resources, None
    grid = Range.joined(part for part in _over_shards(range_of, table, resources, sample) if part)
    for part in _over_shards(sums_of, table, resources, sample, grid):
        if sums is None:
            sums = part
        else:
            sums.add(part)
    assert sums is not None
    components = components_of(sums, settings.semantic_dimensions)
    scores = np.empty((len(sample), len(components.components)))
    for ids, found in _over_shards(scores_of, table, resources, sample, components):
        scores[np.searchsorted(sample, ids)] = found
    difficulty = known.difficulty[np.searchsorted(known.ids, sample)]
    return fitted_on(difficulty, components, scores, classes, config.seed, origin)


def transform_all(fit: FittedFeatures, known: Known, table: EmbeddingTable, resources: Resources) -> PolicyPool:
    """Features and classes of all known rows."""
    features = np.empty((len(known.ids), DIFFICULTY + fit.k), np.float32)
    classes, done = np.empty(len(known.ids), np.int32), 0
    for places, found in _over_shards(transform_shard, table, resources, known, fit):
        features[places], classes[places] = found
        done += len(places)
    if done != len(known.ids):
        raise StageError(f"features: {done} vectors read, {len(known.ids)} rows have one; the files are being changed.")
    return PolicyPool(known.ids, features, classes)


def range_of(pieces: list[RowGroup], dimension: int, sample: Ids) -> Range | None:
    """The range of the sample's vectors in these pieces; None if there are none."""
    vectors = _sampled(pieces, dimension, sample)[1]
    return Range.of(vectors) if len(vectors) else None


def sums_of(pieces: list[RowGroup], dimension: int, sample: Ids, grid: Range) -> Sums:
    """Sums over the sample's vectors in these pieces."""
    return Sums.of(grid, _sampled(pieces, dimension, sample)[1])


def scores_of(pieces: list[RowGroup], dimension: int, sample: Ids, components: Components) -> tuple[Ids, Matrix]:
    """Ids and scores of the sample's rows in these pieces."""
    ids, vectors = _sampled(pieces, dimension, sample)
    return ids, project(components, vectors)


def transform_shard(
    pieces: list[RowGroup], dimension: int, known: Known, fit: FittedFeatures
) -> tuple[np.ndarray, Transformed]:
    """Places of the rows in these pieces among the known ones, and their features and classes."""
    ids, vectors = _sampled(pieces, dimension, known.ids)
    places = np.searchsorted(known.ids, ids)
    return places, transform(fit, known.difficulty[places], vectors)


def _sampled(pieces: list[RowGroup], dimension: int, wanted: Ids) -> tuple[Ids, Vectors]:
    return read_embeddings(pieces, dimension, lambda some: is_among(some, wanted))


def _over_shards(
    work: Callable[..., Any], table: EmbeddingTable, resources: Resources, *arguments: Any
) -> Iterator[Any]:
    """What `work` makes of each shard of the table; a single one is done here."""
    shards = [own for own in deal(table.pieces, max(1, -(-table.bytes // SHARD_BYTES))) if own]
    if len(shards) == 1:
        yield work(shards[0], table.dimension, *arguments)
        return
    import ray

    from raysift.jobs.on_ray.ray_tasks import run_tasks

    shared = [ray.put(argument) for argument in arguments]
    tasks = [(own, table.dimension, *shared) for own in shards]
    for _, found in run_tasks(work, tasks, resources, "features: shards of vectors"):
        yield found


def describe(fit: FittedFeatures, pool: PolicyPool) -> dict[str, Any]:
    """The manifest's values for a fit and the pool it was applied to."""
    return {
        "inputs": input_names(fit.k),
        "difficulty_mean": fit.difficulty_mean.tolist(),
        "difficulty_std": fit.difficulty_std.tolist(),
        "semantic_scale": fit.semantic_scale,
        "explained_variance": fit.semantic.explained.tolist(),
        "class_sizes": np.bincount(pool.classes, minlength=len(fit.centroids)).tolist(),
        "pool_mean": pool.features.mean(axis=0, dtype=np.float64).tolist(),
        "pool_std": pool.features.std(axis=0, dtype=np.float64).tolist(),
        "origin": fit.origin,
    }


def _check_counts(expected: int, measured: Manifest, table: EmbeddingTable, known: Known) -> None:
    embedded = len(table.ids) + table.failed
    if not measured.counts["rows_in"] == embedded == expected:
        raise StageError(
            f"features: {measured.counts['rows_in']} rows were measured and {embedded} embedded, ingest kept {expected}; "
            "these are stages of different pools."
        )
    if not len(known.ids):
        raise DataError(
            f"features: none of {expected} rows has both a difficulty ({measured.counts['failed']} failed) and a vector "
            f"({table.failed} failed). The answers of both stages give the reason of each row."
        )


def _notes(settings: FeatureSettings, classes: int, fit: FittedFeatures, lost: int) -> Iterator[str]:
    if lost:
        yield f"{lost} rows without a difficulty or a vector were left out; no policy will pick them"
    if fit.k != settings.semantic_dimensions:
        yield f"{fit.k} semantic dimensions instead of {settings.semantic_dimensions}"
    if len(fit.centroids) != classes:
        yield f"{len(fit.centroids)} classes instead of {classes}"

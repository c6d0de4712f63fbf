"""The stages that ROSE and LESS share: warm-up on a random share, target gradients, row gradients, influence.

Row gradients are matched at once (`matching: exact`), or stored and reduced (`matching: store`, see `store.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysift.actors.checkpointed import Checkpoint, find_moments
from raysift.actors.row_gradients import MATCHES, GradientMatch, rows_to_sort
from raysift.actors.train_checkpoints import EPOCH_RECORD, EpochRecord
from raysift.config import CommonConfig
from raysift.draws import seed_for, uniform_of
from raysift.errors import ConfigError, StageError
from raysift.gradients.influence import TargetColumns, aggregate_subtasks, checkpoint_weights
from raysift.gradients.null import WHOLE as WHOLE_NULL
from raysift.gradients.null import stands_above
from raysift.gradients.null_columns import NO_ROWS, NullColumns
from raysift.jobs import stages
from raysift.jobs.gradients.null import NULL, NULL_FILE, hold_against_null, null_rows, weigh
from raysift.jobs.gradients.room import exact_room, warmup_recipe
from raysift.jobs.runs.chosen_rows import write_rows
from raysift.jobs.runs.models import find_model
from raysift.jobs.runs.run import Run, StageResult
from raysift.jobs.runs.tables import count_answers, count_true, publish, read_chunks, read_ids, relative
from raysift.manifest import Manifest
from raysift.methods import Selector
from raysift.methods.gradient import GradientConfig
from raysift.records import ABOVE_NULL, ERROR, ID, SCORE
from raysift.settings.gradients import MatchSettings, ProjectionSettings
from raysift.settings.resources import Resources
from raysift.storage import Location, open_location
from raysift.store.gradient_store import CUT
from raysift.topk import top_k

WHOLE = ProjectionSettings(kind="none")


def warmup_rows(run: Run, config: CommonConfig, settings: GradientConfig, rows: Manifest) -> Manifest:
    """A random share of the pool, drawn apart from `uniform`: the same seed gives other rows."""

    def body(folder: Location) -> StageResult:
        files = run.files(rows, "rows")
        ids = read_ids(files)
        count = max(1, int(settings.warmup_share * len(ids)))
        chosen, _ = top_k(ids, uniform_of(ids, seed_for(config.seed, "warm-up")), count)
        names = write_rows(files, chosen, folder)
        return StageResult(files={"rows": names}, counts={"rows_in": len(ids), "kept": count}, rows=len(ids))

    chosen = {"share": settings.warmup_share, "seed": config.seed}
    return run.stage("warmup_rows", chosen, {"rows": rows.fingerprint}, body)


def warmup(run: Run, config: CommonConfig, settings: GradientConfig, rows: Manifest) -> Manifest:
    """Fine-tune on the random share; every epoch leaves a checkpoint to take gradients at."""
    train = warmup_recipe(config, settings)
    if train.method != "lora":
        raise ConfigError(
            f"config: '{config.method}.warmup.method' is '{train.method}': row gradients are those of a LoRA adapter. "
            "Set it to lora; the final training (train.method) may be full."
        )
    adam = settings.adam
    if adam.form != "none" and (adam.beta1, adam.beta2) != (train.adam_beta1, train.adam_beta2):
        run.console.note(
            f"warmup: trains with Adam's betas {train.adam_beta1:g} and {train.adam_beta2:g}, directions take "
            f"{adam.beta1:g} and {adam.beta2:g} ({config.method}.adam): they are not the steps of this training."
        )
    return stages.finetune(run, config.model_copy(update={"train": train}), rows, "warmup")


def checkpoints_of(run: Run, trained: Manifest, last: int | None) -> list[Checkpoint]:
    """Checkpoints of the warm-up with their moments and recorded learning rates; only the `last` ones if given."""
    if given := trained.values.get("given"):
        found = [_given_checkpoint(open_location(trained.values["source"]), **point) for point in given]
    else:
        found = [_own_checkpoint(folder) for folder in run.files(trained, "epochs")]
    kept = found[-last:] if last else found
    if kept and not any(point.learning_rate for point in kept):
        raise ConfigError(
            f"warmup: the learning rate had fallen to 0 at {', '.join(point.name for point in kept)}, and it is a checkpoint's "
            "weight. Keep more checkpoints, or give an epoch more steps: a larger warmup_share, or a smaller warmup.batch_size."
        )
    return kept


def _own_checkpoint(folder: Location) -> Checkpoint:
    record = EpochRecord.model_validate_json((folder / EPOCH_RECORD).read_bytes())
    return Checkpoint(folder.name, folder / "adapter", find_moments(folder), record.mean_learning_rate)


def _given_checkpoint(
    source: Location, name: str, adapter: str, moments: str | None, learning_rate: float
) -> Checkpoint:
    return Checkpoint(name, source / adapter, source / moments if moments else None, learning_rate)


def gradients(
    run: Run, config: CommonConfig, settings: GradientConfig, rows: Manifest, trained: Manifest, target: Manifest
) -> Manifest:
    """One backward pass per row and checkpoint, matched with the targets at once; only cosines are written."""
    from raysift.jobs.on_ray.fitting import longest_row, with_room
    from raysift.jobs.on_ray.raydata import map_rows

    model, points = find_model(run, config), checkpoints_of(run, trained, settings.checkpoints)

    def body(folder: Location) -> StageResult:
        place = run.files(target, "targets")[0]
        arguments = {
            "model": model.name,
            "checkpoints": points,
            "adam": settings.adam,
            "targets": place.parent,
        }

        def match(own: CommonConfig) -> list[Location]:
            files, loaded = run.files(rows, "rows"), arguments | gradient_loading(own, settings)
            total = rows.counts["kept"]
            handed = handed_over(own.resources)
            return map_rows(files, GradientMatch, loaded, folder, handed, rows=total, progress=run.progress)

        columns = len(target.values["subtasks"]) * NullColumns.of(target.values).each
        longest = longest_row(run, rows, warmup_recipe(config, settings))
        need = exact_room(config, settings, model.name, len(points), columns, longest)
        answers = with_room(run, "gradients", config, need, match, "gradients")
        counts = count_answers("gradients", answers, rows.counts["kept"]) | {"truncated": count_true(answers, CUT)}
        return StageResult(files={"answers": relative(answers, folder)}, counts=counts, rows=counts["rows_in"])

    train = warmup_recipe(config, settings)
    decides: dict[str, Any] = {"adam": settings.adam, "template": train.template, "max_length": train.max_length}
    decides |= {"dtype": train.dtype, "quantization": train.quantization}
    inputs: dict[str, Any] = {"rows": rows.fingerprint, "warmup": trained.fingerprint, "targets": target.fingerprint}
    inputs |= {"model": model.identity}
    return run.stage("gradients", decides, inputs, body)


def influence(
    run: Run,
    config: CommonConfig,
    settings: GradientConfig,
    selector: Selector,
    rows: Manifest,
    trained: Manifest,
    target: Manifest,
    matched: Manifest,
) -> Manifest:
    """Weigh the checkpoints, reduce over subtasks: one score per row, and whether it stands above the null."""
    points = checkpoints_of(run, trained, settings.checkpoints)
    weights = checkpoint_weights([p.learning_rate for p in points])
    by_target = settings.match.target_weights or (1.0,)
    columns = TargetColumns(tuple(target.values["subtasks"]), tuple(target.values["target_of"]), by_target)

    null = NullColumns.of(target.values)

    def body(folder: Location) -> StageResult:
        def chunks() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
            return matches_of(run.files(matched, "answers"), len(points), len(columns.subtasks) * null.each)

        stands: dict[str, dict[str, Any]] = {}
        if null.usable:
            members = null_rows(run, target, null.columns)
            stands = hold_against_null(chunks(), weights, null, columns, settings.match.subtasks, members)
            (folder / NULL_FILE).write(json.dumps(stands))
        place, whole = folder / "scores.parquet", stands.get(WHOLE_NULL)
        written = failed = 0
        with pq.ParquetWriter(place.path, selector.score_schema(), filesystem=place.fs, compression="zstd") as writer:
            for ids, matches, unmatched in chunks():
                by_subtask, _ = weigh(matches, weights, null)
                own = score_table(selector.score_schema(), ids, by_subtask, columns, settings.match, whole)
                writer.write_table(own)
                writer.write_table(empty_scores(selector.score_schema(), unmatched))
                written, failed = written + len(ids), failed + len(unmatched)
        if written + failed != rows.counts["kept"]:
            raise StageError(f"influence: {written + failed} rows have a line, ingest kept {rows.counts['kept']}.")
        counts = {"rows_in": written + failed, "kept": written, "failed": failed}
        values = {"checkpoint_weights": weights.tolist(), "checkpoints": [p.name for p in points]}
        values["target_weights"] = list(by_target)
        why = null.why or ("" if whole else NO_ROWS)
        values[NULL] = {"kind": null.kind, "columns": null.columns, "why": why, "subtasks": list(columns.subtasks)}
        if whole:
            values[NULL] |= {"rows": whole["rows"], "above": whole["above"]}
        files = {"scores": ["scores.parquet"]} | ({NULL: [NULL_FILE]} if whole else {})
        return StageResult(files=files, counts=counts, values=values, rows=written)

    inputs = {"rows": rows.fingerprint, "matched": matched.fingerprint, "targets": target.fingerprint}
    decides = {"match": settings.match, "method": selector.name}
    manifest = run.stage("influence", decides, inputs, body, version=2)  # 2: says which rows stand above the null
    publish(run.files(manifest, "scores")[0], run.folder / "scores.parquet")
    return manifest


def matches_of(
    files: Sequence[Location], checkpoints: int, columns: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Ids and cosines (rows, checkpoints, columns) of the answered rows, and the ids of the failed ones."""
    for chunk in read_chunks(files, [ID, MATCHES, ERROR]):
        good = chunk.filter(chunk[ERROR].is_null()).combine_chunks()
        bad = chunk.filter(chunk[ERROR].is_valid())
        numbers = np.empty((0,), np.float32)
        if len(good):
            numbers = good[MATCHES].combine_chunks().flatten().flatten().to_numpy()
        yield good[ID].to_numpy(), numbers.reshape(len(good), checkpoints, columns), bad[ID].to_numpy()


def score_table(
    schema: pa.Schema,
    ids: np.ndarray,
    by_subtask: np.ndarray,
    columns: TargetColumns,
    match: MatchSettings,
    null: Mapping[str, Any] | None = None,
) -> pa.Table:
    """Scores of rows, with the subtask that each helps most, and how they stand against the null if there is one."""
    rule = "max" if match.subtasks == "round_robin" else match.subtasks
    scores = aggregate_subtasks(by_subtask, columns, rule)
    pulls = by_subtask * np.array([columns.weights[of] for of in columns.target_of])
    best = np.asarray(columns.subtasks, dtype=object)[pulls.argmax(axis=1)] if len(ids) else []
    found = {ID: ids, SCORE: scores, "subtask": pa.array(best, pa.string()), "by_subtask": list(by_subtask)}
    if ABOVE_NULL in schema.names:
        found[ABOVE_NULL] = stands_above(null, scores) if null else pa.nulls(len(ids), pa.bool_())
    return pa.table(found, schema=schema)


def empty_scores(schema: pa.Schema, ids: np.ndarray) -> pa.Table:
    """Entries for rows without a score: listed, but never chosen."""
    missing = {name: pa.nulls(len(ids), schema.field(name).type) for name in schema.names if name != ID}
    return pa.table({ID: ids, **missing}, schema=schema)


def handed_over(resources: Resources) -> Resources:
    """The resources with more rows for an actor at once: enough to sort by length."""
    rows = min(resources.block_rows, rows_to_sort(resources.tokens))
    return resources.model_copy(update={"batch_rows": max(resources.batch_rows, rows)})


def gradient_loading(config: CommonConfig, settings: GradientConfig) -> dict[str, Any]:
    """`stages.placing`, plus how the warm-up loaded the model and tokenized rows."""
    train = warmup_recipe(config, settings)
    own = {name: getattr(train, name) for name in ("template", "max_length", "dtype", "quantization")}
    return own | {"token_budget": config.resources.tokens} | stages.placing(config)

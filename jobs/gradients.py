"""The stages that ROSE and LESS share: warm-up on a random share, target gradients, row gradients, influence.

Row gradients are matched as they arise (`matching: exact`), or stored and reduced (`matching: store`, see `store.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysift.actors.checkpointed import Checkpoint, find_moments
from raysift.actors.row_gradients import MATCHES, GradientMatch
from raysift.actors.train_checkpoints import EPOCH_RECORD, EpochRecord
from raysift.config import CommonConfig
from raysift.errors import ConfigError, DataError, StageError
from raysift.examples import read_examples
from raysift.fingerprint import file_fingerprint
from raysift.formats import read_pairs
from raysift.gradient_settings import ProjectionSettings
from raysift.influence import TargetColumns, aggregate_subtasks, checkpoint_weights
from raysift.jobs import stages
from raysift.jobs.run import Run, StageResult
from raysift.jobs.selection import write_rows
from raysift.jobs.tables import count_answers, count_true, publish, read_chunks, read_ids, relative
from raysift.manifest import Manifest
from raysift.methods import Selector
from raysift.methods.gradient import GradientConfig
from raysift.methods.rose import Rose
from raysift.methods.uniform import seed_for, uniform_of
from raysift.recipes import TrainConfig
from raysift.records import ERROR, ID, SCORE, Pair
from raysift.storage import Location, open_location
from raysift.store import CUT
from raysift.topk import top_k

if TYPE_CHECKING:
    from raysift.actors.target_gradients import TargetGradients

WHOLE = ProjectionSettings(kind="none")


def warmup_rows(run: Run, config: CommonConfig, settings: GradientConfig, rows: Manifest) -> Manifest:
    """A random share of the pool, of its own draw: not the rows that `uniform` would take with the same seed."""

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
    return stages.finetune(run, config.model_copy(update={"train": train}), rows, "warmup")


def warmup_recipe(config: CommonConfig, settings: GradientConfig) -> TrainConfig:
    """How the adapter is trained, and with it how rows and targets become tokens for their gradients."""
    return settings.warmup or config.train


def checkpoints_of(run: Run, trained: Manifest, last: int | None) -> list[Checkpoint]:
    """The epochs of the warm-up, with their moments and recorded learning rates; only the last so many where asked."""
    found = []
    for folder in run.files(trained, "epochs"):
        record = EpochRecord.model_validate_json((folder / EPOCH_RECORD).read_bytes())
        found.append(Checkpoint(folder.name, folder / "adapter", find_moments(folder), record.mean_learning_rate))
    return found[-last:] if last else found


def read_targets(run: Run, config: CommonConfig, selector: Selector) -> tuple[list[Any], dict[str, int]]:
    """Preference pairs for ROSE, examples for LESS, with what was wrong with the others counted."""
    if not config.target:
        what = "preference pairs" if isinstance(selector, Rose) else "examples with a reference answer"
        raise ConfigError(f"config: 'target' is missing. {config.method} needs {what}: --target FILE...")
    if not isinstance(selector, Rose):
        examples = [e for path in config.target for e in read_examples(path, split=config.evaluate.split)]
        return examples, {}
    pairs: list[Pair] = []
    problems: dict[str, int] = {}
    for path in config.target:
        reader = read_pairs(path, keep_identical=True)  # they count as zeros, and are reported
        pairs.extend(reader)
        for reason, count in reader.problems.items():
            problems[reason] = problems.get(reason, 0) + count
            run.console.note(f"targets: {path}: {count} records give no pair: {reason}")
    if not pairs:
        raise DataError(f"targets: {', '.join(config.target)} hold no usable pair ({problems}).")
    return pairs, problems


def targets(
    run: Run, config: CommonConfig, settings: GradientConfig, selector: Selector, trained: Manifest
) -> Manifest:
    """The gradient of the target loss at each checkpoint, one vector per subtask."""
    points = checkpoints_of(run, trained, settings.checkpoints)
    projection = settings.projection if settings.matching == "store" else WHOLE
    train = warmup_recipe(config, settings)

    def body(folder: Location) -> StageResult:
        import ray

        members, problems = read_targets(run, config, selector)
        task = ray.remote(
            num_cpus=min(1.0, config.resources.cpus_per_worker),
            num_gpus=config.resources.gpus_per_worker,
            max_retries=2,
        )(_compute_targets)
        values = ray.get(task.remote(members, points, config, settings, projection, folder))
        for reason, count in values["set_aside"].items():
            run.console.note(f"targets: {count} of {len(members)}: {reason}")
        files = {"targets": [f"{point.name}.safetensors" for point in points], "members": ["members.json"]}
        counts = {"rows_in": len(members) + sum(problems.values()), "kept": len(members), "unreadable": problems}
        return StageResult(files=files, counts=counts | {"set_aside": values["set_aside"]}, values=values)

    files = [open_location(path) for path in config.target]
    inputs = {"target": [[place.name, file_fingerprint(place)] for place in files], "warmup": trained.fingerprint}
    decides: dict[str, Any] = {
        "projection": projection,
        "targets": settings.targets,
        "checkpoints": settings.checkpoints,
        "template": train.template,
        "max_length": train.max_length,
        "split": config.evaluate.split,
    }
    if isinstance(selector, Rose):
        decides |= {"preference": selector.config.preference, "end_prompt": selector.config.end_prompt}
    return run.stage("targets", decides, inputs, body)


def _compute_targets(
    members: Sequence[Any],
    points: Sequence[Checkpoint],
    config: CommonConfig,
    settings: GradientConfig,
    projection: ProjectionSettings,
    folder: Location,
) -> dict[str, Any]:
    """In a task of its own, for it needs the model: writes the vectors, gives what the manifest keeps."""
    from raysift.actors.target_gradients import TargetGradients, save_targets

    actor = TargetGradients(config.model, points, projection, **loading(config, settings))
    found = targets_by(actor, members, config, settings)
    save_targets(folder, points, found, actor.hash)
    account = {
        point.name: [vars(member) for member in target.members] for point, target in zip(points, found, strict=True)
    }
    (folder / "members.json").write(json.dumps(account))
    set_aside: dict[str, int] = {}
    for why in found[0].set_aside:
        set_aside[why.reason] = set_aside.get(why.reason, 0) + 1
    return {
        "subtasks": list(found[0].subtasks),
        "projection": actor.hash,
        "layout": actor.model.layout.hash,
        "parameters": actor.model.layout.total,
        "set_aside": set_aside,
        "mean_losses": [float(np.mean([member.loss for member in target.members])) for target in found],
    }


def targets_by(
    actor: TargetGradients,
    members: Sequence[Any],
    config: CommonConfig,
    settings: GradientConfig,
    keep_units: bool = False,
) -> list[Any]:
    """`raysift.preference.Targets` of each checkpoint, from pairs or from examples."""
    if not isinstance(members[0], Pair):
        return actor.from_examples(members, settings.targets, keep_units)
    rose = getattr(config, "rose")  # noqa: B009 - a section made by the registry of methods
    return actor.from_pairs(members, rose.preference, settings.targets, rose.end_prompt, keep_units)


def gradients(
    run: Run, config: CommonConfig, settings: GradientConfig, rows: Manifest, trained: Manifest, target: Manifest
) -> Manifest:
    """One backward pass per row and checkpoint, matched with the targets as it arises: nothing but cosines is written."""
    from raysift.jobs.raydata import map_rows

    points = checkpoints_of(run, trained, settings.checkpoints)

    def body(folder: Location) -> StageResult:
        place = run.files(target, "targets")[0]
        arguments = {
            "model": config.model,
            "checkpoints": points,
            "adam": settings.adam,
            "targets": Location(place.fs, place.path.rpartition("/")[0]),
        }
        answers = map_rows(
            run.files(rows, "rows"),
            GradientMatch,
            arguments | loading(config, settings),
            folder,
            config.resources,
            progress=run.console.shows_progress,
        )
        counts = count_answers("gradients", answers, rows.counts["kept"]) | {"truncated": count_true(answers, CUT)}
        return StageResult(files={"answers": relative(answers, folder)}, counts=counts, rows=counts["rows_in"])

    train = warmup_recipe(config, settings)
    decides = {"adam": settings.adam, "template": train.template, "max_length": train.max_length}
    inputs = {"rows": rows.fingerprint, "warmup": trained.fingerprint, "targets": target.fingerprint}
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
    """Weigh the checkpoints, reduce over subtasks: one score per row."""
    points = checkpoints_of(run, trained, settings.checkpoints)
    weights = checkpoint_weights([p.learning_rate for p in points], settings.match.renormalise_weights)
    columns = TargetColumns.single(target.values["subtasks"])

    def body(folder: Location) -> StageResult:
        place = folder / "scores.parquet"
        written = failed = 0
        with pq.ParquetWriter(place.path, selector.score_schema(), filesystem=place.fs, compression="zstd") as writer:
            for ids, matches, unmatched in matches_of(
                run.files(matched, "answers"), len(points), len(columns.subtasks)
            ):
                by_subtask = np.einsum("c,ncs->ns", weights, matches.astype(np.float64))
                writer.write_table(score_table(selector.score_schema(), ids, by_subtask, columns, settings))
                writer.write_table(empty_scores(selector.score_schema(), unmatched))
                written, failed = written + len(ids), failed + len(unmatched)
        if written + failed != rows.counts["kept"]:
            raise StageError(f"influence: {written + failed} rows have a line, ingest kept {rows.counts['kept']}.")
        counts = {"rows_in": written + failed, "kept": written, "failed": failed}
        values = {"checkpoint_weights": weights.tolist(), "checkpoints": [p.name for p in points]}
        return StageResult(files={"scores": ["scores.parquet"]}, counts=counts, values=values, rows=written)

    inputs = {"rows": rows.fingerprint, "matched": matched.fingerprint, "targets": target.fingerprint}
    manifest = run.stage("influence", {"match": settings.match, "method": selector.name}, inputs, body)
    publish(run.files(manifest, "scores")[0], run.folder / "scores.parquet")
    return manifest


def matches_of(
    files: Sequence[Location], checkpoints: int, subtasks: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Ids and cosines (rows, checkpoints, subtasks) of the answered rows, and the ids of the failed ones."""
    for chunk in read_chunks(files, [ID, MATCHES, ERROR]):
        good = chunk.filter(chunk[ERROR].is_null()).combine_chunks()
        bad = chunk.filter(chunk[ERROR].is_valid())
        numbers = np.empty((0,), np.float32)
        if len(good):
            numbers = good[MATCHES].combine_chunks().flatten().flatten().to_numpy()
        yield good[ID].to_numpy(), numbers.reshape(len(good), checkpoints, subtasks), bad[ID].to_numpy()


def score_table(
    schema: pa.Schema, ids: np.ndarray, by_subtask: np.ndarray, columns: TargetColumns, settings: GradientConfig
) -> pa.Table:
    """Scores of rows, with the subtask that each helps most."""
    rule = "max" if settings.match.subtasks == "round_robin" else settings.match.subtasks
    scores = aggregate_subtasks(by_subtask, columns, rule)
    best = np.asarray(columns.subtasks, dtype=object)[by_subtask.argmax(axis=1)] if len(ids) else []
    return pa.table(
        {ID: ids, SCORE: scores, "subtask": pa.array(best, pa.string()), "by_subtask": list(by_subtask)}, schema=schema
    )


def empty_scores(schema: pa.Schema, ids: np.ndarray) -> pa.Table:
    """Lines of rows that have no score: they are listed, and never chosen."""
    missing = {name: pa.nulls(len(ids), schema.field(name).type) for name in schema.names if name != ID}
    return pa.table({ID: ids, **missing}, schema=schema)


def loading(config: CommonConfig, settings: GradientConfig) -> dict[str, Any]:
    """What an actor needs to load the model, beside its name; where and how fast included."""
    train = warmup_recipe(config, settings)
    return {
        "template": train.template,
        "max_length": train.max_length,
        "dtype": train.dtype,
        "quantization": train.quantization,
        "token_budget": config.resources.tokens_per_pass,
        "device": config.resources.device,
        "threads": config.resources.threads,
        "trust_remote_code": config.trust_remote_code,
    }

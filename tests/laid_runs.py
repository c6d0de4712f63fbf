"""Runs laid out by hand, without Ray and without models: their rows and scores are made up, their choices are real."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysift.config import CommonConfig, make_config, make_selector
from raysift.jobs import stages
from raysift.jobs.runs.run import Run, StageResult
from raysift.jobs.runs.tables import publish, read_ids
from raysift.manifest import Manifest
from raysift.pool.row_ids import row_id
from raysift.records import ERROR, ID, KEPT_ROWS, REJECTED, Message

ANSWERS = pa.schema([(ID, pa.int64()), (ERROR, pa.string())])


def write(folder: Any, name: str, table: pa.Table) -> list[str]:
    pq.write_table(table, (folder / name).path)
    return [name]


def begin(path: Path | str, **settings: Any) -> tuple[Run, CommonConfig]:
    """A run with its settings written."""
    config, run = make_config(settings), Run(str(path))
    with run.replayable(config.model_dump(mode="json")):
        pass
    return run, config


def talk(number: int) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": f"say {number} <b>"},
        {"role": "assistant", "content": f"secret {number} " + "x" * number},
    ]


def id_of(number: int) -> int:
    return row_id([Message(**turn) for turn in talk(number)])


def lay_pool(run: Run, count: int, rejected: Sequence[dict[str, Any]] = ()) -> Manifest:
    """Rows `talk(0)` to `talk(count - 1)`, of sources a and b in turn."""

    def ingest(folder: Any) -> StageResult:
        rows = [
            {
                "id": id_of(k),
                "source": "ab"[k % 2],
                "messages": talk(k),
                "meta": json.dumps({"id": f"mine-{k}"}),
                "raw": None,
                "file": "pool.jsonl",
                "position": k + 1,
            }
            for k in range(count)
        ]
        files = {"rows": write(folder, "rows.parquet", pa.Table.from_pylist(rows, schema=KEPT_ROWS)), "rejected": []}
        if rejected:
            files["rejected"] = write(folder, "rejected.parquet", pa.Table.from_pylist(list(rejected), schema=REJECTED))
        (folder / "ingest.json").write(json.dumps({"layouts": {"pool.jsonl": "messages"}}))
        counts = {"rows_in": count + len(rejected), "kept": count, "rejected": {}, "failed": 0, "bad_files": []}
        by_source = {"a": -(-count // 2), "b": count // 2}
        return StageResult(files, counts, {"by_source": by_source}, rows=count)

    return run.stage("ingest", {}, {}, ingest)


def lay_answers(run: Run, stage: str, columns: dict[str, Any], ids: Sequence[int], **values: Any) -> Manifest:
    """A stage that answers row by row; a None in the first column is a failed row."""
    first = next(iter(columns.values()))
    errors = pa.array([None if value is not None else "no words" for value in first], pa.string())

    def body(folder: Any) -> StageResult:
        table = pa.table({ID: pa.array(ids, pa.int64()), **columns, ERROR: errors})
        counts = {"rows_in": len(ids), "kept": errors.null_count, "failed": len(ids) - errors.null_count}
        return StageResult({"answers": write(folder, "answers.parquet", table)}, counts, values)

    return run.stage(stage, {"made": "up"}, {}, body)


def lay_choice(
    run: Run, config: CommonConfig, rows: Manifest, scores: Manifest, tokens: Manifest | None = None
) -> Manifest:
    return stages.choose(run, config, make_selector(config), rows, scores, tokens)


def lay_lengths(run: Run, tokens: Sequence[int], chars: Sequence[int]) -> Manifest:
    ids = [id_of(k) for k in range(len(tokens))]
    columns = {"n_tokens": tokens, "n_response_tokens": tokens, "n_response_chars": chars}
    return lay_answers(run, "lengths", columns, ids)


def lay_yardstick(
    path: Path | str, method: str, budget: str, count: int = 40, rejected: Any = (), **settings: Any
) -> Run:
    """A finished run of uniform or longest."""
    run, config = begin(path, method=method, budget=budget, **settings)
    rows = lay_pool(run, count, rejected)
    lengths = lay_lengths(run, list(range(3, count + 3)), [9 + k for k in range(count)])
    selector = make_selector(config)
    scores = stages.score(run, config, selector, rows, lengths if selector.reads else None)
    lay_choice(run, config, rows, scores, lengths)
    return run


def lay_gradient(path: Path | str, by_subtask: np.ndarray, budget: str, **settings: Any) -> Run:
    """A finished run of LESS at two checkpoints of weights 0.25 and 0.75; its cosines at both are the scores."""
    from raysift.gradients.influence import TargetColumns
    from raysift.jobs.gradients.stages import score_table

    run, config = begin(path, method="less", budget=budget, target=["target.jsonl"], **settings)
    count, names = len(by_subtask), [f"task {i}" for i in range(by_subtask.shape[1])]
    rows, ids = lay_pool(run, count), np.array([id_of(k) for k in range(count)])
    cosines = [[line, line] for line in by_subtask.tolist()]
    matches = pa.array(cosines, pa.list_(pa.list_(pa.float32())))
    lay_answers(run, "gradients", {"matches": matches}, ids)
    targets = {"subtasks": names, "target_of": [0] * len(names), "parameters": 100, "mean_losses": [2.0, 1.5]}
    run.stage("targets", {"projection": {"kind": "none"}}, {"target": []}, lambda folder: StageResult(values=targets))
    selector = make_selector(config)

    def influence(folder: Any) -> StageResult:
        columns = TargetColumns.single(names)
        table = score_table(selector.score_schema(), ids, by_subtask, columns, selector.config.match)
        values = {"checkpoints": ["epoch-1", "epoch-2"], "checkpoint_weights": [0.25, 0.75], "target_weights": [1.0]}
        return StageResult({"scores": write(folder, "scores.parquet", table)}, {"failed": 0}, values)

    scores = run.stage("influence", {}, {}, influence)
    publish(run.files(scores, "scores")[0], run.folder / "scores.parquet")
    lay_choice(run, config, rows, scores)
    return run


def lay_mods(path: Path | str, count: int = 60, budget: str = "8", seed: int = 0, **mods: Any) -> Run:
    """A finished run of MoDS: quality, necessity and vectors are made up, bars and k-center are real."""
    from raysift.jobs.coverage import centers
    from raysift.jobs.scoring import mods as parts
    from raysift.jobs.scoring import quality
    from raysift.methods.mods import seed_count

    run, config = begin(path, method="mods", budget=budget, mods=mods)
    settings, selector = make_selector(config).config, make_selector(config)
    rng = np.random.default_rng(seed)
    rows, ids = lay_pool(run, count), np.array([id_of(k) for k in range(count)])
    judged = lay_answers(run, "quality", {"reward": [*rng.standard_normal(count - 1).round(3).tolist(), None]}, ids)
    good = quality.keep(run, "good", settings.alpha, "above", rows, judged, "reward", needed_by="mods.alpha")
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.float32(rng.standard_normal(count * 6))), 6)
    embedded = lay_answers(run, "embed", {"embedding": vectors}, ids)
    total = stages.count_rows(config, rows)
    seeds = centers.choose_centers(run, config, "seeds", settings.centers, good, embedded, seed_count(settings, total))
    known = np.isin(ids, read_ids(run.files(good, "rows")))
    own = rng.standard_normal(count).round(3)
    answered = lay_answers(run, "necessity", {"reward": own[known].tolist()}, ids[known])
    needed = quality.keep(run, "needed", settings.beta, "below", good, answered, "reward")
    left = total - seeds.counts["kept"]
    augmented = parts.augment(run, config, settings, needed, embedded, seeds, left)
    scores = parts.order(run, selector, judged, good, embedded, seeds, (answered, needed, augmented))
    lay_choice(run, config, rows, scores)
    return run


def lay_coverage(path: Path | str, count: int = 50, budget: str = "10", **coverage: Any) -> Run:
    """A finished run of coverage over made-up vectors."""
    from raysift.jobs.coverage import centers

    run, config = begin(path, method="coverage", budget=budget, coverage=coverage)
    rng = np.random.default_rng(1)
    rows, ids = lay_pool(run, count), np.array([id_of(k) for k in range(count)])
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.float32(rng.standard_normal(count * 5))), 5)
    embedded = lay_answers(run, "embed", {"embedding": vectors}, ids)
    settings = make_selector(config).config.centers
    chosen = centers.choose_centers(run, config, "centers", settings, rows, embedded, stages.count_rows(config, rows))
    lay_choice(run, config, rows, centers.order_centers(run, rows, embedded, chosen))
    return run

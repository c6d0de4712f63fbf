"""A program that uses the Python API; `make types` checks it as strictly as the package. Nothing runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_type

import pyarrow as pa

import raysift


def pipeline(pool: Path, records: list[dict[str, Any]], table: pa.Table) -> float | None:
    """Every public function, with rows of every kind that has types."""
    selection = raysift.less(
        pool, records, budget="5%", model="nano", seed=1, warmup_share=0.1, match={"subtasks": "mean"}
    )
    assert_type(selection, raysift.Selection)
    assert_type(raysift.uniform([pool, Path("more.jsonl")], reuse=selection, run=Path("runs/u")), raysift.Selection)
    assert_type(raysift.select("longest", table, fresh=True), raysift.Selection)
    assert_type(raysift.raise_(selection, records).ids, list[int])
    assert_type(list(selection.rows()), list[dict[str, Any]])

    run = raysift.load_run("runs/less")
    assert_type(run, raysift.Run)
    assert_type(run.selection, raysift.Selection)
    assert_type(run.evaluation, raysift.Evaluation | None)
    assert_type(run.settings, dict[str, Any])

    trained = raysift.finetune(selection, model="nano", test=records, train={"epochs": 1})
    assert_type(trained, raysift.Training)
    assert_type(trained.adapter, str | None)
    assert_type(trained.losses, list[tuple[int, float]])
    found = raysift.evaluate(records, adapter=trained)
    assert_type(found, raysift.Evaluation)

    compared = raysift.compare(pool, methods=["less", "rds"], target=records, test=records, seeds=2)
    assert_type(compared.verdicts, list[str])
    assert_type(raysift.compare(runs=[selection, run, "runs/x"], test="t.jsonl"), raysift.Comparison)
    assert_type(raysift.win_rate(records, against_adapter=trained).score, float)
    assert_type(raysift.search(pool, records).best, list[str])
    assert_type(raysift.rescore(run, records, run="runs/other", adam={"form": "textbook"}), raysift.Selection)
    assert_type(raysift.explain(run, "a1b2"), raysift.Explanation)
    try:
        raysift.quality(pool)
    except (raysift.ConfigError, raysift.DataError, raysift.StaleRunError) as error:
        assert_type(error.exit_code, int)
    return found.score

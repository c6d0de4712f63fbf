"""Trainings of benchmarks: the rows of each selection, trained and tested in a Ray task of its own, and a table of the results.

`raysift compare` does the same for users. The benchmarks keep their own way, in which RESULTS.md was measured.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysift.config import CommonConfig
from raysift.draws import uniform_of
from raysift.evaluation.examples import read_examples
from raysift.evaluation.intervals import seeds_interval
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.run import Run, StageResult
from raysift.jobs.runs.tables import read_chunks
from raysift.manifest import Manifest, read_manifest
from raysift.nano.world import is_clean, is_relevant
from raysift.records import ID, META, ROWS, SCORE
from raysift.settings.budget import parse_budget
from raysift.storage import Location

TARGET = "last_letters"
POOL_ROWS = 4000
TEST_ROWS = 160
BUDGET = "5%"
PASSES_OVER_ALL = 1  # epochs on the full pool: more optimizer steps than any selection gets


@dataclass(frozen=True)
class Cell:
    """One training of the comparison; `files` are the rows it trains on, None for the untrained model."""

    name: str
    seed: int
    files: tuple[Location, ...] | None
    epochs: int | None = None
    """Default: as many as the recipe sets."""
    scores: dict[str, float] | None = None
    """By question, if the cell has been tested already."""


def tested_scores(run: Run) -> dict[str, float]:
    """Scores by question of an evaluated run."""
    manifest = read_manifest(run.folder / "evaluate")
    assert manifest is not None
    place = run.files(manifest, "answers")[0]
    table = pq.read_table(place.path, filesystem=place.fs, columns=[ID, SCORE])
    return dict(zip(table[ID].to_pylist(), table[SCORE].to_pylist(), strict=True))


def oracle_rows(run: Run, pool: Run, rows: Manifest, seed: int) -> tuple[Location, ...]:
    """As many rows as the budget allows, all of the target skill and known to be right; no method can know them."""
    found = pa.concat_tables(read_chunks(pool.files(rows, "rows"), ROWS.names))
    truth = [json.loads(meta) for meta in found[META].to_pylist()]
    fits = [is_clean(row) and is_relevant(row, TARGET) for row in truth]
    right = found.filter(pa.array(fits))
    order = uniform_of(right[ID].to_numpy(), seed).argsort()[: parse_budget(BUDGET).rows_of(rows.counts["kept"])]
    place = (run.folder / f"oracle-{seed}").make_folder() / "rows.parquet"
    pq.write_table(right.take(pa.array(order)), place.path, filesystem=place.fs)
    return (place,)


def compare_cells(cells: list[Cell], config: CommonConfig, work: Location, console: Console) -> StageResult:
    """Train and test all cells, as many at a time as there are CPUs; finished cells survive an interruption."""
    import ray

    task = ray.remote(num_cpus=1, max_retries=2)(train_and_test)
    open_cells = [c for c in cells if not (work / f"{c.name}-{c.seed}.json").exists()]
    waiting = [task.remote(cell, config, work) for cell in open_cells]
    with console.progress("train and test", len(waiting)) as bar:
        while waiting:
            done, waiting = ray.wait(waiting)
            ray.get(done)
            bar.advance()
    results = [json.loads((work / f"{c.name}-{c.seed}.json").read_text()) for c in cells]
    return StageResult(counts={"rows_in": len(cells), "kept": len(results)}, values={"results": results})


def train_and_test(cell: Cell, config: CommonConfig, work: Location) -> None:
    """Train and test one cell in this process on one thread; nano models gain nothing from more."""
    import torch

    from raysift.jobs.training.evaluate import evaluate_here
    from raysift.jobs.training.finetune import finetune

    torch.set_num_threads(1)
    resources = config.resources.model_copy(update={"train": 0, "threads": 1})
    adapter, scores = None, cell.scores
    result: dict[str, Any] = {"name": cell.name, "seed": cell.seed, "rows": 0}
    if cell.files and scores:
        result["rows"] = sum(pq.read_metadata(f.path, filesystem=f.fs).num_rows for f in cell.files)
    elif cell.files:
        changes = {"seed": cell.seed} | ({"epochs": cell.epochs} if cell.epochs else {})
        train = config.train.model_copy(update=changes)
        out = work / f"{cell.name}-{cell.seed}"
        report = finetune(cell.files, out, train, config.model, resources)
        adapter = (out / f"epoch-{report.epochs[-1].epoch}" / "adapter").path
        result |= {"rows": report.counts["rows_in"], "train_seconds": report.seconds}
    tests = read_examples(config.test[0])
    scores = (
        scores or evaluate_here(tests, config.model, config.evaluate, adapter=adapter, device="cpu", threads=1).scores()
    )
    result["scores"] = [scores[test.id] for test in tests]
    (work / f"{cell.name}-{cell.seed}.json").write(json.dumps(result))


def show_comparison(compare: Manifest, console: Console, seeds: int, of: str = TARGET) -> None:
    """Print the accuracy; its interval covers seeds and questions, since both are random draws."""
    results = compare.values["results"]
    lines = []
    for name in dict.fromkeys(result["name"] for result in results):
        own = [result for result in results if result["name"] == name]
        mean, low, high = seeds_interval([result["scores"] for result in own]).within(0, 1)
        lines.append([name, own[0]["rows"], len(own), f"{mean:.3f}", f"{low:.3f}", f"{high:.3f}"])
    questions = len(results[0]["scores"])
    title = f"Accuracy on {of} ({questions} questions, {seeds} seeds, 95 % intervals)"
    console.table(title, ["trained on", "rows", "seeds", "accuracy", "from", "to"], lines)

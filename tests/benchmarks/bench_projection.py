"""How well do stored vectors rank rows? Spearman correlation of projected with exact scores, on the nano pool.

    python tests/benchmarks/bench_projection.py --out runs/projection
    python tests/benchmarks/bench_projection.py --out runs/projection-official --recipe rose-official

A run of ROSE (or, for `answers`, of LESS) gives warm-up checkpoints and targets; then every row's whole Adam direction is
computed once per checkpoint, sent through each projection and matched as the store holds it. `sketch` is ours, `signs` the
rotated sketch of whose numbers only signs are stored, sixteen times as many of them in the same bytes;
each with a map of its own for each checkpoint. Printed per kind of target: how far exact scores spread,
and for each kind and seed of projection the error, the correlations, and how much of the best 5 % both have in common.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import torch
from numpy.typing import NDArray

import raysift
from raysift.actors.checkpointed import CheckpointedModel
from raysift.actors.target_files import load_targets
from raysift.config import make_selector
from raysift.gradients.influence import checkpoint_weights, match_rows
from raysift.jobs.cluster.session import own_session
from raysift.jobs.gradients.stages import WHOLE, checkpoints_of, gradient_loading
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.run import Run
from raysift.jobs.runs.tables import read_chunks
from raysift.nano.world import examples, preference_pairs, write_pool
from raysift.records import ID, MESSAGES
from raysift.settings.gradients import ProjectionSettings
from raysift.storage import Location
from raysift.store.vectors import VectorForm

SKILL, SHOTS, ROWS_AT_ONCE = "last_letters", 24, 64
Scores = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/projection")
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--recipe", default="nano-warmup", help="of the warm-up: nano-warmup, or rose-official")
    parser.add_argument("--dimension", type=int, default=8192, help="signs get 16 times as many")
    parser.add_argument("--targets", nargs="+", default=["correctness", "style", "answers"])
    parser.add_argument("--kinds", nargs="+", default=["sketch", "signs"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    folder, console = Path(options.out).absolute(), Console("plain")
    folder.mkdir(parents=True, exist_ok=True)
    write_pool(folder / "pool.jsonl", options.rows, 7)
    lines = []
    for wanted in options.targets:
        run = exact_run(folder, wanted, options.recipe)
        exact, stored = scores_of(run, options)
        for (kind, seed), found in stored.items():
            error = float((found - exact).std())
            agreement = [spearman(exact, found), float(np.corrcoef(exact, found)[0, 1]), shared_top(exact, found)]
            spread, name = f"{exact.std():.4f}", f"{kind} {seed}"
            lines.append([wanted, spread, name, f"{error:.4f}", *(f"{number:.3f}" for number in agreement)])
        for kind in options.kinds:
            mean = np.mean([spearman(exact, stored[kind, seed]) for seed in options.seeds])
            console.note(f"{wanted}, {kind}: {mean:.3f}")
    heads = [
        "target",
        "spread of exact",
        "projection",
        "error",
        "rank correlation",
        "correlation",
        "shared top 5 %",
    ]
    console.table(f"{len(exact)} rows, {2 * options.dimension:,} bytes a row and checkpoint", heads, lines)


def exact_run(folder: Path, wanted: str, recipe: str) -> Run:
    """Without projection: warm-up, checkpoints, targets."""
    less = wanted == "answers"
    shots = examples(SHOTS, 507, [SKILL]) if less else preference_pairs(SHOTS, 507, [SKILL], wanted)
    target = folder / f"{wanted}.jsonl"
    target.write_bytes(b"\n".join(map(orjson.dumps, shots)))
    method = "less" if less else "rose"
    trained = {"warmup_share": 0.2, "warmup": {"recipe": recipe, "dtype": "fp32", "template": "auto"}}
    settings: dict[str, Any] = {"run": str(folder / wanted), "budget": "5%", method: trained}
    with own_session():
        pool = str(folder / "pool.jsonl")
        return raysift.select(method, pool, target=[str(target)], log="quiet", **settings).run.opened


def scores_of(run: Run, options: argparse.Namespace) -> tuple[Scores, dict[tuple[str, int], Scores]]:
    """Exact scores of all rows, and those of each projection and seed."""
    config = run.config()
    settings = make_selector(config).config
    rows, trained, target = (run.manifest(stage) for stage in ("ingest", "warmup", "targets"))
    assert rows
    assert trained
    assert target
    points = checkpoints_of(run, trained, settings.checkpoints)
    weights = checkpoint_weights([point.learning_rate for point in points])
    model = CheckpointedModel(config.model, points, settings.adam, **gradient_loading(config, settings))
    place = run.files(target, "targets")[0]
    targets = load_targets(Location(place.fs, place.path.rpartition("/")[0]), points)
    table = pa.concat_tables(read_chunks(run.files(rows, "rows"), [ID, MESSAGES])).sort_by(ID).to_pylist()
    tokens = [model.encode(row[ID], row[MESSAGES]) for row in table]
    exact = np.zeros(len(tokens))
    stored = {(kind, seed): np.zeros(len(tokens)) for kind in options.kinds for seed in options.seeds}
    for index, (weight, wanted) in enumerate(zip(weights, targets, strict=True)):
        whole = model.projections(WHOLE)[index]
        parts = [
            model.at(index, whole).run(tokens[start : start + ROWS_AT_ONCE]).vectors
            for start in range(0, len(tokens), ROWS_AT_ONCE)
        ]
        directions = torch.from_numpy(np.concatenate(parts).astype(np.float32))
        exact += weight * ((directions @ wanted[0]) / directions.norm(dim=1)).double().numpy()
        for kind, seed in stored:
            dimension = options.dimension * (16 if kind == "signs" else 1)
            drawn = ProjectionSettings.model_validate({"kind": kind, "dimension": dimension, "seed": seed})
            projection = model.projections(drawn)[index]
            # A sketch may overwrite what it is given, and the next projection needs the same directions.
            found = VectorForm.of(drawn, dimension).pack(projection.project(directions.clone()).numpy())
            target_vectors = projection.project(wanted[:1].clone()).numpy()
            stored[kind, seed] += weight * match_rows(found, target_vectors)[:, 0].astype(np.float64)
    return exact, stored


def spearman(first: Scores, second: Scores) -> float:
    ranks = [np.argsort(np.argsort(scores, kind="stable"), kind="stable") for scores in (first, second)]
    return float(np.corrcoef(*ranks)[0, 1])


def shared_top(first: Scores, second: Scores) -> float:
    """The share of the best twentieth that both name."""
    count = max(1, len(first) // 20)
    return len(np.intersect1d(*(np.argsort(scores, kind="stable")[-count:] for scores in (first, second)))) / count


if __name__ == "__main__":
    main()

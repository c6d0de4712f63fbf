"""Do planted sources rise? ROSE and LESS on real rows: lift of the sources that a target is known to need.

    python tests/benchmarks/bench_planted.py ../shared/data --out runs/planted [--pool pool/pool_public.parquet]

A small model (the nano foundation, fully fine-tuned on a random part of the large pool by our own fine-tune, so that it has seen
such text) is warmed up on 5 % of the pool; every target is a subtask, so one pass of row gradients serves all. Lift is the share of
the relevant sources among the top 5 % for that target, over their share in the pool; 1 is chance. Beside it, the sources of
the highest lifts. `polite_style_1100` is a negative control: no source of the pool fits it. ROSE takes the targets that have
preference pairs, LESS all.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import raysift
from raysift.jobs.cluster.session import own_session
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.run import Run, open_run

MAX_CHARS = 600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--out", default="runs/planted")
    parser.add_argument("--pool", default="pool/pool_public_smoke5k.parquet")
    parser.add_argument(
        "--tune-rows", type=int, default=8000, help="rows of the large pool on which the model is tuned"
    )
    parser.add_argument("--pairs", type=int, default=24, help="pairs a target")
    parser.add_argument("--methods", nargs="*", default=["rose", "less"])
    parser.add_argument("--of", nargs="*", help="no runs, but the lifts of these finished ones, rescored ones too")
    options = parser.parse_args()
    data, out = Path(options.data), Path(options.out)
    planted = json.loads((data / "controlled/planted_targets.json").read_text())
    console = Console("plain")
    if options.of:
        for name in options.of:
            print_lifts(name, open_run(name), planted, console)
        return
    out.mkdir(parents=True, exist_ok=True)
    write_targets(data, planted, out, options.pairs)
    with own_session():
        model = tuned_model(data, out, options.tune_rows, console)
        for method in options.methods:
            selection = raysift.select(
                method,
                str(data / options.pool),
                target=[str(out / f"{method}.jsonl")],
                model=model,
                run=str(out / method),
                train={"recipe": "nano", "max_length": 512},
                console=console,
                **{method: {"warmup": {"recipe": "nano-warmup", "max_length": 512, "learning_rate": 1e-3}}},
            )
            print_lifts(method, selection.run.opened, planted, console)


def print_lifts(name: str, run: Run, planted: dict, console: Console) -> None:
    columns = ["target", "relevant share", "in top 5 %", "lift", "highest lifts of all sources"]
    console.table(f"{name}: lift in the top 5 %", columns, lifts(run, planted))


def tuned_model(data: Path, out: Path, rows: int, console: Console) -> str:
    """The nano foundation after one epoch on random rows of the large pool."""
    part = out / "tune.parquet"
    if not part.exists():
        pool = pq.read_table(data / "pool/pool_public.parquet")
        pq.write_table(pool.take(np.random.default_rng(0).permutation(len(pool))[:rows]), part)
    train = {"recipe": "nano", "method": "full", "epochs": 1, "learning_rate": 1e-3, "max_length": 512}
    trained = raysift.finetune([str(part)], run=str(out / "tuned"), model="nano", train=train, resources={"threads": 2})
    return trained.model


def write_targets(data: Path, planted: dict, out: Path, count: int) -> None:
    """Each target as a subtask: for ROSE the pairs of those that have some, for LESS examples with an answer of all."""
    pairs, examples = [], []
    for name, target in sorted(planted.items()):
        preferred = data / target.get("pref", f"preferences/{name}.parquet")
        if preferred.exists():
            pairs += [
                {
                    "prompt": [{"role": "user", "content": row["prompt"]}],
                    "chosen": row["chosen"],
                    "rejected": row["rejected"],
                    "subtask": name,
                }
                for row in short_ones(read_preferences(preferred), ("prompt", "chosen"), count)
            ]
        examples += [
            {
                "id": f"{name}-{number}",
                "task": name,
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "reference": row["reference"],
                "metric": "exact_match",
            }
            for number, row in enumerate(
                short_ones(read_answers(data, name, target, preferred), ("prompt", "reference"), count)
            )
        ]
    (out / "rose.jsonl").write_bytes(b"\n".join(map(orjson.dumps, pairs)))
    (out / "less.jsonl").write_bytes(b"\n".join(map(orjson.dumps, examples)))


def read_preferences(place: Path) -> list[dict]:
    rows = pq.read_table(place).filter(pc.field("split") == "val").to_pylist()
    return [
        row for row in rows if row["chosen"].strip() and row["rejected"].strip() and row["chosen"] != row["rejected"]
    ]


def read_answers(data: Path, name: str, target: dict, preferred: Path) -> list[dict]:
    """The development examples, worked solutions where there are some; the preferred answers where there are no examples."""
    if "dev" not in target:
        return [{"prompt": row["prompt"], "reference": row["chosen"]} for row in read_preferences(preferred)]
    rows = map(orjson.loads, (data / "eval" / f"{name}.jsonl").read_bytes().splitlines())
    dev = [row for row in rows if row["split"] == "dev"]
    return [{"prompt": row["prompt"], "reference": row["meta"].get("solution") or row["reference"]} for row in dev]


def short_ones(rows: list[dict], parts: tuple[str, str], count: int) -> list[dict]:
    """Some of the rows of at most MAX_CHARS characters, or of the shortest where too few are so short."""
    fits = [row for row in rows if sum(len(row[part]) for part in parts) <= MAX_CHARS]
    if len(fits) < count:
        fits = sorted(rows, key=lambda row: sum(len(row[part]) for part in parts))[:count]
    return [fits[i] for i in np.random.default_rng(0).permutation(len(fits))[:count].tolist()]


def lifts(run: Run, planted: dict) -> list[list[object]]:
    """One line a target, from the scores of all rows."""
    scores = pq.read_table(run.folder.path + "/scores.parquet")
    scores = scores.filter(scores["score"].is_valid())
    ingested, manifest = run.manifest("ingest"), run.manifest("targets")
    assert ingested and manifest
    rows = pa.concat_tables(
        pq.read_table(place.path, columns=["id", "source", "meta"]) for place in run.files(ingested, "rows")
    )
    origins = {row["id"]: (row["source"], orjson.loads(row["meta"])["subset"] or "") for row in rows.to_pylist()}
    origin = [origins[i] for i in scores["id"].to_pylist()]
    sources = np.array([source for source, _ in origin])
    by_subtask = np.array(scores["by_subtask"].to_pylist())
    lines = []
    for column, name in enumerate(manifest.values["subtasks"]):
        top = np.argsort(-by_subtask[:, column], kind="stable")[: len(sources) // 20]
        relevant = np.array([is_planted(planted[name], *one) for one in origin])
        each = {s: (sources[top] == s).mean() / (sources == s).mean() for s in np.unique(sources)}
        most = sorted(each, key=each.__getitem__, reverse=True)[:2]
        shares = ["control", "–", "–"]
        if relevant.any():
            share, found = relevant.mean(), relevant[top].mean()
            shares = [f"{share:.3f}", f"{found:.3f}", f"{found / share:.2f}"]
        lines.append([name, *shares, ", ".join(f"{source} {each[source]:.1f}" for source in most)])
    return lines


def is_planted(target: dict, source: str, subset: str) -> bool:
    """Whether a row is of those that the target is known to need."""
    prefixes = target.get("relevant_subsets_prefix", {}).get(source, [])
    return source in target.get("relevant_sources", []) or any(subset.startswith(prefix) for prefix in prefixes)


if __name__ == "__main__":
    main()

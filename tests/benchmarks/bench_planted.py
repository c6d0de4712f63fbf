"""Do planted sources rise? ROSE and LESS on real rows: lift of the sources that a target is known to need.

    python tests/benchmarks/bench_planted.py ../shared/data --out runs/planted [--pool pool/pool_public.parquet]

A small model (the nano foundation, fully fine-tuned on a random part of the large pool by our own fine-tune, so that it has seen
such text) is warmed up on 5 % of the pool; every target is a subtask, so one pass of row gradients serves all. Lift is the share of
the relevant sources among the top 5 % for that target, over their share in the pool; 1 is chance. A target without relevant
sources is a negative control: there the largest lift of any source is given.
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
from raysift.jobs.api import own_session
from raysift.jobs.console import Console

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
    options = parser.parse_args()
    data, out = Path(options.data), Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    planted = json.loads((data / "controlled/planted_targets.json").read_text())
    write_targets(data, planted, out, options.pairs)
    console = Console("plain")
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
            console.table(
                f"{method}: lift in the top 5 %",
                ["target", "relevant share", "in top 5 %", "lift"],
                lifts(selection, planted),
            )


def tuned_model(data: Path, out: Path, rows: int, console: Console) -> str:
    """The nano foundation after one epoch on random rows of the large pool."""
    part = out / "tune.parquet"
    if not part.exists():
        pool = pq.read_table(data / "pool/pool_public.parquet")
        pq.write_table(pool.take(np.random.default_rng(0).permutation(len(pool))[:rows]), part)
    train = {"recipe": "nano", "method": "full", "epochs": 1, "learning_rate": 1e-3, "max_length": 512}
    trained = raysift.finetune([str(part)], run=str(out / "tuned"), model="nano", train=train, resources={"threads": 2})
    return str(out / "tuned" / "final" / trained.files["epochs"][-1] / "model")


def write_targets(data: Path, planted: dict, out: Path, count: int) -> None:
    """Short validation pairs of each target as a subtask; for LESS their chosen answers as examples."""
    pairs, examples = [], []
    for name, target in sorted(planted.items()):
        if "pref" not in target:
            continue
        table = pq.read_table(data / target["pref"]).filter(pc.field("split") == "val").to_pylist()
        fits = [
            row
            for row in table
            if row["chosen"].strip()
            and row["rejected"].strip()
            and row["chosen"] != row["rejected"]
            and len(row["prompt"]) + max(len(row["chosen"]), len(row["rejected"])) <= MAX_CHARS
        ]
        order = np.random.default_rng(0).permutation(len(fits))[:count]
        for i in order.tolist():
            row = fits[i]
            prompt = [{"role": "user", "content": row["prompt"]}]
            pairs.append({"prompt": prompt, "chosen": row["chosen"], "rejected": row["rejected"], "subtask": name})
            examples.append(
                {
                    "id": f"{name}-{i}",
                    "task": name,
                    "prompt": prompt,
                    "reference": row["chosen"],
                    "metric": "exact_match",
                }
            )
    (out / "rose.jsonl").write_bytes(b"\n".join(map(orjson.dumps, pairs)))
    (out / "less.jsonl").write_bytes(b"\n".join(map(orjson.dumps, examples)))


def lifts(selection: raysift.Selection, planted: dict) -> list[list[object]]:
    """One line a target, from the scores of all rows."""
    run = selection.run
    scores = pq.read_table(run.folder.path + "/scores.parquet")
    scores = scores.filter(scores["score"].is_valid())
    rows = pa.concat_tables(
        pq.read_table(place.path, columns=["id", "source"])
        for place in (run.folder / "ingest").files(".parquet", recursive=True)
        if "/rows/" in place.path
    )
    source_of = dict(zip(rows["id"].to_pylist(), rows["source"].to_pylist(), strict=True))
    sources = np.array([source_of[i] for i in scores["id"].to_pylist()])
    by_subtask = np.array(scores["by_subtask"].to_pylist())
    names = sorted(name for name, target in planted.items() if "pref" in target)
    lines = []
    for column, name in enumerate(names):
        top = sources[np.argsort(-by_subtask[:, column], kind="stable")[: len(sources) // 20]]
        relevant = planted[name].get("relevant_sources") or []
        if relevant:
            share, found = np.isin(sources, relevant).mean(), np.isin(top, relevant).mean()
            lines.append([name, f"{share:.3f}", f"{found:.3f}", f"{found / share:.2f}"])
        else:
            each = {s: (top == s).mean() / (sources == s).mean() for s in np.unique(sources)}
            most = max(each, key=each.__getitem__)
            lines.append([f"{name} (control)", "–", most, f"{each[most]:.2f}"])
    return lines


if __name__ == "__main__":
    main()

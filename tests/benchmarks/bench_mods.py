"""Does MoDS work? On a noisy pool of the nano world, where the truth about every row is known.

    python tests/benchmarks/bench_mods.py --out runs/mods --seeds 3
    python tests/benchmarks/bench_mods.py --out runs/mods-large --seeds 3 --rows 20000 --noise 0.5
    python tests/benchmarks/bench_mods.py --out runs/mods-spoilt --seeds 3 --rows 20000 --noise 0.5 --spoilt-base

Per seed: a pool of all skills; MoDS, uniform, quality alone and k-center alone choose 2 %. Printed: how many of each kind of
noise pass the quality threshold, how well quality tells right rows from others (AUC), how many skills the seeds cover beside as
many uniform rows, and accuracy over all skills after training, beside the full noisy pool and an oracle: as many rows drawn from
the right ones. With `--spoilt-base` the model that all of them start from knows the skills and does not answer: the nano model
after some hundred steps on rambling, truncated and off-topic answers, so that a few good rows have something to mend.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from ranking import auc
from trained_cells import PASSES_OVER_ALL, Cell, compare_cells, show_comparison
from transformers import AutoModelForCausalLM, AutoTokenizer

import raysift
from raysift.config import make_config
from raysift.fingerprint import fingerprint
from raysift.jobs.cluster.session import own_session
from raysift.jobs.nano_build.training import Conversation, encode_conversations, length_batches, pad
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.run import Run
from raysift.jobs.runs.tables import read_chunks
from raysift.manifest import Manifest
from raysift.nano import nano_path
from raysift.nano.skills import SKILLS
from raysift.nano.world import WorldConfig, examples, generate_pool, is_clean, write_pool
from raysift.records import ID, META
from raysift.storage import open_location

BUDGET = "2%"
METHODS = ("uniform", "quality", "coverage", "mods")
HABITS = (("truncated", 0.3), ("off_topic", 0.3), ("rambling", 0.4))
HABIT_STEPS, HABIT_BATCH, HABIT_RATE = 300, 32, 5e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/mods")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--noise", type=float, default=WorldConfig.noise_rate, help="share of spoilt rows in the pool")
    parser.add_argument("--questions", type=int, default=220, help="of the test set, over all skills")
    parser.add_argument("--train", default="{}", help="changes to the recipe of the final training, as JSON")
    parser.add_argument("--spoilt-base", action="store_true", help="start from a model that has learned not to answer")
    parser.add_argument("--no-train", action="store_true", help="selections only")
    parser.add_argument("settings", nargs="*", help="mods settings, key=JSON")
    options = parser.parse_args()
    console = Console("plain")
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    tests = examples(options.questions, 1000, list(SKILLS), "test")
    (folder / "test.jsonl").write_bytes(b"\n".join(map(orjson.dumps, tests)))
    options.train = {"recipe": "nano"} | json.loads(options.train)
    options.model = spoil_base(folder / "spoilt-base") if options.spoilt_base else "nano"
    with own_session():
        cells, found = [Cell("base model", 0, None)], []
        for seed in range(options.seeds):
            cells += select_all(folder, seed, options, found)
        show_findings(found, console)
        if not options.no_train:
            run = Run(str(folder / f"compare-{fingerprint(options.train)}"), Console("quiet"))
            test = {"test": [str(folder / "test.jsonl")], "evaluate": {"max_new_tokens": 32}}
            config = make_config(test | {"train": options.train, "model": options.model})
            result = compare_cells(cells, config, (run.folder / "cells").make_folder(), console)
            compare = Manifest(stage="compare", fingerprint="", values=dict(result.values))
            show_comparison(compare, console, options.seeds, "all skills")


def spoil_base(out: Path) -> str:
    """The nano model after all its weights were trained on answers that are none; what it knew of the skills is in it still."""
    if (out / "model.safetensors").exists():
        return str(out)
    source = nano_path("foundation")
    tokenizer, model = AutoTokenizer.from_pretrained(source), AutoModelForCausalLM.from_pretrained(source)
    world = WorldConfig(noise_rate=1.0, sources=(("spoilt", 1.0, 1.0),), noise_shares=HABITS, exact_duplicate_rate=0.0)
    rows = generate_pool(HABIT_STEPS * HABIT_BATCH, 77, world)
    talks = [Conversation(*(message["content"] for message in row["messages"])) for row in rows]
    batches = length_batches(encode_conversations(tokenizer, talks), HABIT_BATCH, Random(0), lambda item: len(item[0]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=HABIT_RATE)
    for batch in batches:
        ids = pad([ids for ids, _ in batch], tokenizer.pad_token_id)
        labels = pad([[-100] * start + ids[start:] for ids, start in batch], -100)
        model(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return str(out)


def select_all(folder: Path, seed: int, options: argparse.Namespace, found: list[dict[str, Any]]) -> list[Cell]:
    """The training sets of one seed; what the stages of MoDS did is added to `found`."""
    pool = folder / f"pool-{seed}.jsonl"
    write_pool(pool, options.rows, 2000 + seed, WorldConfig(noise_rate=options.noise))
    cells, runs = [], {}
    for method in METHODS:
        settings: dict[str, Any] = {"seed": seed, "budget": BUDGET, "run": str(folder / f"{method}-{seed}")}
        settings |= {"model": options.model, "train": {"recipe": "nano"}}
        if method == "mods":
            pairs = (setting.partition("=") for setting in options.settings)
            settings["mods"] = {key: json.loads(value) for key, _, value in pairs}
        selection = raysift.select(method, str(pool), log="plain", **settings)
        runs[method] = selection
        cells.append(Cell(f"{method} {BUDGET}", seed, tuple(selection.files())))
    found.append(findings(runs["mods"].run, runs))
    rows = runs["uniform"].run.opened.manifest("ingest")
    assert rows is not None
    oracle = draw_right(runs["uniform"].run, rows, len(runs["uniform"].ids), seed, folder / f"oracle-{seed}.parquet")
    cells.append(Cell(f"oracle {BUDGET}", seed, (open_location(oracle),)))
    cells.append(Cell("full pool", seed, tuple(runs["uniform"].run.opened.files(rows, "rows")), PASSES_OVER_ALL))
    return cells


def findings(run: Run, selections: dict[str, raysift.Selection]) -> dict[str, Any]:
    """What each stage of MoDS did to which rows."""
    rows, judged, good, seeds = (run.manifest(name) for name in ("ingest", "quality", "good", "seeds"))
    assert rows and judged and good and seeds
    truth = truth_of(run, rows)
    scores = pa.concat_tables(read_chunks(run.files(judged, "answers"), [ID, "reward"]))
    right = np.array([is_clean(truth[i]) for i in scores[ID].to_pylist()])
    values = scores["reward"].to_numpy()
    kept, pool = noise_of(truth_of(run, good)), noise_of(truth)
    uniform = selections["uniform"].table()[ID].to_pylist()[: seeds.counts["kept"]]
    return {
        "auc": auc(values[right], values[~right]),
        "survives": {kind: kept[kind] / pool[kind] for kind in sorted(pool)},
        "skills of seeds": len({row["skill"] for row in truth_of(run, seeds).values()}),
        "skills of uniform": len({truth[i]["skill"] for i in uniform}),
        "right": {name: share_right(truth, s.ids) for name, s in selections.items()},
    }


def draw_right(run: Run, rows: Manifest, count: int, seed: int, out: Path) -> Path:
    """A uniform draw from the rows that are right, as a file."""
    pool = pa.concat_tables([pq.read_table(file.path, filesystem=file.fs) for file in run.files(rows, "rows")])
    right = pool.filter([is_clean(json.loads(meta)) for meta in pool[META].to_pylist()]).sort_by(ID)
    drawn = np.random.default_rng(seed).choice(len(right), count, replace=False)
    pq.write_table(right.take(np.sort(drawn)), out)
    return out


def truth_of(run: Run, manifest: Manifest) -> dict[int, dict[str, Any]]:
    chunks = read_chunks(run.files(manifest, "rows"), [ID, META])
    return {i: json.loads(m) for c in chunks for i, m in zip(c[ID].to_pylist(), c[META].to_pylist(), strict=True)}


def noise_of(truth: dict[int, dict[str, Any]]) -> Counter[str]:
    return Counter(row["noise"] or "right" for row in truth.values())


def share_right(truth: dict[int, dict[str, Any]], ids: list[int]) -> float:
    return sum(is_clean(truth[i]) for i in ids) / len(ids)


def show_findings(found: list[dict[str, Any]], console: Console) -> None:
    """One column a seed."""
    each = lambda value: [f"{value(one):.2f}" for one in found]  # noqa: E731
    lines = [["AUC of quality", *each(lambda f: f["auc"])]]
    lines += [
        [f"share of '{kind}' rows above alpha", *each(lambda f, k=kind: f["survives"].get(k, 0.0))]
        for kind in found[0]["survives"]
    ]
    lines += [[name, *[str(f[name]) for f in found]] for name in ("skills of seeds", "skills of uniform")]
    lines += [[f"right rows, {method}", *each(lambda f, m=method: f["right"][m])] for method in found[0]["right"]]
    console.table("What MoDS did", ["", *(f"seed {i}" for i in range(len(found)))], lines)


if __name__ == "__main__":
    main()

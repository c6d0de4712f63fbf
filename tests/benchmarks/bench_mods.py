"""Does MoDS work? On a noisy pool of the nano world, where the truth about every row is known.

    python tests/benchmarks/bench_mods.py --out runs/mods --seeds 3
    python tests/benchmarks/bench_mods.py --out runs/mods-large --seeds 3 --rows 20000 --noise 0.5

Per seed: a pool of all skills; MoDS, uniform, quality alone and k-center alone choose 2 %. Printed: how many of each kind of
noise pass the quality threshold, how well quality tells right rows from others (AUC), how many skills the seeds cover beside as
many uniform rows, and accuracy over all skills after training, beside the full noisy pool and an oracle: as many rows drawn from
the right ones.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

import raysift
from raysift.config import make_config
from raysift.fingerprint import fingerprint
from raysift.jobs.api import own_session
from raysift.jobs.console import Console
from raysift.jobs.demo import PASSES_OVER_ALL, Cell, compare_cells, show_comparison
from raysift.jobs.rescore import find_manifest
from raysift.jobs.run import Run
from raysift.jobs.tables import read_chunks
from raysift.manifest import Manifest
from raysift.nano.skills import SKILLS
from raysift.nano.world import WorldConfig, examples, is_clean, write_pool
from raysift.records import ID, META
from raysift.scoring.ranking import auc
from raysift.storage import open_location

BUDGET = "2%"
METHODS = ("uniform", "quality", "coverage", "mods")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/mods")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--noise", type=float, default=WorldConfig.noise_rate, help="share of spoilt rows in the pool")
    parser.add_argument("--questions", type=int, default=220, help="of the test set, over all skills")
    parser.add_argument("--train", default="{}", help="changes to the recipe of the final training, as JSON")
    parser.add_argument("--no-train", action="store_true", help="selections only")
    parser.add_argument("settings", nargs="*", help="mods settings, key=JSON")
    options = parser.parse_args()
    console = Console("plain")
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    tests = examples(options.questions, 1000, list(SKILLS), "test")
    (folder / "test.jsonl").write_bytes(b"\n".join(map(orjson.dumps, tests)))
    with own_session():
        cells, found = [Cell("base model", 0, None)], []
        for seed in range(options.seeds):
            cells += select_all(folder, seed, options, found)
        show_findings(found, console)
        if not options.no_train:
            train = json.loads(options.train)
            run = Run(str(folder / f"compare-{fingerprint(train)}"), Console("quiet"))
            test = {"test": [str(folder / "test.jsonl")], "evaluate": {"max_new_tokens": 32}}
            config = make_config(test | {"train": train})
            result = compare_cells(cells, config, (run.folder / "cells").make_folder(), console)
            compare = Manifest(stage="compare", fingerprint="", values=dict(result.values))
            show_comparison(compare, console, options.seeds, "all skills")


def select_all(folder: Path, seed: int, options: argparse.Namespace, found: list[dict[str, Any]]) -> list[Cell]:
    """The training sets of one seed; what the stages of MoDS did is added to `found`."""
    pool = folder / f"pool-{seed}.jsonl"
    write_pool(pool, options.rows, 2000 + seed, WorldConfig(noise_rate=options.noise))
    cells, runs = [], {}
    for method in METHODS:
        settings: dict[str, Any] = {"seed": seed, "budget": BUDGET, "run": str(folder / f"{method}-{seed}")}
        if method == "mods":
            pairs = (setting.partition("=") for setting in options.settings)
            settings["mods"] = {key: json.loads(value) for key, _, value in pairs}
        selection = raysift.select(method, str(pool), console=Console("plain"), **settings)
        runs[method] = selection
        cells.append(Cell(f"{method} {BUDGET}", seed, tuple(selection.files())))
    found.append(findings(runs["mods"].run, runs))
    rows = find_manifest(runs["uniform"].run, "ingest")
    assert rows is not None
    oracle = draw_right(runs["uniform"].run, rows, len(runs["uniform"].ids), seed, folder / f"oracle-{seed}.parquet")
    cells.append(Cell(f"oracle {BUDGET}", seed, (open_location(oracle),)))
    cells.append(Cell("full pool", seed, tuple(runs["uniform"].run.files(rows, "rows")), PASSES_OVER_ALL))
    return cells


def findings(run: Run, selections: dict[str, raysift.Selection]) -> dict[str, Any]:
    """What each stage of MoDS did to which rows."""
    rows, judged, good, seeds = (find_manifest(run, name) for name in ("ingest", "quality", "good", "seeds"))
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

"""Does it work? Methods against yardsticks on the nano world, where the truth about every row is known.

    python tests/benchmarks/bench_selection.py --out runs/selection --seeds 0 1 2

Per seed: a pool of 4,000 noisy rows; ROSE from 24 preference pairs (right against wrong answers), LESS from 24 examples; both
from a warm-up on a random 5 %. Printed: precision (rows of the target skill, and of those the clean ones, among the top 5 %)
and accuracy on the target skill after training on the selection, beside uniform, longest, the full pool and the oracle. With
`--kind style` the target is a style (a sentence against the bare answer, both right), precision counts that style, and what is
tested is whether the tuned model finds the right answer more probable as a sentence than bare.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import orjson
from trained_cells import (
    PASSES_OVER_ALL,
    POOL_ROWS,
    TARGET,
    TEST_ROWS,
    Cell,
    compare_cells,
    oracle_rows,
    show_comparison,
)

import raysift
from raysift.config import CommonConfig, make_config
from raysift.jobs import stages
from raysift.jobs.cluster.session import own_session
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.run import Run
from raysift.manifest import Manifest
from raysift.nano.styles import style_answer
from raysift.nano.world import examples, is_clean, is_relevant, preference_pairs, write_pool

SHOTS = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/selection")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kind", choices=["correctness", "style"], default="correctness")
    parser.add_argument("--methods", nargs="*", default=["uniform", "longest", "less", "rose"])
    parser.add_argument("--yardsticks", nargs="*", default=["full pool", "oracle"], help="full pool, oracle")
    parser.add_argument("--no-train", action="store_true", help="precision only")
    parser.add_argument("settings", nargs="*", help="section.key=value of the gradient methods")
    options = parser.parse_args()
    console = Console("plain")
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    with own_session():
        cells, precision = [Cell("base model", 0, None)], []
        for seed in options.seeds:
            found, lines = select_all(folder, seed, options, console)
            cells += found
            precision += lines
        show_precision(precision, options.kind, console)
        if not options.no_train:
            run = Run(str(folder / "compare"), Console("quiet"))
            # What is whole is compared, not what is probable for its length: greedy decoding takes the more probable one.
            settings = {"max_new_tokens": 32, "choice_normalisation": "sum"}
            config = make_config({"test": [str(folder / "test.jsonl")], "evaluate": settings})
            result = compare_cells(cells, config, (run.folder / "cells").make_folder(), console)
            compare = Manifest(stage="compare", fingerprint="", values=dict(result.values))
            show_comparison(compare, console, len(options.seeds))


def select_all(folder: Path, seed: int, options: argparse.Namespace, console: Console) -> tuple[list[Cell], list[dict]]:
    """The training sets of one seed, and how many of their rows are what the target asks for."""
    pool = folder / f"pool-{seed}.jsonl"
    write_pool(pool, POOL_ROWS, 1000 + seed)
    write_targets(folder, seed, options.kind)
    cells, lines = [], []
    for method in options.methods:
        settings = {"seed": seed, "budget": "5%", "run": str(folder / f"{method}-{seed}")}
        if method in ("less", "rose"):
            settings["target"] = [str(folder / f"{method}-target-{seed}.jsonl")]
            for setting in options.settings:
                key, _, value = setting.partition("=")
                settings.setdefault(method, {})[key] = json.loads(value)
        selection = raysift.select(method, str(pool), log="quiet", **settings)
        cells.append(Cell(f"{method} 5%", seed, tuple(selection.files())))
        lines.append({"method": method, **precision_of(selection, options.kind)})
        console.event("selected", method, seed=seed, **{k: v for k, v in lines[-1].items() if k != "method"})
    run = Run(str(folder / f"uniform-{seed}"), Console("quiet"))
    config: CommonConfig = make_config({"pool": [str(pool)]})
    rows = stages.ingest(run, config)
    if "full pool" in options.yardsticks:
        cells.append(Cell("full pool", seed, tuple(run.files(rows, "rows")), PASSES_OVER_ALL))
    if "oracle" in options.yardsticks:
        cells.append(Cell("oracle 5%", seed, oracle_rows(run, run, rows, seed)))
    return cells, lines


def write_targets(folder: Path, seed: int, kind: str) -> None:
    """Pairs for ROSE; for LESS the chosen answers of the same pairs as examples; one test set for all seeds."""
    pairs = list(preference_pairs(SHOTS, 500 + seed, [TARGET], kind))
    (folder / f"rose-target-{seed}.jsonl").write_bytes(b"\n".join(map(orjson.dumps, pairs)))
    lines = [
        {"id": f"{seed}-{i}", "task": TARGET, "prompt": p["prompt"], "reference": p["chosen"], "metric": "exact_match"}
        for i, p in enumerate(pairs)
    ]
    (folder / f"less-target-{seed}.jsonl").write_bytes(b"\n".join(map(orjson.dumps, lines)))
    tests = examples(TEST_ROWS, 1000, [TARGET], "test")
    if kind == "style":
        tests = map(ask_for_style, tests)
    (folder / "test.jsonl").write_bytes(b"\n".join(map(orjson.dumps, tests)))


def ask_for_style(question: dict[str, Any]) -> dict[str, Any]:
    """The right answer as a sentence, or bare?"""
    choices = [style_answer(question["reference"], style) for style in ("sentence", "plain")]
    return question | {"choices": choices, "answer_index": 0, "reference": choices[0], "metric": "mc_accuracy"}


def precision_of(selection: raysift.Selection, kind: str) -> dict[str, float]:
    """Shares among the selected rows."""
    truth = [json.loads(row["meta"]) for row in selection.dataset().take_all()]
    wanted = [is_relevant(row, TARGET) for row in truth]
    shares = {
        "target": statistics.mean(wanted),
        "target and clean": statistics.mean(w and is_clean(row) for w, row in zip(wanted, truth, strict=True)),
        "clean": statistics.mean(map(is_clean, truth)),
    }
    if kind == "style":
        shares["sentence style"] = statistics.mean(row["style"] == "sentence" for row in truth)
    return {name: round(share, 3) for name, share in shares.items()}


def show_precision(lines: list[dict], kind: str, console: Console) -> None:
    names = [name for name in lines[0] if name != "method"]
    rows = []
    for method in dict.fromkeys(line["method"] for line in lines):
        own = [line for line in lines if line["method"] == method]
        rows.append([method, *(" ".join(f"{line[name]:.2f}" for line in own) for name in names)])
    console.table(f"Shares among the top 5 %, per seed ({kind})", ["method", *names], rows)


if __name__ == "__main__":
    main()

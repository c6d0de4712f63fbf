"""Rows per second of bergson through its own package; started by bench_gradients.py, in an environment of its own.

    RIVAL_PYTHON tests/benchmarks/bench_rivals.py bergson_global FOLDER DIMENSION TOKEN_BUDGET REPEATS THREADS CLOCK

FOLDER holds the model's config.json, lora.json and rows.json ([input_ids, labels] of each row). Needs no raysift. Two-sided
projections get the side for which all modules together have about DIMENSION numbers.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def make_model(folder: Path) -> Any:
    """The same architecture and adapter as ours, with random weights."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    lora = json.loads((folder / "lora.json").read_text())
    targets = "all-linear" if lora["targets"] == "all" else ["q_proj", "k_proj", "v_proj", "o_proj"]
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    config = LoraConfig(r=lora["rank"], lora_alpha=2 * lora["rank"], target_modules=targets, init_lora_weights=False)
    return get_peft_model(base, config).eval()


def bergson(folder: Path, rows: list[Any], dimension: int, budget: int, target: str) -> Callable[[int], None]:
    """Collects gradients of the adapter's modules into bergson's index."""
    from bergson import GradientProcessor, IndexConfig, collect_gradients
    from bergson.data import allocate_batches
    from bergson.utils.peft import detect_peft_modules
    from datasets import Dataset

    model = make_model(folder)
    modules = detect_peft_modules(model)
    side = dimension if target == "global" else max(1, round(math.sqrt(dimension / len(modules))))
    data = Dataset.from_dict(
        {"input_ids": [row[0] for row in rows], "labels": [row[1] for row in rows], "length": [len(r[0]) for r in rows]}
    )

    def run(turn: int) -> None:
        config = IndexConfig(
            run_path=str(folder / f"index{turn}"),
            projection_dim=side,
            token_batch_size=budget,
            projection_target=target,
            overwrite=True,
        )
        config.partial_run_path.mkdir(parents=True, exist_ok=True)
        processor = GradientProcessor(projection_dim=side, projection_target=target)
        batches = allocate_batches([len(row[0]) for row in rows], budget)
        collect_gradients(model, data, processor, config, batches=batches, target_modules=modules)

    return run


def main() -> None:
    name, folder, dimension, budget, repeats, threads, clock_name = sys.argv[1:8]
    warnings.filterwarnings("ignore")
    torch.set_num_threads(int(threads))
    clock = time.process_time if clock_name == "cpu" else time.perf_counter
    rows = json.loads(Path(folder, "rows.json").read_text())
    target = {"bergson_global": "global", "bergson_two_sided": "per_module"}[name]
    run = bergson(Path(folder), rows, int(dimension), int(budget), target)
    seconds = []
    for turn in range(int(repeats) + 1):
        start = clock()
        run(turn)
        seconds.append(clock() - start)
    print(json.dumps({"rows_per_second": len(rows) / statistics.median(seconds[1:])}))


if __name__ == "__main__":
    main()

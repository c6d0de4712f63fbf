"""Rows per second of bergson and dattri through their own packages; started by bench_gradients.py, in their environment.

    RIVAL_PYTHON tests/benchmarks/bench_rivals.py bergson_global FOLDER DIMENSION TOKEN_BUDGET REPEATS THREADS CLOCK

The environment: `pip install torch==2.13.0`, `pip install bergson==2.5.1`, `pip install --no-deps dattri==0.3.0`, the first line
once more, and on a CPU `pip uninstall torchvision torchaudio`, whose CUDA builds break the import of transformers.

FOLDER holds the model's config.json, lora.json and rows.json ([input_ids, labels] of each row). Needs no raysift. Two-sided
projections get the side for which all modules together have about DIMENSION numbers.
"""

from __future__ import annotations

import functools
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


def dattri_logra(folder: Path, rows: list[Any], dimension: int, budget: int) -> Callable[[int], None]:
    """Caches LoGra's factored projections of the adapter's modules in memory; batches of one padded width, longest first."""
    import tqdm
    from dattri.algorithm.logra import LoGraAttributor
    from dattri.task import AttributionTask
    from torch.utils.data import DataLoader

    tqdm.tqdm.__init__ = functools.partialmethod(tqdm.tqdm.__init__, disable=True)
    model = make_model(folder)
    modules = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and ".lora_" in n]
    side = max(1, round(math.sqrt(dimension / len(modules))))
    rows = sorted(rows, key=lambda row: -len(row[0]))

    def collate(part: list[Any]) -> dict[str, torch.Tensor]:
        width = max(len(row[0]) for row in part)
        ids, labels, mask = (torch.full((len(part), width), value) for value in (0, -100, 0))
        for i, (own_ids, own_labels) in enumerate(part):
            ids[i, : len(own_ids)], labels[i, : len(own_ids)] = torch.tensor(own_ids), torch.tensor(own_labels)
            mask[i, : len(own_ids)] = 1
        return {"input_ids": ids, "labels": labels, "attention_mask": mask}

    def loss(model: Any, batch: dict[str, torch.Tensor], device: str) -> torch.Tensor:
        return model(**{name: value.to(device) for name, value in batch.items()}, use_cache=False).loss

    def run(turn: int) -> None:
        task = AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict())
        attributor = LoGraAttributor(
            task, layer_names=modules, hessian="Identity", device="cpu", proj_dim=side * side, offload="cpu"
        )
        mean = sum(len(row[0]) for row in rows) / len(rows)
        attributor.cache(DataLoader(rows, batch_size=max(1, int(budget / mean)), shuffle=False, collate_fn=collate))

    return run


def main() -> None:
    name, folder, dimension, budget, repeats, threads, clock_name = sys.argv[1:8]
    warnings.filterwarnings("ignore")
    torch.set_num_threads(int(threads))
    clock = time.process_time if clock_name == "cpu" else time.perf_counter
    rows = json.loads(Path(folder, "rows.json").read_text())
    settings = (Path(folder), rows, int(dimension), int(budget))
    if name == "dattri_logra":
        run = dattri_logra(*settings)
    else:
        run = bergson(*settings, {"bergson_global": "global", "bergson_two_sided": "per_module"}[name])
    seconds = []
    for turn in range(int(repeats) + 1):
        start = clock()
        run(turn)
        seconds.append(clock() - start)
    print(json.dumps({"rows_per_second": len(rows) / statistics.median(seconds[1:])}))


if __name__ == "__main__":
    main()

"""Rows per second of the gradient stage against its floor, the LESS recipe and rivals' own packages.

    nice python tests/benchmarks/bench_gradients.py --repeats 5
    nice python tests/benchmarks/bench_gradients.py --rivals bergson_global bergson_two_sided --rival-python PATH

One process, contestants take turns, medians of the rounds. All see the same random Llama, LoRA adapter and rows.

- bare: forward and backward of padded batches with the adapter's weight gradients, and nothing else: the usual floor.
- ours: per-row gradients, official Adam direction, sketch; also with a rotated one for signs, sixteen times as wide, and
  with exact matching instead of a projection.
- row_by_row: one row at a time, autograd, Adam direction, *no* projection: no batch-of-one recipe is faster.
- less: the recipe of LESS: row by row, then 16 rows at a time through a dense sign matrix drawn block by block.
- less_drawn_once: the same with a single drawn block used over and over: its arithmetic without its random numbers.
- rivals: in a process of their own (bench_rivals.py), in the environment named by --rival-python.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raysift.gradients.adam import AdamDirection, FlatMoments
from raysift.gradients.collect import RowGradients
from raysift.gradients.match import ExactMatch
from raysift.gradients.rows import TokenRow, plan_batches
from raysift.gradients.settings import AdamSettings, ProjectionSettings
from raysift.store.distortion import estimate_distortion
from raysift.store.projection import Projection
from raysift.templates import IGNORED

RIVALS = ["bergson_global", "bergson_two_sided", "dattri_logra"]
Contestant = Callable[[list[TokenRow]], None]


def make_model(args: argparse.Namespace) -> Any:
    """A random Llama with a LoRA adapter whose B factors are not zero."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=args.vocabulary,
        hidden_size=args.hidden,
        intermediate_size=args.hidden * 11 // 4,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 64,
        num_key_value_heads=args.hidden // 64,
        max_position_embeddings=4096,
    )
    targets: Any = "all-linear" if args.targets == "all" else ["q_proj", "k_proj", "v_proj", "o_proj"]
    lora = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=targets, init_lora_weights=False)
    model = get_peft_model(LlamaForCausalLM(config), lora)
    return model.eval().to(args.device, getattr(torch, args.dtype))


def make_rows(args: argparse.Namespace) -> list[TokenRow]:
    """Rows of 40 to 200 tokens, the first `--prompt-share` of each without label."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(args.rows):
        ids = rng.integers(0, args.vocabulary, rng.integers(40, 201))
        labels = ids.copy()
        labels[: int(len(ids) * args.prompt_share)] = IGNORED
        rows.append(TokenRow(i, ids, labels))
    return rows


def make_moments(model: Any) -> FlatMoments:
    """Moments of the size that training leaves: those of random gradients like the rows' own."""
    generator = torch.Generator().manual_seed(1)
    weights = [p for p in model.parameters() if p.requires_grad]
    first = tuple(torch.randn(w.numel(), generator=generator) * 1e-3 for w in weights)
    second = tuple(torch.rand(w.numel(), generator=generator) * 1e-5 for w in weights)
    return FlatMoments(first, second, step=100)


def bare(model: Any, args: argparse.Namespace) -> Contestant:
    def run(rows: list[TokenRow]) -> None:
        for plan in plan_batches([len(row) for row in rows], args.token_budget):
            part = [rows[i] for i in plan]
            width = max(len(row) for row in part)
            ids, labels, mask = (np.full((len(part), width), value) for value in (0, IGNORED, 0))
            for i, row in enumerate(part):
                ids[i, : len(row)], labels[i, : len(row)], mask[i, : len(row)] = row.input_ids, row.labels, 1
            tensors = {"input_ids": ids, "labels": labels, "attention_mask": mask}
            tensors = {name: torch.from_numpy(value).to(args.device) for name, value in tensors.items()}
            model(**tensors, use_cache=False).loss.backward()
            model.zero_grad(set_to_none=True)

    return run


def ours(model: Any, args: argparse.Namespace, exact_targets: int = 0, signs: bool = False) -> Contestant:
    gradients = RowGradients(model, token_budget=args.token_budget)
    layout = gradients.adapter.layout
    if exact_targets:
        generator = torch.Generator().manual_seed(2)
        gradients.sink = ExactMatch(torch.randn(exact_targets, layout.total, generator=generator), layout)
    else:
        drawn = {"kind": "signs", "dimension": 16 * args.dimension} if signs else {"dimension": args.dimension}
        gradients.sink = Projection(ProjectionSettings.model_validate(drawn), layout)
        print(estimate_distortion(gradients.sink.settings, layout.total), file=sys.stderr)
    gradients.direction = AdamDirection(AdamSettings(), make_moments(model))

    def run(rows: list[TokenRow]) -> None:
        result = gradients.run(rows)
        assert len(result.ids) == len(rows) and np.isfinite(result.vectors).all()

    return run


def row_by_row(model: Any, args: argparse.Namespace, draw: str) -> Contestant:
    """The recipe of LESS; the matrix is drawn anew for each call and block, since 8192 x parameters does not fit."""
    weights = [p for p in model.parameters() if p.requires_grad]
    moments = make_moments(model)
    first, second = (torch.cat(part).to(args.device) for part in (moments.first, moments.second))

    def direction(row: TokenRow) -> torch.Tensor:
        tensors = {"input_ids": row.input_ids[None], "labels": row.labels[None]}
        model(**{n: torch.from_numpy(v).to(args.device) for n, v in tensors.items()}, use_cache=False).loss.backward()
        g = torch.cat([w.grad.flatten() for w in weights]).float()
        model.zero_grad(set_to_none=True)
        return (0.9 * first + 0.1 * g) / (0.999 * second + 0.001 * g**2 + 1e-8).sqrt()

    def run(rows: list[TokenRow]) -> None:
        for start in range(0, len(rows), 16):
            stacked = torch.stack([direction(row) for row in rows[start : start + 16]])
            if draw != "never":
                dense_projection(stacked, args.dimension, draw_once=draw == "once")

    return run


def dense_projection(vectors: torch.Tensor, dimension: int, block: int = 128, draw_once: bool = False) -> torch.Tensor:
    """TRAK's BasicProjector as LESS calls it: blocks of 128 columns of random signs, one seed per block."""
    out = torch.empty(len(vectors), dimension, device=vectors.device)
    signs = torch.empty(vectors.shape[1], block, device=vectors.device)
    for start in range(0, dimension, block):
        if not (draw_once and start):
            generator = torch.Generator(vectors.device).manual_seed(start)
            signs.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
        out[:, start : start + block] = (vectors @ signs)[:, : dimension - start]
    return out


def rival(name: str, model: Any, rows: list[TokenRow], args: argparse.Namespace) -> dict[str, float] | str:
    """Rows per second of another package, or the last line of what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "rows.json").write_text(
            json.dumps([[row.input_ids.tolist(), row.labels.tolist()] for row in rows])
        )
        model.get_base_model().config.save_pretrained(folder)
        Path(folder, "lora.json").write_text(json.dumps({"rank": args.rank, "targets": args.targets}))
        script = Path(__file__).with_name("bench_rivals.py")
        settings = (args.dimension, args.token_budget, args.repeats, args.threads, args.clock)
        command = [args.rival_python, str(script), name, folder, *map(str, settings)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or ["no output"]
    return json.loads(lines[-1]) if done.returncode == 0 else lines[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--slow-rows", type=int, default=16, help="rows for the row-by-row recipes")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: for a shared box, with --threads 1"
    )
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--targets", choices=["all", "attention"], default="all")
    parser.add_argument("--prompt-share", type=float, default=0.25)
    parser.add_argument("--dimension", type=int, default=8192)
    parser.add_argument("--token-budget", type=int, default=2048)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--only", nargs="*", help="contestants to run; all of ours by default")
    parser.add_argument("--rivals", nargs="*", default=[], choices=RIVALS)
    parser.add_argument("--rival-python", default=sys.executable)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    warnings.filterwarnings("ignore")

    model, rows = make_model(args), make_rows(args)
    contestants: dict[str, tuple[Contestant, int]] = {
        "bare": (bare(model, args), args.rows),
        "ours": (ours(model, args), args.rows),
        "ours_signs": (ours(model, args, signs=True), args.rows),
        "ours_exact_8_targets": (ours(model, args, exact_targets=8), args.rows),
        "row_by_row": (row_by_row(model, args, "never"), args.slow_rows),
        "less_drawn_once": (row_by_row(model, args, "once"), args.slow_rows),
        "less": (row_by_row(model, args, "always"), args.slow_rows),
    }
    contestants = {name: c for name, c in contestants.items() if not args.only or name in args.only}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(args.repeats + 1):
        for name, (run, count) in contestants.items():
            if name == "less" and turn != 1:
                continue  # minutes on a CPU, and no caches to warm
            start = clock()
            run(rows[:count])
            if args.device == "cuda":
                torch.cuda.synchronize()
            if turn:
                seconds[name].append((clock() - start) / sum(len(row) for row in rows[:count]))
    # Contestants on fewer rows are compared per token: rows per second at the mean length of all rows.
    length = sum(len(row) for row in rows) / len(rows)
    rates: dict[str, Any] = {name: 1 / (length * statistics.median(values)) for name, values in seconds.items()}
    for name in args.rivals:
        found = rival(name, model, rows, args)
        rates[name] = found["rows_per_second"] if isinstance(found, dict) else found

    base = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    adapter = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(
        f"base {base:,} parameters, adapter {adapter:,}, {args.rows} rows of 40 to 200 tokens, {args.threads} threads"
    )
    floor = rates.get("bare", float("nan"))
    for name, rate in rates.items():
        text = rate if isinstance(rate, str) else f"{rate:9.2f} rows/s   {rate / floor:5.2f} of bare"
        print(f"{name:>22}  {text}")
    print(json.dumps({"settings": vars(args), "rows_per_second": rates, "seconds_per_token": seconds}))


if __name__ == "__main__":
    main()

"""Held GPU-hours of a run with an 8B model, by arithmetic from the code's own plans: against the floor, before and after.

    python tests/benchmarks/bench_8b.py --rows 1000000 --gpus 8

No model is run. The widths of Llama-3.1-8B stand on the meta device, where the project's own passes are made operation by
operation: products are counted in FLOP by number type, all other operations in bytes that they move, and both in launches. How
rows become passes, which rank takes them and how long it waits for the others is what the project's planners say about real
lengths. A card's rates turn counts into seconds; the rates, and what else is assumed, are printed.

The floor of a stage is its products alone, without padding, waiting or memory traffic: 2 FLOP for each weight and token forward, 2
back to the activations, 2 more for weights that are trained.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from raysift.actors.effective_batches import Place
from raysift.actors.peers import LANES
from raysift.actors.row_gradients import rows_to_sort
from raysift.actors.step_trainer import deal, plan_passes
from raysift.gradients.dealing import deal_rows
from raysift.gradients.rows import TokenRow, pad_rows, plan_batches
from raysift.jobs.on_ray.raydata import rows_at_once
from raysift.policy.arithmetic import Card, step_seconds
from raysift.settings.cluster import Cluster, Machine
from raysift.settings.gradients import AdamSettings, ProjectionSettings
from raysift.settings.memory import Shape
from raysift.settings.resources import Resources
from raysift.settings.training import TrainConfig, recipe
from raysift.templates import IGNORED

POOL = Path(__file__).resolve().parents[3] / "shared" / "data" / "pool" / "pool_public.parquet"
MEAN_TOKENS, LONGEST = 300, 2048
AT_ONCE = rows_at_once(Resources().of("score", Cluster((Machine(192, 8),), 192, 8)))
BLOCKS_TAIL = 0.5
"""Of its last block a GPU works alone for half the block's time, on average, while others have ended."""
LLAMA_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
SHAPE = Shape(4096, 32, 128256, 4096, 1024, 14336, True, False, 131072)
WEIGHTS = SHAPE.parameters - SHAPE.vocabulary * SHAPE.hidden  # embeddings are looked up
BODY = WEIGHTS - SHAPE.vocabulary * SHAPE.hidden  # without the head, which answers alone need

ASSUMED = {
    "attained TFLOP/s of bfloat16 products": 450.0,
    "attained TFLOP/s of TF32 products": 225.0,
    "attained TFLOP/s of float32 products": 45.0,
    "attained TB/s of memory": 2.7,
    "seconds to launch a kernel": 6e-6,
    "seconds to start a stage's workers and load 16 GB": 60.0,
    "seconds in the driver a stage": 20.0,
    "GB/s that shards are gathered with": 200.0,
    "GPU-hours of the floor to decode half a million answers": 3.0,
    "held by vLLM, of that floor": 1.17,
    "validation tokens of RAISE": 65_000.0,
    "share of a row's tokens that count": 2 / 3,
    "million weights of the reward model and of the encoder": 435.0,
}
BEFORE = {"ROSE": (57, 78), "MoDS": (20, 30), "RAISE": (130, 205)}
"""Held GPU-hours of 1M rows before this work: an arithmetic by hand with the same rates. The first number is with settings
for eight GPUs, the second with the defaults of that time."""
TARGETS = {"ROSE": 1.5, "MoDS": 2.0, "RAISE": 3.0}


class Counted(TorchDispatchMode):
    """Counts what an operation costs on a card: FLOP of products by number type, bytes of everything else, launches.

    Attention is one kernel on a card, which moves what goes in and comes out; its products are counted one by one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flop: Counter[torch.dtype] = Counter()
        self.bytes = self.launches = 0
        self.fused = False
        self._plain = torch.nn.functional.scaled_dot_product_attention

    def __enter__(self) -> Any:
        torch.nn.functional.scaled_dot_product_attention = self._attend
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        torch.nn.functional.scaled_dot_product_attention = self._plain
        super().__exit__(*raised)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return True  # transformers asks whether rows are packed: all positions begin at 0
        out = func(*args, **(kwargs or {}))
        tensors = [one for one in [*_flat(args), *_flat(out)] if isinstance(one, torch.Tensor)]
        formula = flop_registry.get(func._overloadpacket)
        moves = bool(tensors) and not func.is_view and func is not torch.ops.aten._unsafe_view.default
        if formula is not None:
            self.flop[tensors[0].dtype] += formula(*args, **(kwargs or {}), out_val=out)
        elif moves and not self.fused:
            self.bytes += _bytes(tensors)
        self.launches += not self.fused and (moves or formula is not None)
        return out

    def _attend(self, *inputs: Any, **settings: Any) -> Any:
        self.fused = True
        out = self._plain(*inputs, **settings)
        self.fused = False
        tensors = [one for one in (*inputs[:3], out) if isinstance(one, torch.Tensor)]
        self._one_kernel(tensors)
        waiting = [one for one in inputs[:3] if one.requires_grad]
        if waiting:
            left = [len(waiting)]

            def begins(gradient: Any) -> None:
                self._one_kernel([*tensors, *tensors])
                self.fused = True

            def ends(gradient: Any) -> None:
                left[0] -= 1
                self.fused = left[0] > 0

            out.register_hook(begins)
            for one in waiting:
                one.register_hook(ends)
        return out

    def _one_kernel(self, tensors: list[torch.Tensor]) -> None:
        self.bytes += _bytes(tensors)
        self.launches += 1


def _bytes(tensors: list[torch.Tensor]) -> int:
    return sum(one.numel() * one.element_size() for one in tensors)


def _flat(values: Any) -> list[Any]:
    if isinstance(values, list | tuple):
        return [inner for value in values for inner in _flat(value)]
    return [values]


@dataclass(frozen=True)
class PassCost:
    """A pass, counted, and the tokens in it."""

    tokens: int
    half: float
    single: float
    bytes: float
    launches: int

    def seconds_a_token(self, apart: bool) -> float:
        """On the assumed card. `apart`: memory traffic takes its own time; if not, it is in the rate that products attain.

        Launches count where they take longer than the work.
        """
        work = self.half / rate("bfloat16") + self.single / rate("TF32")
        work += apart * self.bytes / (1e12 * ASSUMED["attained TB/s of memory"])
        return max(work, self.launches * ASSUMED["seconds to launch a kernel"]) / self.tokens

    def of(self, tokens: float) -> PassCost:
        """A pass of another size: its work grows with its tokens, its launches do not."""
        share = tokens / self.tokens
        return PassCost(int(tokens), self.half * share, self.single * share, self.bytes * share, self.launches)


def rate(kind: str) -> float:
    """FLOP a second of products of a number type."""
    return 1e12 * ASSUMED[f"attained TFLOP/s of {kind} products"]


def _model(rank: int | None) -> Any:
    """Llama-3.1-8B on the meta device: a bfloat16 base, with a rank under float32 factors on its attention as in `less`."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        base = LlamaForCausalLM(LlamaConfig(**LLAMA_8B)).to(torch.bfloat16).eval()
        if rank is None:
            return base
        settings = LoraConfig(r=rank, lora_alpha=4 * rank, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
        model = get_peft_model(base, settings)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    return model.eval()


def _rows(count: int, tokens: int) -> list[TokenRow]:
    ids = np.full(tokens, 7, np.int64)
    labels = np.where(np.arange(tokens) < tokens * (1 - ASSUMED["share of a row's tokens that count"]), IGNORED, ids)
    return [TokenRow(number, ids, labels) for number in range(count)]


def _counted(work: Any, rows: list[TokenRow], in_halves: bool = False) -> PassCost:
    tokens = len(rows[0])
    with Counted() as counted:
        work()
    half = counted.flop[torch.bfloat16] + (counted.flop[torch.float32] if in_halves else 0)
    single = 0 if in_halves else counted.flop[torch.float32]
    return PassCost(tokens * len(rows), half, single, counted.bytes, counted.launches)


@cache
def gradient_pass(rank: int, tokens: int = 4096) -> PassCost:
    """A pass of `RowGradients` over rows of the mean length, through Adam's direction into the default store's signs."""
    from raysift.gradients.adam import AdamDirection, FlatMoments
    from raysift.gradients.collect import RowGradients
    from raysift.store.packing import PackedProjection
    from raysift.store.projection import Projection
    from raysift.store.vectors import VectorForm

    gradients = RowGradients(_model(rank), token_budget=tokens)
    layout = gradients.adapter.layout
    with torch.device("meta"):
        moments = FlatMoments(*(tuple(torch.empty(size) for size in layout.sizes) for _ in range(2)), 100)
    gradients.direction = AdamDirection(AdamSettings(), moments)
    settings = ProjectionSettings()
    projection = Projection(settings, layout)
    gradients.sink = PackedProjection(projection, VectorForm.of(settings, projection.width))
    rows = _rows(tokens // MEAN_TOKENS, MEAN_TOKENS)
    with torch.enable_grad():
        return _counted(lambda: gradients._one_pass(rows, "mean"), rows)


@cache
def training_pass(rank: int | None, tokens: int = 4096) -> PassCost:
    """Forward and backward of a training of a LoRA adapter, or of all weights without a rank.

    Under autocast, which meta tensors lack, all products run in bfloat16.
    """
    from raysift.gradients.loss import find_head, label_logits

    model, rows = _model(rank), _rows(tokens // MEAN_TOKENS, MEAN_TOKENS)
    batch = pad_rows(rows, torch.device("meta"))

    def work() -> None:
        logits = label_logits(model, batch, find_head(model))
        torch.nn.functional.cross_entropy(logits.float(), batch.targets, reduction="sum").backward()

    return _counted(work, rows, in_halves=True)


@cache
def forward_pass(tokens: int = 16384) -> PassCost:
    """A pass that only reads: likelihoods, embeddings, validation."""
    from raysift.gradients.loss import find_head, label_logits

    model, rows = _model(None), _rows(tokens // MEAN_TOKENS, MEAN_TOKENS)
    batch = pad_rows(rows, torch.device("meta"))
    with torch.no_grad():
        return _counted(lambda: label_logits(model, batch, find_head(model)), rows, in_halves=True)


# --- how rows become passes, by the project's own planners -----------------------------------------------------------


def real_lengths(count: int, pool: Path, seed: int = 0) -> tuple[np.ndarray, str]:
    """Tokens of rows with a mean of 300: characters of a real pool, scaled; drawn where there is none."""
    draw = np.random.default_rng(seed)
    if pool.exists():
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        cells = pq.read_table(pool, columns=["messages"])["messages"].combine_chunks()
        sizes = pc.utf8_length(pc.struct_field(cells.values, "content")).to_numpy(zero_copy_only=False)
        letters = np.add.reduceat(sizes, cells.offsets.to_numpy()[:-1])
        lengths, source = draw.choice(letters, count), f"characters of {pool.name}, scaled"
    else:
        lengths, source = draw.lognormal(0, 0.9, count), "drawn: log-normal with sigma 0.9"
    scale = MEAN_TOKENS
    for _ in range(20):  # cutting at the longest length lowers the mean
        found = np.clip((lengths * scale / lengths.mean()).astype(int), 16, LONGEST)
        scale *= MEAN_TOKENS / found.mean()
    return found, source


def padding_of(lengths: np.ndarray, tokens: int, rows: int) -> float:
    """Padded tokens per real token, where passes are planned for so many rows at a time."""
    padded = 0
    for start in range(0, len(lengths), rows):
        part = lengths[start : start + rows].tolist()
        padded += sum(len(plan) * part[plan[0]] for plan in plan_batches(part, tokens))
    return padded / lengths.sum()


def dealt(lengths: np.ndarray, batch: int, ranks: int, place: Any) -> tuple[float, float]:
    """Padded tokens of the fullest rank x ranks per real token, and the mean tokens of a pass: steps of a training."""
    held = passes = 0
    for start in range(0, len(lengths) - batch + 1, batch):
        part = lengths[start : start + batch].tolist()
        per_rank = deal_rows(part, ranks, place.tokens_per_pass, place.rows_per_pass)
        work = [sum(len(one) * max(part[row] for row in one) for one in own if one) for own in per_rank]
        held += max(work) * ranks
        passes += max(map(len, per_rank))
    used = lengths[: len(lengths) // batch * batch]
    return held / used.sum(), held / ranks / passes


def laned(lengths: np.ndarray, batch: int) -> float:
    """Padded tokens of the fullest lane x lanes per real token: steps of RAISE, of which each process has a lane."""
    held = 0
    for start in range(0, len(lengths), batch):
        part = lengths[start : start + batch]
        passes = plan_passes(part, Resources().tokens, Resources().batch_rows)
        work = [len(one) * int(part[one].max()) for one in passes]
        held += LANES * max(sum(work[number] for number in lane) for lane in deal(len(passes)))
    return held / lengths.sum()


# --- stages ----------------------------------------------------------------------------------------------------------


@dataclass
class Stage:
    """GPU-hours of a stage: its floor, and what the cluster is held for, without and with memory traffic beside products."""

    name: str
    floor: float
    held: tuple[float, float]
    why: str = ""

    def line(self) -> str:
        cells = [f"{hours:8.2f}{hours / self.floor if self.floor else math.nan:7.2f}" for hours in self.held]
        return f"  {self.name:36}{self.floor:8.2f}{''.join(cells)}   {self.why}".replace("nan", "  -")


Both = tuple[float, float]


def both(work: Callable[[bool], float]) -> Both:
    """Without and with memory traffic beside the products."""
    return work(False), work(True)


class Account:
    """What the stages of a method take on a cluster of equal GPUs."""

    def __init__(self, rows: int, gpus: int, lengths: np.ndarray) -> None:
        self.rows, self.gpus, self.lengths = rows, gpus, lengths
        self.mean = float(lengths.mean())
        self.tokens = rows * self.mean

    def floor(self, tokens: float, flop: float) -> float:
        """GPU-hours of these products alone."""
        return tokens * flop / rate("bfloat16") / 3600

    def overhead(self, stages: int) -> Stage:
        """All GPUs are held while workers start and the driver works."""
        each = ASSUMED["seconds to start a stage's workers and load 16 GB"] + ASSUMED["seconds in the driver a stage"]
        held = stages * each * self.gpus / 3600
        return Stage("starts and driver", 0.0, (held, held), f"{stages} stages, assumed seconds")

    def answered(self, tokens: float, padding: float, seconds_a_token: float, passes: float) -> float:
        """Hours of a stage whose rows cost `passes` times their tokens, and what others wait for the last blocks."""
        block = Resources().block_rows * self.mean * passes * padding * seconds_a_token
        return (tokens * padding * seconds_a_token + BLOCKS_TAIL * block * self.gpus) / 3600

    def training(self, name: str, rows: int, config: TrainConfig) -> Stage:
        """A fine-tune on all GPUs, whose steps are dealt by the project's own planner."""
        full, tokens = config.method == "full", rows * self.mean * config.epochs
        place = Place(tokens_per_pass=Resources().tokens, rows_per_pass=Resources().batch_rows)
        padded, size = dealt(self.lengths[: 40 * config.batch_size], config.batch_size, self.gpus, place)
        cost = training_pass(None if full else config.lora_rank).of(size)
        gathered = (
            3 * 2 * SHAPE.parameters / (1e9 * ASSUMED["GB/s that shards are gathered with"]) / size if full else 0.0
        )
        held = both(lambda apart: tokens * padded * (cost.seconds_a_token(apart) + gathered) / 3600)
        why = f"padding and waiting {padded - 1:.0%}, {size:.0f} tokens a pass"
        return Stage(name, self.floor(tokens, (6 if full else 4) * WEIGHTS), held, why)

    def read(self, name: str, passes: float, weights: float, tokens: int, share: float = 1.0) -> Stage:
        """A stage that only reads: a row costs `passes` times its tokens."""
        padding, read = padding_of(self.lengths, tokens, AT_ONCE), self.tokens * passes * share
        cost, size = forward_pass(), weights / WEIGHTS
        held = both(lambda apart: self.answered(read, padding, cost.seconds_a_token(apart) * size, passes))
        why = f"padding {padding - 1:.0%}: passes are planned for {AT_ONCE} rows at a time"
        return Stage(name, self.floor(read, 2 * weights), held, why)


def rose(account: Account) -> list[Stage]:
    """5 % of the rows in the warm-up and in the selection, gradients of all at four checkpoints."""
    config, share, budget = recipe("less"), account.rows // 20, Resources().tokens
    padding = padding_of(account.lengths, budget, rows_to_sort(budget))
    cost, tokens = gradient_pass(config.lora_rank), 4 * account.tokens
    held = both(lambda apart: account.answered(tokens, padding, cost.seconds_a_token(apart), 4))
    more = (cost.half + cost.single) / cost.tokens / (4 * WEIGHTS) - 1
    why = f"padding {padding - 1:.0%}; {more:+.0%} products; {cost.bytes / cost.tokens / 1e6:.0f} MB moved a token"
    return [
        account.training("warm-up, 4 epochs", share, config),
        Stage("gradients, 4 checkpoints", account.floor(tokens, 4 * WEIGHTS), held, why),
        account.training("final, 4 epochs", share, config),
        account.overhead(6),
    ]


def mods(account: Account) -> list[Stage]:
    """Rewards of all rows and of half the answers, embeddings of half, full fine-tunes on 1 % and 5 %, answers to half."""
    scored, config = 1e6 * ASSUMED["million weights of the reward model and of the encoder"], recipe("mods")
    decoded = account.rows / 1e6 * ASSUMED["GPU-hours of the floor to decode half a million answers"]
    with_vllm = decoded * ASSUMED["held by vLLM, of that floor"]
    centres = account.rows // 20
    covering = 2 * 1024 * account.rows / 2 * centres / rate("float32") / 3600
    return [
        account.read("rewards and necessity", 1.5, scored, 32768),
        account.read("embeddings of the good half", 1.0, scored, 32768, 0.5),
        Stage(
            "k-center", covering, (1.3 * covering,) * 2, f"{centres} centres, float32 products, all GPUs have a share"
        ),
        account.training("seed, 3 epochs", account.rows // 100, config),
        Stage("answers to the good half", decoded, (with_vllm, with_vllm), "vLLM, assumed"),
        account.training("final, 3 epochs", account.rows // 20, config),
        account.overhead(10),
    ]


def raise_(account: Account) -> list[Stage]:
    """Features of all rows, then 20 trainings on 3 % of the rows, each step validated; all GPUs share a training."""
    config = recipe("raise")
    steps = 20 * (3 * account.rows // 100 // config.batch_size)
    batch, checked = config.batch_size * account.mean, ASSUMED["validation tokens of RAISE"]
    floor = account.floor(steps, (batch * 4 + checked * 2) * WEIGHTS)
    padded = laned(account.lengths[: 40 * config.batch_size], config.batch_size)
    card = Card(
        products=rate("bfloat16"),
        single=rate("float32"),
        memory=1e12 * ASSUMED["attained TB/s of memory"],
        link=300e9,
        launch_s=ASSUMED["seconds to launch a kernel"],
    )
    trained = SHAPE.adapter(config.lora_rank, config.lora_targets)
    step = step_seconds(
        SHAPE, trained, int(batch * padded), int(checked), account.rows, account.gpus, card, balance=1.0
    )
    slower = [
        training_pass(config.lora_rank).seconds_a_token(True) / training_pass(config.lora_rank).seconds_a_token(False),
        forward_pass().seconds_a_token(True) / forward_pass().seconds_a_token(False),
    ]
    apart = step.total + step.train * (slower[0] - 1) + step.validate * (slower[1] - 1)
    held = tuple(steps * seconds * account.gpus / 3600 for seconds in (step.total, apart))
    why = (
        f"{steps} steps of {step.total:.2f} s: train {step.train:.2f} (padding and waiting {padded - 1:.0%}), "
        f"exchange {step.exchange:.3f}, validate {step.validate:.2f}, choose {step.choose:.4f}"
    )
    return [
        account.read("difficulty and embeddings", 2.5, BODY, 16384),
        Stage("20 trainings, validated at each step", floor, held, why),
        account.overhead(8),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--pool", type=Path, default=POOL, help="Parquet with messages, for the lengths of real rows")
    options = parser.parse_args()
    lengths, source = real_lengths(20_000, options.pool)
    account = Account(options.rows, options.gpus, lengths)
    print(
        f"Llama-3.1-8B, {options.rows:,} rows of {lengths.mean():.0f} tokens on {options.gpus} GPUs; lengths: {source}\n"
    )
    print("Assumed:")
    for what, value in ASSUMED.items():
        print(f"  {what}: {value:g}")
    print(f"\n  {'GPU-hours':36}{'floor':>8}{'held':>8}{'ratio':>7}{'held*':>8}{'ratio':>7}")
    found = {}
    for name, stages in (("ROSE", rose), ("MoDS", mods), ("RAISE", raise_)):
        lines = stages(account)
        floor = sum(stage.floor for stage in lines)
        held = sum(stage.held[0] for stage in lines), sum(stage.held[1] for stage in lines)
        low, high = (hours * options.rows / 1e6 / floor for hours in BEFORE[name])
        print(name, *(stage.line() for stage in lines), sep="\n")
        print(Stage("in all", floor, held, f"wanted: {TARGETS[name]}; before: {low:.1f} to {high:.1f}").line())
        found[name] = {"floor": round(floor, 1), "ratio": [round(hours / floor, 2) for hours in held]}
    print("\n  held: the rate of products is what a whole pass attains, memory traffic included, as in the floor.")
    print(
        "  held*: products attain that rate and what other operations move takes its own time, which no kernel hides."
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()

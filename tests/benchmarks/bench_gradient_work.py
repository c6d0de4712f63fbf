"""Work of the gradient stage at the widths of an 8B model, counted: products, bytes of other operations, padding, swaps.

    nice python tests/benchmarks/bench_gradient_work.py --pool ../shared/data/pool/pool_public_smoke5k.parquet

Nothing is computed: the model and its passes are on torch's meta device, where operations have shapes and no numbers. Every
operation is seen by a dispatch mode. Those with a formula in torch's flop counter count as products, by the precision they
multiply in; all others count by the bytes that they read and write, views apart. `hours` turns counts into GPU-hours by the
rates of a card, without overlap, so ratios between two ways to compute the same are worth more than the hours themselves.

`tests/benchmarks` may import `bare`, `ours`, `padding_of` and `swapped_per_row`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from raysift.actors.row_gradients import rows_to_sort
from raysift.gradients.adam import AdamDirection, FlatMoments
from raysift.gradients.collect import RowGradients
from raysift.gradients.match import ExactMatch
from raysift.gradients.rows import TokenRow, plan_batches
from raysift.settings.gradients import AdamSettings, ProjectionSettings
from raysift.store.packing import PackedProjection
from raysift.store.projection import Projection
from raysift.store.vectors import VectorForm
from raysift.templates import IGNORED

LLAMA_3_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
CHECKPOINTS = 4


@dataclass(frozen=True)
class Card:
    """Attainable rates of a GPU: products a second in bfloat16, TF32 and float32, and bytes a second of its memory."""

    bf16: float = 450e12
    tf32: float = 225e12
    fp32: float = 45e12
    bytes: float = 2.6e12
    pageable: float = 6e9
    """Bytes a second from pageable host memory."""


@dataclass(frozen=True)
class Work:
    """Of one pass: operations in half and in single precision, bytes of operations that are no products, and real tokens."""

    half: float
    single: float
    bytes: float
    tokens: int

    def seconds(self, card: Card = Card(), tensor_cores: bool = True) -> float:
        """Of one token, if nothing overlaps. Without `tensor_cores` float32 multiplies as float32, not as TF32."""
        single = card.tf32 if tensor_cores else card.fp32
        return (self.half / card.bf16 + self.single / single + self.bytes / card.bytes) / self.tokens


class Counting(TorchDispatchMode):
    """Counts the work of every operation inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.half = self.single = self.bytes = 0.0

    def __torch_dispatch__(self, function: Any, _types: Any, given: Any = (), named: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            return True  # transformers asks whether rows are packed: whether all positions belong to one sequence
        result = function(*given, **(named or {}))
        tensors = [leaf for leaf in tree_leaves((given, named)) if isinstance(leaf, torch.Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if (packet := function._overloadpacket) in flop_registry:
            work = flop_registry[packet](*given, **(named or {}), out_val=result)
            if tensors[0].dtype == torch.float32:
                self.single += work
            else:
                self.half += work
        elif made and not function.is_view and not packet.__name__.startswith(("empty", "detach", "_unsafe_view")):
            self.bytes += sum(leaf.nbytes for leaf in (*tensors, *made))
        return result


@lru_cache(maxsize=2)
def make_model(rank: int, targets: tuple[str, ...] | str, layers: int = 32) -> Any:
    """An 8B Llama in bfloat16 without numbers, under a LoRA adapter in float32 if `rank` is not 0."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model: Any = LlamaForCausalLM(LlamaConfig(**LLAMA_3_8B | {"num_hidden_layers": layers})).to(torch.bfloat16)
        if not rank:
            return model.requires_grad_(False).eval()
        chosen = targets if isinstance(targets, str) else list(targets)
        tuned = get_peft_model(model, LoraConfig(r=rank, target_modules=chosen))
    for name, weight in tuned.named_parameters():
        if "lora_" in name:
            weight.data = weight.data.float()
    return tuned.eval()


def make_rows(rows: int, tokens: int, answer_share: float = 0.6) -> list[TokenRow]:
    """Rows of one length, whose answers are the last part."""
    ids = np.full(tokens, 7)
    labels = np.where(np.arange(tokens) < tokens * (1 - answer_share), IGNORED, ids)
    return [TokenRow(number, ids, labels) for number in range(rows)]


def bare(rows: int = 13, tokens: int = 300) -> Work:
    """The floor: forward and backward pass of the base, gradients of activations only, logits where labels are."""
    from raysift.gradients.loss import find_head, label_logits, row_losses
    from raysift.gradients.rows import pad_rows

    model = make_model(0, "")
    batch = pad_rows(make_rows(rows, tokens), torch.device("meta"))
    embedding = model.get_input_embeddings()
    handle = embedding.register_forward_hook(lambda _m, _i, output: output.requires_grad_(True))
    try:
        with Counting() as counted:
            logits = label_logits(model, batch, find_head(model))
            weights = (1.0 / batch.n_labels.double())[batch.row_of]
            _, gradient = row_losses(logits, batch, weights, with_gradient=True)
            torch.autograd.backward(logits, gradient)
    finally:
        handle.remove()
    return Work(counted.half, counted.single, counted.bytes, rows * tokens)


def ours(
    rows: int = 13, tokens: int = 300, rank: int = 128, targets: tuple[str, ...] | str = ATTENTION, subtasks: int = 0
) -> Work:
    """A pass of the gradient stage, packed signs and all; matched exactly with so many subtasks if any are given."""
    model = make_model(rank, targets)
    gradients = RowGradients(model, token_budget=rows * tokens)
    layout, meta = gradients.adapter.layout, torch.device("meta")
    if subtasks:
        gradients.sink = ExactMatch.to_fill(subtasks, layout, [meta] * len(layout.sizes))
    else:
        projection = Projection(ProjectionSettings(), layout)
        projection._signs = {  # drawn on the host otherwise, once
            (i, meta): torch.empty(size, dtype=torch.int8, device=meta) for i, size in enumerate(layout.sizes)
        }
        gradients.sink = PackedProjection(projection, VectorForm(projection.width, signs=True))
    moments = tuple(torch.empty(size, device=meta) for size in layout.sizes)
    gradients.direction = AdamDirection(AdamSettings(), FlatMoments(moments, moments, 100))
    with Counting() as counted:
        gradients._one_pass(make_rows(rows, tokens), "mean")
    return Work(counted.half, counted.single, counted.bytes, rows * tokens)


def padding_of(lengths: Sequence[int], tokens: int, rows: int) -> float:
    """Share of padding in the passes of a stage that sorts so many rows at a time."""
    cells = real = 0
    for start in range(0, len(lengths), rows):
        part = list(lengths[start : start + rows])
        for plan in plan_batches(part, tokens):
            cells += len(plan) * part[plan[0]]
            real += sum(part[i] for i in plan)
    return 1 - real / cells


def swapped_per_row(rank: int = 128, rows: int = 64, moments: int = 0) -> float:
    """Bytes copied to the device for each row, where checkpoints take turns for parts of so many rows."""
    adapter = sum(weight.numel() for weight in make_model(rank, ATTENTION).parameters() if weight.requires_grad)
    return CHECKPOINTS * 4 * adapter * (1 + moments) / rows


def lengths_of(pool: str, longest: int) -> list[int]:
    """Tokens of a pool's rows, by the tokenizer of smol."""
    import pyarrow.parquet as pq

    from raysift.actors.language_model import load_tokenizer
    from raysift.templates import encode_conversation

    tokenizer = load_tokenizer("smol")
    rows = pq.read_table(pool, columns=["messages"])["messages"].to_pylist()
    return [len(encode_conversation(tokenizer, row, longest).input_ids) for row in rows]


def listing_share(pool: str, longest: int, rows: int = 500, repeats: int = 5) -> float:
    """How much longer a row takes to tokenise if special tokens are listed anew for it, with as many as Llama 3 has."""
    import pyarrow.parquet as pq

    from raysift import templates
    from raysift.actors.language_model import load_tokenizer

    tokenizer = load_tokenizer("smol")
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<|reserved_{number}|>" for number in range(239)]})
    messages = pq.read_table(pool, columns=["messages"])["messages"].slice(0, rows).to_pylist()
    taken: dict[bool, list[float]] = {True: [], False: []}
    for number in range(2 * repeats):
        forget, start = bool(number % 2), time.process_time()
        for row in messages:
            if forget:
                templates._PATTERNS.clear()
            templates.encode_conversation(tokenizer, row, longest)
        taken[forget].append(time.process_time() - start)
    return statistics.median(taken[True]) / statistics.median(taken[False])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", help="a Parquet file of conversations, for padding on its lengths")
    parser.add_argument("--longest", type=int, default=2048)
    args = parser.parse_args()
    floor = bare()
    print(
        f"floor       {floor.half / floor.tokens / 1e9:6.2f} GFLOP a token in half, {floor.bytes / floor.tokens / 1e6:6.1f} MB"
    )
    lost = {64: 0.2, 512: 0.04}
    if args.pool:
        lengths = lengths_of(args.pool, args.longest)
        print(f"{len(lengths)} rows, mean {np.mean(lengths):.0f} tokens; padding by rows sorted together")
        for tokens in (4096, 8192, 16384, 32768):
            rows = rows_to_sort(tokens)
            before, after = padding_of(lengths, tokens, 64), padding_of(lengths, tokens, rows)
            print(f"  passes of {tokens:6}: 64 rows {before:.3f}, {rows} rows {after:.3f}")
        print(
            f"tokenising a row, special tokens listed anew against once: {listing_share(args.pool, args.longest):.2f}"
        )
        lost = {rows: padding_of(lengths, 4096, rows) for rows in (64, 512)}
    print(f"swapped a row: {swapped_per_row() / 2**20:.1f} MiB before; 0 where checkpoints stay, else", end=" ")
    print(f"{swapped_per_row(rows=512, moments=2) / 2**20:.1f} MiB, with the moments, from page-locked memory")
    for name, targets, rank, subtasks in (
        ("attention, rank 128, signs", ATTENTION, 128, 0),
        ("attention, rank 128, 10 subtasks", ATTENTION, 128, 10),
        ("attention, rank 128, 57 subtasks", ATTENTION, 128, 57),
        ("all linear, rank 16, signs", "all-linear", 16, 0),
    ):
        work, card = ours(targets=targets, rank=rank, subtasks=subtasks), Card()
        copied = swapped_per_row(rank) / card.pageable / CHECKPOINTS
        row = work.tokens / 13
        before = work.seconds(card, tensor_cores=False) * row / (1 - lost[64]) + copied
        after, least = work.seconds(card) * row / (1 - lost[512]), floor.seconds(card) * row
        half, single, moved = (part / work.tokens / 1e9 for part in (work.half, work.single, work.bytes))
        print(
            f"{name:34} {half:6.2f} GFLOP a token in half, {single:5.2f} in single precision, {1000 * moved:.0f} MB; of the floor: "
            f"{before / least:.2f} before, {after / least:.2f} now"
        )


if __name__ == "__main__":
    main()

"""What tensor cores do to row gradients and scores, emulated: the factors of float32 products rounded as TF32 rounds them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from raysift.gradients.adam import AdamDirection, FlatMoments
from raysift.gradients.collect import RowGradients
from raysift.gradients.match import ExactMatch
from raysift.gradients.rows import TokenRow
from raysift.settings.gradients import AdamSettings, ProjectionSettings
from raysift.store.projection import Projection
from raysift.templates import IGNORED

ROWS, TARGETS = 64, 4
aten = torch.ops.aten
PRODUCTS = {aten.mm.default: (0, 1), aten.bmm.default: (0, 1), aten.addmm.default: (1, 2), aten.addmm_.default: (1, 2)}


class Tf32(TorchDispatchMode):
    """Rounds both factors of each float32 product to TF32's ten bits behind the point, and counts these products."""

    def __init__(self) -> None:
        super().__init__()
        self.products = 0

    def __torch_dispatch__(self, function: Any, _types: Any, given: Any = (), named: Any = None) -> Any:
        if function in PRODUCTS and given[PRODUCTS[function][0]].dtype == torch.float32:
            self.products += 1
            given = tuple(ten_bits(part) if i in PRODUCTS[function] else part for i, part in enumerate(given))
        return function(*given, **(named or {}))


def ten_bits(numbers: Tensor) -> Tensor:
    """To the nearest number with ten of float32's 23 bits behind the point."""
    bits = numbers.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def make(base: torch.dtype) -> Any:
    """A small Llama in this type, under an adapter in float32, as PEFT trains it."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=61,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        initializer_range=0.1,
    )
    model = transformers.LlamaForCausalLM(config)
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False))
    for name, weight in tuned.named_parameters():
        if "lora_" not in name:
            weight.data = weight.data.to(base)
        elif ".lora_B." in name:
            weight.data *= 0.1  # as after some training, and not as large as A
    return tuned.eval()


def make_rows(count: int) -> list[TokenRow]:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        ids = rng.integers(3, 61, rng.integers(12, 40))
        labels = ids.copy()
        labels[: len(ids) // 3] = IGNORED
        rows.append(TokenRow(number, ids, labels))
    return rows


def vectors_of(gradients: RowGradients) -> tuple[np.ndarray, np.ndarray]:
    """Whole gradients, and the cosines of the rows' directions with the gradients of the last rows."""
    rows, targets = make_rows(ROWS), TARGETS
    layout = gradients.adapter.layout
    gradients.sink, gradients.direction = Projection(ProjectionSettings(kind="none"), layout), None
    vectors = gradients.run(rows).vectors
    units = vectors[-targets:] / np.linalg.norm(vectors[-targets:], axis=1, keepdims=True)
    draw = torch.Generator().manual_seed(1)
    first, second = (tuple(torch.randn(size, generator=draw) for size in layout.sizes) for _ in range(2))
    moments = FlatMoments(tuple(m * 1e-3 for m in first), tuple(v.square() * 1e-5 for v in second), 50)
    gradients.sink = ExactMatch(torch.from_numpy(units), layout)
    gradients.direction = AdamDirection(AdamSettings(), moments)
    return vectors, gradients.run(rows[:-targets]).vectors


@lru_cache
def usual(base: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """The same without any rounding of products."""
    return vectors_of(RowGradients(make(base), token_budget=512))


def cosines(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return (found * expected).sum(1) / (np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1))


def rank_correlation(found: np.ndarray, expected: np.ndarray) -> float:
    ranks = [np.argsort(np.argsort(scores)) for scores in (found, expected)]
    return float(np.corrcoef(*ranks)[0, 1])


def test_ten_bits_are_what_tf32_keeps() -> None:
    numbers = torch.tensor([1.0, 1 + 2**-10, 1 + 2**-11, 1 + 2**-12, -3.14159265, 0.0])
    expected = [1.0, 1 + 2**-10, 1 + 2**-10, 1.0, -3.140625, 0.0]
    assert ten_bits(numbers).tolist() == expected


@pytest.mark.parametrize(("base", "share"), [(torch.float32, 0.05), (torch.bfloat16, 1.0)])
def test_tensor_cores_change_gradients_less_than_a_base_in_bfloat16_does_and_keep_the_order_of_scores(
    base: torch.dtype, share: float
) -> None:
    """Over a base in bfloat16, what the adapter's products lose moves the base's own rounding, but adds no more to it."""
    exact, scores = usual(base)
    with Tf32() as rounded:
        found, near = vectors_of(RowGradients(make(base), token_budget=512))
    halved = 1 - cosines(usual(torch.bfloat16)[0], usual(torch.float32)[0]).min()
    assert rounded.products > 100
    assert 0 < 1 - cosines(found, exact).min() < share * halved < 1e-3
    assert np.abs(near - scores).max() < 1e-3
    assert min(rank_correlation(near[:, i], scores[:, i]) for i in range(TARGETS)) > 0.999

"""Quick products are exact ones on CPUs and TF32 on GPUs, and nothing of either switch stays behind."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from raysift.gradients import cpu_products
from raysift.gradients.cpu_products import WORTH_IT, quick_products


def precision() -> str:
    return str(torch.backends.mkldnn.matmul.fp32_precision)  # type: ignore[attr-defined]


@pytest.fixture
def usual() -> str:
    """What the process computes with before the test: libraries that other tests load may have set it."""
    return precision()


class Model:
    def __init__(self, width: int = WORTH_IT, dtype: torch.dtype = torch.float32) -> None:
        self.embedding = torch.nn.Embedding(2, width, dtype=dtype)

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.embedding


def test_quick_products_are_those_of_float32_and_the_switch_is_put_back(usual: str) -> None:
    left, right = torch.randn(80, 384), torch.randn(200, 384)
    exact = left.double() @ right.double().T
    with quick_products(Model()):
        found = torch.nn.functional.linear(left, right)
    assert (found - exact).abs().max() < 1e-3
    assert precision() == usual
    with pytest.raises(KeyError), quick_products(Model()):
        raise KeyError
    assert precision() == usual


@pytest.mark.parametrize("exact", [True, False])
def test_a_processor_that_would_round_keeps_the_usual_products(
    monkeypatch: pytest.MonkeyPatch, usual: str, exact: bool
) -> None:
    monkeypatch.setattr(cpu_products, "_permission_changes_nothing", lambda: exact)
    with quick_products(Model()):
        assert precision() == ("bf16" if exact else usual)


def test_rounding_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of matrices that were rounded to bfloat16 first, as a processor with matrix units takes them."""
    usual = torch.Tensor.__matmul__
    monkeypatch.setattr(
        torch.Tensor,
        "__matmul__",
        lambda a, b: usual(a.bfloat16(), b.bfloat16()).to(a.dtype) if a.dtype == torch.float32 else usual(a, b),
    )
    assert cpu_products._permission_changes_nothing.__wrapped__() is False


@pytest.mark.parametrize("model", [Model(WORTH_IT - 1), Model(dtype=torch.bfloat16), torch.nn.Linear(512, 512)])
def test_narrow_half_precision_and_unknown_models_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, usual: str, model: object
) -> None:
    monkeypatch.setattr(cpu_products, "_permission_changes_nothing", lambda: True)
    with quick_products(model):
        assert precision() == usual


class OnGpu(torch.nn.Module):
    """A model whose weights say that they are on a GPU."""

    def parameters(self, recurse: bool = True) -> Iterator[torch.nn.Parameter]:
        yield SimpleNamespace(device=torch.device("cuda", 0))  # type: ignore[misc]


def test_products_of_a_model_on_a_gpu_use_its_tensor_cores_and_the_switch_is_put_back(usual: str) -> None:
    switch = torch.backends.cuda.matmul
    before = switch.fp32_precision
    assert before != "tf32"
    with quick_products(OnGpu()):
        assert switch.fp32_precision == "tf32" and precision() == usual
    assert switch.fp32_precision == before
    with pytest.raises(KeyError), quick_products(OnGpu()):
        raise KeyError
    assert switch.fp32_precision == before
    with quick_products(torch.nn.Linear(512, 512)):
        assert switch.fp32_precision == before

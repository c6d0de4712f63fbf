"""Quick products are exact ones, and nothing of the switch stays behind."""

import pytest
import torch

from raysift.actors import text_models
from raysift.actors.text_models import TextTokens, quick_products


def precision():
    return torch.backends.mkldnn.matmul.fp32_precision


USUAL = precision()


class OnCpu:
    device = torch.device("cpu")
    dtype = torch.float32


def test_quick_products_are_those_of_float32_and_the_switch_is_put_back():
    left, right = torch.randn(80, 384), torch.randn(200, 384)
    exact = left.double() @ right.double().T
    with quick_products(OnCpu()):
        found = torch.nn.functional.linear(left, right)
    assert (found - exact).abs().max() < 1e-3
    assert precision() == USUAL
    with pytest.raises(KeyError), quick_products(OnCpu()):
        raise KeyError
    assert precision() == USUAL


def test_a_processor_that_would_round_keeps_the_usual_products(monkeypatch):
    monkeypatch.setattr(text_models, "_permission_changes_nothing", lambda: False)
    with quick_products(OnCpu()):
        assert precision() == USUAL


def test_rounding_is_noticed(monkeypatch):
    """Products of matrices that were rounded to bfloat16 first, as a processor with matrix units takes them."""
    usual = torch.Tensor.__matmul__
    monkeypatch.setattr(
        torch.Tensor,
        "__matmul__",
        lambda a, b: usual(a.bfloat16(), b.bfloat16()).to(a.dtype) if a.dtype == torch.float32 else usual(a, b),
    )
    assert text_models._permission_changes_nothing.__wrapped__() is False


def test_half_precision_is_left_alone():
    class Half(OnCpu):
        dtype = torch.bfloat16

    with quick_products(Half()):
        assert precision() == USUAL


def test_tokens_have_the_length_of_their_ids():
    assert len(TextTokens([1, 2, 3], None)) == 3

"""AdamW with moments in eight bits: near torch's, the same however its rows are divided, and exact over a written file."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raysift.gradients.adam_eight_bits import BLOCK, SIGNED, UNSIGNED, AdamW8bit, decode, drawn, encode

SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8}


def values(rows: int = 5, columns: int = 3 * BLOCK // 2, decades: float = 3) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    sizes = 10 ** (decades * torch.rand(rows, columns, generator=draw) - decades)
    return sizes * torch.randn(rows, columns, generator=draw).sign()


@pytest.mark.parametrize("signed", [True, False])
def test_a_decoded_value_is_near_the_encoded_one_and_has_the_same_code(signed):
    given = values() if signed else values().abs()
    codes, largest = encode(given, signed)
    assert codes.element_size() == 1 and codes.shape == given.shape
    back = decode(codes, largest)
    steps, decades = SIGNED if signed else UNSIGNED
    step = 10 ** (decades / steps / 2)  # half a step of the grid, up or down
    assert (back / given).min() > 0.999 / step and (back / given).max() < 1.001 * step
    again = encode(back, signed)
    assert torch.equal(again[0], codes) and torch.equal(again[1], largest)


def test_zero_stays_zero_with_a_sign_and_small_squares_never_become_zero():
    given = torch.tensor([[1.0, 0.0, -1e-12], [0.0, 0.0, 0.0]])
    back = decode(*encode(given, signed=True))
    assert back[0, 1] == 0 and back[1].abs().max() == 0
    squares = decode(*encode(given.abs(), signed=False))
    assert squares[0].min() > 0 and squares[1].max() == 0


def stepped(optimizer_of, rows: slice = slice(None), steps: int = 30) -> tuple[torch.Tensor, torch.optim.Optimizer]:
    """Weights that approach a target, with gradients of very different sizes in a row."""
    weight = torch.nn.Parameter(torch.zeros(6, 300)[rows].clone())
    target, scale = values(6, 300, 1)[rows], values(6, 300, 2).abs()[rows]
    optimizer = optimizer_of([weight])
    for _ in range(steps):
        weight.grad = (weight.detach() - target) * scale
        optimizer.step()
    return weight.detach(), optimizer


def test_steps_are_near_those_of_adam_with_full_moments():
    exact, _ = stepped(lambda weights: torch.optim.AdamW(weights, **SETTINGS, weight_decay=0.1))
    found, _ = stepped(lambda weights: AdamW8bit([{"params": weights, "weight_decay": 0.1}], **SETTINGS))
    assert (found - exact).norm() < 0.05 * exact.norm()


def test_a_mean_square_follows_steps_smaller_than_the_grid():
    """Rounded to the nearest code, a change of a thousandth a step would be lost each time."""
    weight = torch.nn.Parameter(torch.zeros(64, 256))
    optimizer = AdamW8bit([{"params": [weight]}], lr=0.0, betas=(0.9, 0.999), eps=1e-8)
    scale = values(64, 256, 1).abs()
    for step in range(200):
        weight.grad = scale * (1.2 if step > 20 else 1.0)
        optimizer.step()
    found, exact = (
        optimizer.moment(weight, "exp_avg_sq"),
        scale**2 * ((1 - 0.999**21) * 0.999**179 + 1.44 * (1 - 0.999**179)),
    )
    assert (found / exact).mean() == pytest.approx(1, abs=0.02)


def test_chance_is_even_and_of_the_row_and_column_alone():
    whole = drawn(0, torch.Size((300, 300)), 3, 1, "cpu")
    assert whole.mean() == pytest.approx(0.5, abs=0.01) and whole.var() == pytest.approx(1 / 12, abs=0.005)
    assert torch.equal(drawn(100, torch.Size((20, 300)), 3, 1, "cpu"), whole[100:120])
    others = drawn(0, torch.Size((300, 300)), 4, 1, "cpu"), whole.T, whole.roll(1, 0)
    for other in others:
        assert abs(np.corrcoef(whole.flatten(), other.flatten())[0, 1]) < 0.02


def test_chunks_of_a_large_matrix_change_nothing(monkeypatch):
    whole, _ = stepped(lambda weights: AdamW8bit([{"params": weights}], **SETTINGS))
    monkeypatch.setattr("raysift.gradients.adam_eight_bits.CHUNK", 600)
    assert torch.equal(stepped(lambda weights: AdamW8bit([{"params": weights}], **SETTINGS))[0], whole)


def test_moments_take_a_quarter_of_their_bytes_and_return_exactly():
    _, optimizer = stepped(lambda weights: AdamW8bit([{"params": weights}], **SETTINGS))
    (weight,) = optimizer.param_groups[0]["params"]
    kept = {name: kept for name, kept in optimizer.state[weight].items() if torch.is_tensor(kept)}
    held = sum(tensor.numel() * tensor.element_size() for tensor in kept.values())
    assert held < 0.3 * 2 * 4 * weight.numel()
    before = {name: tensor.clone() for name, tensor in kept.items()}
    pair = [torch.from_numpy(np.array(optimizer.moment(weight, name))) for name in ("exp_avg", "exp_avg_sq")]
    optimizer.restore(weight, 30, *pair)
    assert {
        name: torch.equal(tensor, before[name]) for name, tensor in optimizer.state[weight].items() if name in before
    } == dict.fromkeys(before, True)


def test_another_optimizer_takes_over_the_state_as_it_is():
    _, optimizer = stepped(lambda weights: AdamW8bit([{"params": weights}], **SETTINGS))
    (weight,) = optimizer.param_groups[0]["params"]
    other = AdamW8bit([{"params": [weight]}], **SETTINGS)
    other.load_state_dict(optimizer.state_dict())
    assert other.state[weight]["step"] == 30 and other.state[weight]["exp_avg"].dtype == torch.int8
    assert torch.equal(other.moment(weight, "exp_avg_sq"), optimizer.moment(weight, "exp_avg_sq"))

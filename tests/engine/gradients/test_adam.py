"""The Adam direction of a row, against torch's own optimizer and against the formula as LESS's code has it."""

from __future__ import annotations

import pytest
import torch

from raysift.errors import ModelError
from raysift.gradients.adam import (
    AdamDirection,
    FlatMoments,
    canonical_name,
    make_direction,
    named_moments,
    optimizer_moments,
)
from raysift.settings.gradients import AdamSettings
from raysift.store.projection import ParameterLayout

LAYOUT = ParameterLayout(("a.lora_A.weight", "a.lora_B.weight", "b.lora_A.weight"), ((2, 5), (4, 2), (2, 5)))


def random_parts(seed: int, positive: bool = False) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    parts = (torch.randn(n, generator=generator, dtype=torch.float64) for n in LAYOUT.sizes)
    return tuple(part.square() if positive else part for part in parts)


def make_moments(step: int = 3) -> FlatMoments:
    return FlatMoments(random_parts(0), random_parts(1, positive=True), step)


def directions(settings: AdamSettings, moments: FlatMoments, gradients: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    direction = AdamDirection(settings, moments)
    out = [g.clone() for g in gradients]
    for index, part in enumerate(out):
        direction.apply(index, part)
    return out


def random_gradients(rows: int, scale: float = 1.0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    return tuple(scale * torch.randn(rows, n, generator=generator, dtype=torch.float64) for n in LAYOUT.sizes)


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-7])
def test_official_form_is_the_formula_with_epsilon_inside_the_root(scale: float) -> None:
    moments, gradients = make_moments(), random_gradients(3, scale)
    found = directions(AdamSettings(), moments, gradients)
    for m, v, g, direction in zip(moments.first, moments.second, gradients, found, strict=True):
        expected = (0.9 * m + 0.1 * g) / (0.999 * v + 0.001 * g * g + 1e-8) ** 0.5
        assert torch.allclose(direction, expected, rtol=1e-12)


@pytest.mark.parametrize("steps", [1, 7])
def test_textbook_form_is_the_step_that_torchs_adam_takes(steps: int) -> None:
    generator = torch.Generator().manual_seed(3)
    parameter = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([parameter], lr=1.0, betas=(0.8, 0.95), eps=1e-6)
    for _ in range(steps):
        parameter.grad = torch.randn(6, generator=generator, dtype=torch.float64)
        optimizer.step()
    state = optimizer.state[parameter]
    moments = FlatMoments((state["exp_avg"].clone(),), (state["exp_avg_sq"].clone(),), int(state["step"]))
    gradient = torch.randn(6, generator=generator, dtype=torch.float64)
    before, parameter.grad = parameter.detach().clone(), gradient.clone()
    optimizer.step()
    direction = AdamDirection(AdamSettings(form="textbook", beta1=0.8, beta2=0.95, epsilon=1e-6), moments)
    found = gradient.clone()[None]
    direction.apply(0, found)
    assert torch.allclose(found[0], before - parameter.detach(), rtol=1e-10)


def test_the_two_forms_differ_where_gradients_are_small() -> None:
    moments = FlatMoments(random_parts(0), tuple(v * 1e-12 for v in random_parts(1, positive=True)), 3)
    gradients = random_gradients(2, 1e-6)
    official, textbook = (directions(AdamSettings(form=form), moments, gradients) for form in ("official", "textbook"))
    assert not torch.allclose(official[0], textbook[0], rtol=0.5)


def test_rows_do_not_influence_each_other() -> None:
    moments, gradients = make_moments(), random_gradients(4)
    together = directions(AdamSettings(), moments, gradients)
    alone = directions(AdamSettings(), moments, tuple(g[2:3] for g in gradients))
    assert all(torch.equal(t[2:3], a) for t, a in zip(together, alone, strict=True))


def test_adam_without_moments_is_refused_and_plain_gradients_need_none() -> None:
    with pytest.raises(ModelError, match="needs the optimizer's moments"):
        make_direction(AdamSettings(), None)
    assert make_direction(AdamSettings(form="none"), None) is None


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.q_proj.lora_A.weight",
        "base_model.model.q_proj.lora_A.default.weight",
        "module.base_model.model.q_proj.lora_A.late.weight",
        "_fsdp_wrapped_module.base_model.model._fsdp_wrapped_module.q_proj.lora_A.default.weight",
    ],
)
def test_one_parameter_has_one_name_however_it_was_saved(name: str) -> None:
    assert canonical_name(name) == "base_model.model.q_proj.lora_A.weight"


def trained_state(names: tuple[str, ...]) -> tuple[dict[str, object], torch.optim.Optimizer]:
    parameters = [torch.zeros(shape, requires_grad=True) for shape in LAYOUT.shapes]
    optimizer = torch.optim.AdamW([{"params": parameters}, {"params": []}])
    for i, parameter in enumerate(parameters):
        parameter.grad = torch.full(parameter.shape, float(i + 1))
    optimizer.step()
    return {name: optimizer.state[p] for name, p in zip(names, parameters, strict=True)}, optimizer


def test_moments_are_found_by_number_and_by_name() -> None:
    named, optimizer = trained_state(("a.lora_A.default.weight", "a.lora_B.default.weight", "b.lora_A.default.weight"))
    by_number, how = optimizer_moments(optimizer.state_dict(), LAYOUT)
    assert how == "by number" and by_number.step == 1
    assert [float(part[0]) for part in by_number.first] == pytest.approx([0.1, 0.2, 0.3])
    shuffled = dict(reversed(list(named.items())))
    by_name, how = optimizer_moments({"state": shuffled}, LAYOUT)
    assert how == "by name"
    assert all(torch.equal(a, b) for a, b in zip(by_name.second, by_number.second, strict=True))


def test_moments_that_do_not_fit_are_refused() -> None:
    first = {name: torch.ones(shape) for name, shape in zip(LAYOUT.names, LAYOUT.shapes, strict=True)}
    good = named_moments(first, first, 1, LAYOUT)
    assert [len(part) for part in good.first] == list(LAYOUT.sizes)
    lacking = {name: part for name, part in first.items() if name != LAYOUT.names[1]}
    with pytest.raises(ModelError, match=r"lack 1 of 3 .* first a.lora_B.weight"):
        named_moments(lacking, first, 1, LAYOUT)
    with pytest.raises(ModelError, match=r"is \(5, 2\), the adapter's is \(2, 5\)"):
        named_moments({**first, LAYOUT.names[0]: torch.ones(5, 2)}, first, 1, LAYOUT)
    with pytest.raises(ModelError, match="NaN"):
        named_moments({**first, LAYOUT.names[0]: torch.full((2, 5), float("nan"))}, first, 1, LAYOUT)
    with pytest.raises(ModelError, match="impossible"):
        named_moments(first, {**first, LAYOUT.names[0]: torch.full((2, 5), -1.0)}, 1, LAYOUT)
    entries = {i: {"exp_avg": part, "exp_avg_sq": part, "step": 1} for i, part in enumerate(first.values())}
    with pytest.raises(ModelError, match="another adapter"):
        optimizer_moments({"state": {0: entries[0]}, "param_groups": [{"params": [0]}]}, LAYOUT)
    with pytest.raises(ModelError, match=r"no Adam moments .* found \['momentum_buffer'\]"):
        optimizer_moments({"state": {LAYOUT.names[0]: {"momentum_buffer": 1}}}, LAYOUT)
    with pytest.raises(ModelError, match="empty"):
        optimizer_moments({"state": {}}, LAYOUT)

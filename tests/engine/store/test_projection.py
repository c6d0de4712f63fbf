"""Projections keep inner products as theory says, and are the same numbers wherever they are made."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from raysift.errors import ConfigError
from raysift.gradients.influence import match_rows
from raysift.settings.gradients import ProjectionSettings
from raysift.store.distortion import estimate_distortion
from raysift.store.projection import (
    ParameterLayout,
    Projection,
    block_shifts,
    parameter_signs,
)
from raysift.store.rotation import hadamard, rotate
from raysift.store.vectors import VectorForm

LAYOUT = ParameterLayout(("a", "b", "c", "d"), ((4, 30), (25, 4), (1, 7), (40, 9)))  # 587 parameters

# Written down by the first run; a change makes stored vectors worthless, so the hash's version must rise with it.
GOLDEN_SIGNS = [-1, -1, -1, -1, -1, 1, -1, -1, -1, 1, -1, 1, -1, 1, 1, 1]
GOLDEN_SHIFTS = [5482, 935, 8022, 5820]
GOLDEN_HASH = "debeb9ad56918e1d"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Products this small only wait for each other on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(kind: str = "sketch", dimension: int = 64, seed: int = 0, layout: ParameterLayout = LAYOUT) -> Projection:
    return Projection(ProjectionSettings(kind=kind, dimension=dimension, seed=seed), layout)  # type: ignore[arg-type]


def vectors(rows: int, seed: int = 0, size: int = LAYOUT.total) -> torch.Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_sketch(vector: np.ndarray, dimension: int, seed: int) -> np.ndarray:
    out = np.zeros(dimension)
    signs = parameter_signs(seed, 0, len(vector))
    shifts = block_shifts(seed, 0, -(-len(vector) // dimension), dimension)
    for i, value in enumerate(vector):
        block, place = divmod(i, dimension)
        out[(place + shifts[block]) % dimension] += signs[i] * value
    return out


@pytest.mark.parametrize("dimension", [1, 3, 5, 64, 100, 586, 587, 588, 2000])
def test_sketch_is_its_definition(dimension: int) -> None:
    whole = vectors(3)
    found = make(dimension=dimension).project(whole.clone())
    expected = np.stack([slow_sketch(v.numpy(), dimension, 0) for v in whole])
    assert np.allclose(found.numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["sketch", "signs", "none"])
def test_tensors_in_any_order_and_on_any_shard_sum_to_the_whole(kind: str) -> None:
    whole, projection = vectors(5), make(kind)
    expected = projection.project(whole.clone())
    parts = whole.split(LAYOUT.sizes, dim=1)
    for groups in ([[2, 0, 3, 1]], [[3], [1, 0], [2]]):
        shards = []
        for group in groups:
            other = make(kind)  # another process draws its own signs
            total = torch.zeros_like(expected)
            for index in group:
                other.add(total, index, parts[index].clone())
            shards.append(other.finish(total))
        assert torch.allclose(sum(shards), expected, rtol=1e-12, atol=1e-12)  # type: ignore[arg-type]


def test_signs_of_a_range_are_those_of_the_whole() -> None:
    whole = parameter_signs(9, 0, 1000)
    for start, stop in [(0, 1), (63, 65), (64, 128), (17, 999)]:
        assert np.array_equal(parameter_signs(9, start, stop), whole[start:stop])


def test_numbers_are_the_same_in_another_process_and_for_ever() -> None:
    assert parameter_signs(0, 0, 16).tolist() == GOLDEN_SIGNS
    assert block_shifts(0, 0, 4, 8192).tolist() == GOLDEN_SHIFTS
    assert make(dimension=8192).hash == GOLDEN_HASH
    code = (
        "from raysift.store.projection import *\n"
        "print(parameter_signs(0, 0, 16).tolist(), block_shifts(0, 0, 4, 8192).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.splitlines() == [f"{GOLDEN_SIGNS} {GOLDEN_SHIFTS}"]


def test_hash_changes_with_everything_that_changes_the_numbers_and_with_nothing_else() -> None:
    renamed = ParameterLayout(("a", "b", "c", "e"), LAYOUT.shapes)
    swapped = ParameterLayout(("b", "a", "c", "d"), (LAYOUT.shapes[1], LAYOUT.shapes[0], *LAYOUT.shapes[2:]))
    others = [
        make("signs"),
        make(dimension=65),
        make(seed=1),
        make(layout=renamed),
        make(layout=swapped),
        make("none"),
    ]
    assert len({make().hash, *(other.hash for other in others)}) == 7
    assert make().hash == make().hash
    assert make("none", 1, 1).hash == make("none", 2, 2).hash


def correlated_pair(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = vectors(1, 1, size)[0]
    x[:5] *= 10  # a few heavy coordinates, as gradients have them
    y = 0.5 * x + vectors(1, 2, size)[0]
    return x / x.norm(), y / y.norm()


def test_inner_products_are_unbiased_and_vary_as_theory_says() -> None:
    d, draws = 32, 500
    x, y = correlated_pair(LAYOUT.total)
    found = np.empty(draws)
    for seed in range(draws):
        px, py = make("sketch", d, seed).project(torch.stack([x, y]))
        found[seed] = float(px @ py)
    xs, ys = x.numpy(), y.numpy()
    blocks = [slice(start, start + d) for start in range(0, len(xs), d)]
    within = sum((xs[b] @ xs[b]) * (ys[b] @ ys[b]) + (xs[b] @ ys[b]) ** 2 for b in blocks)
    variance = (1 + (xs @ ys) ** 2 - within) / d
    error = np.sqrt(variance / draws)
    assert abs(found.mean() - xs @ ys) < 4 * error, (found.mean(), xs @ ys, error)
    assert found.var() == pytest.approx(variance, rel=0.2)


@pytest.mark.parametrize("kind", ["sketch", "signs"])
def test_cosines_stray_no_further_than_the_printed_estimate(kind: str) -> None:
    layout = ParameterLayout(("a", "b"), ((30, 40), (20, 60)))
    x, y = correlated_pair(layout.total)
    cosine = float(x @ y)
    estimate = estimate_distortion(make(kind, 64).settings, layout.total)
    assert estimate is not None
    found = []
    for seed in range(200):
        projected = make(kind, 64, seed, layout).project(torch.stack([x, y])).numpy()
        stored = VectorForm(64, kind == "signs").pack(projected[:1])
        target = projected[1:] / np.linalg.norm(projected[1])
        found.append(float(match_rows(stored, target)[0, 0]) - cosine)
    assert np.std(found) == pytest.approx(estimate.cosine_sd(cosine), rel=0.2)
    assert abs(np.mean(found)) < 4 * estimate.cosine_sd(cosine) / len(found) ** 0.5
    off, what = ("0.1567", "signs") if kind == "signs" else ("0.1250", "numbers")
    assert f"2,400 numbers into 64 {what}: a cosine is off by {off}" in str(estimate)


def test_signs_are_of_a_rotated_sketch_and_in_the_same_bytes_err_a_third_as_much() -> None:
    x, y = correlated_pair(20_000)
    layout = ParameterLayout(("a",), ((20_000,),))
    whole = torch.stack([x, y])
    sketch, rotated = (make(kind, 1024, 3, layout).project(whole.clone()) for kind in ("sketch", "signs"))
    assert torch.allclose(rotated @ rotated.T, sketch @ sketch.T)
    assert not torch.allclose(rotated, sketch)
    errors = {}
    for kind, dimension in (("sketch", 64), ("signs", 1024)):  # 128 bytes each
        found = []
        for seed in range(100):
            projected = make(kind, dimension, seed, layout).project(whole.clone()).numpy()
            form = VectorForm(dimension, kind == "signs")
            assert form.bytes == 128
            found.append(float(match_rows(form.pack(projected[:1]), projected[1:])[0, 0]) - float(x @ y))
        errors[kind] = np.sqrt(np.mean(np.square(found)))
    assert errors["signs"] < errors["sketch"] / 2.5


@pytest.mark.parametrize("size", [1, 2, 8, 64, 128, 8192])
def test_the_rotation_is_hadamards_matrix(size: int) -> None:
    matrix = hadamard(size) if size <= 128 else None
    some = vectors(3, size=size)
    if matrix is not None:
        assert torch.allclose(matrix @ matrix, torch.eye(size, dtype=torch.float64))
        assert torch.allclose(matrix.abs(), torch.full_like(matrix, size**-0.5))
        assert torch.allclose(rotate(some), some @ matrix)
    assert torch.allclose(rotate(rotate(some)), some)  # symmetric and orthogonal: its own inverse


@pytest.mark.parametrize("dimension", [4, 100, 2**25])
def test_signs_need_a_power_of_two(dimension: int) -> None:
    with pytest.raises(ValueError, match=r"power of two from 8 to 2\^24"):
        ProjectionSettings(kind="signs", dimension=dimension)
    assert ProjectionSettings(kind="signs").dimension == 131072


def test_nothing_is_distorted_without_projection() -> None:
    projection = make("none")
    assert estimate_distortion(projection.settings, LAYOUT.total) is None and projection.width == LAYOUT.total
    assert torch.equal(projection.project(vectors(2)), vectors(2))


def test_single_precision_equals_double_to_rounding() -> None:
    for kind in ("sketch", "signs"):
        double = make(kind).project(vectors(4))
        assert torch.allclose(make(kind).project(vectors(4).float()).double(), double, rtol=1e-4, atol=1e-4)


def test_vectors_of_another_size_and_empty_adapters_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected 587"):
        make().project(vectors(1, size=586))
    with pytest.raises(ConfigError, match="no parameters"):
        make(layout=ParameterLayout((), ()))

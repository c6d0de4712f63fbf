"""Products of packed signs: those of real numbers but for the rounding of the targets, and the same bits in any company."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from raysift.store.sign_products import match_signs


def rows_and_targets(rows: int, subtasks: int, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(dimension)
    scale = np.geomspace(1e-3, 10, subtasks)[:, None]
    return rng.standard_normal((rows, dimension)), (rng.standard_normal((subtasks, dimension)) * scale).astype("f4")


@pytest.mark.parametrize(("rows", "subtasks", "dimension"), [(1, 1, 8), (5, 3, 64), (70, 8, 65536), (3, 40, 1024)])
def test_products_are_those_of_real_numbers_up_to_a_hundredth_of_the_error_of_signs(
    rows: int, subtasks: int, dimension: int
) -> None:
    numbers, targets = rows_and_targets(rows, subtasks, dimension)
    scores = match_signs(np.packbits(numbers > 0, axis=1), targets)
    exact = np.sign(numbers) * math.sqrt(math.pi / 2 / dimension) @ targets.astype(np.float64).T
    of_signs = 1.25 * np.linalg.norm(targets, axis=1) / math.sqrt(dimension)
    assert scores.dtype == np.float32 and scores.shape == (rows, subtasks)
    assert (np.abs(scores - exact) < of_signs / 100).all()


def test_a_row_has_the_same_bits_alone_and_with_any_number_of_threads() -> None:
    numbers, targets = rows_and_targets(150, 3, 65536)
    packed = np.packbits(numbers > 0, axis=1)
    together, threads = match_signs(packed, targets), torch.get_num_threads()
    alone = np.concatenate([match_signs(packed[i : i + 1], targets) for i in range(len(packed))])
    torch.set_num_threads(1)
    try:
        assert np.array_equal(together, match_signs(packed, targets))
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(together, alone)


def test_sums_of_whole_numbers_do_not_run_over_at_the_largest_dimension() -> None:
    dimension = 2**24
    scores = match_signs(np.full((1, dimension // 8), 255, np.uint8), np.ones((1, dimension), np.float32))
    assert scores[0, 0] == pytest.approx(math.sqrt(math.pi / 2 * dimension), rel=1e-6)


def test_a_target_of_zeros_scores_nothing() -> None:
    assert match_signs(np.full((2, 8), 170, np.uint8), np.zeros((1, 64), np.float32)).tolist() == [[0.0], [0.0]]

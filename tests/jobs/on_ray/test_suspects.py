"""Rows that end their process are found by halving, and only these; a machine that ends every process is no row's fault."""

import random

import pytest

from raysift.jobs.on_ray.suspects import ALONE, Suspects


def examine(rows, ends_process, spare=10):
    """Try all pieces, with a note between any two trials as between two processes."""
    found, trials = Suspects.of(rows, spare), 0
    while (piece := found.next) is not None:
        trials += 1
        (found.died if ends_process(*piece) else found.passed)()
        found = Suspects.from_dict(found.as_dict())
        assert trials < 2000
    return found, trials


@pytest.mark.parametrize("rows", [2, 3, 7, 64, 1000])
def test_one_row_is_found_wherever_it_stands_in_logarithmically_many_ends(rows):
    for guilty in {0, rows // 3, rows - 1}:
        found, trials = examine(rows, lambda first, end, guilty=guilty: first <= guilty < end)
        assert found.guilty == [guilty] and not found.is_not_of_rows
        assert found.innocent == rows - 1
        assert found.ends <= (rows - 1).bit_length() + ALONE
        assert trials <= 2 * rows.bit_length() + ALONE


def test_several_rows_are_found_as_well():
    rng = random.Random(0)
    for _ in range(50):
        guilty = sorted(rng.sample(range(64), 3))
        found, _ = examine(64, lambda first, end, guilty=guilty: any(first <= one < end for one in guilty))
        assert found.guilty == guilty and not found.is_not_of_rows


def test_rows_that_do_no_harm_are_innocent_after_one_trial_a_half():
    found, trials = examine(64, lambda first, end: False)
    assert (found.guilty, found.innocent, trials) == ([], 64, 2)


def test_a_machine_that_ends_every_process_is_told_from_rows():
    found, trials = examine(64, lambda first, end: True)
    assert found.is_not_of_rows and trials <= 6 + 2 * ALONE


def test_an_end_now_and_then_names_no_row_and_comes_to_an_end():
    rng = random.Random(1)
    for _ in range(50):
        assert examine(64, lambda first, end: rng.random() < 0.1)[0].guilty == []
        assert examine(64, lambda first, end: rng.random() < 0.5)[1] < 300


def test_a_single_suspect_is_tried_alone_as_often_as_any():
    found, trials = examine(1, lambda first, end: True)
    assert (found.guilty, trials, found.is_not_of_rows) == ([0], ALONE, False)
    assert examine(1, lambda first, end: False)[0].guilty == []

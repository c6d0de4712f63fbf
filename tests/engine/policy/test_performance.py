"""Performance: minus the mean nats by token, the same however rows are dealt."""

from __future__ import annotations

import math
import random

import pytest

from raysift.errors import StageError
from raysift.policy.performance import performance


def test_rows_weigh_by_their_tokens():
    # (6 + 2) nats over (3 + 1) tokens
    assert performance({0: (6.0, 3), 1: (2.0, 1)}) == -2.0


def test_the_order_of_rows_leaves_every_bit_alone():
    draw = random.Random(0)
    rows = [(number, (draw.expovariate(0.1), draw.randint(1, 50))) for number in range(1000)]
    expected = performance(dict(rows))
    for _ in range(5):
        draw.shuffle(rows)
        assert performance(dict(rows)) == expected


@pytest.mark.parametrize("rows", [{}, {0: (math.nan, 3)}, {0: (math.inf, 3)}])
def test_no_rows_and_losses_that_are_no_numbers_are_refused(rows):
    with pytest.raises(StageError, match="validation"):
        performance(rows)

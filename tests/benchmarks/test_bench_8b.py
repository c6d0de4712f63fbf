"""The arithmetic of an 8B run counts what a pass does, and its lengths have the mean that they should."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import bench_8b


@pytest.mark.slow
def test_a_forward_pass_is_two_flop_for_each_weight_and_token_with_the_head_at_labels_alone():
    counted = bench_8b.forward_pass(2 * bench_8b.MEAN_TOKENS)
    rows = bench_8b._rows(2, bench_8b.MEAN_TOKENS)
    layers = 2 * bench_8b.BODY * counted.tokens
    head = 2 * bench_8b.SHAPE.vocabulary * bench_8b.SHAPE.hidden * sum(row.n_labels for row in rows)
    attention = sum(4 * len(row) ** 2 * bench_8b.SHAPE.attention * bench_8b.SHAPE.layers for row in rows)
    assert counted.half == layers + head + attention
    assert counted.single == 0
    assert counted.of(counted.tokens / 2).half == counted.half / 2


def test_without_a_pool_lengths_are_drawn_with_the_same_mean():
    found, source = bench_8b.real_lengths(2000, Path("no/such/file"))
    assert source.startswith("drawn")
    assert found.mean() == pytest.approx(bench_8b.MEAN_TOKENS, rel=0.01)
    assert found.max() <= bench_8b.LONGEST
    one_by_one = bench_8b.padding_of(found, 4096, 1)
    assert one_by_one == 1
    assert 1 < bench_8b.padding_of(found, 4096, 2000) < bench_8b.padding_of(found, 4096, 64)

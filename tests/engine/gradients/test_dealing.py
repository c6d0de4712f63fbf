"""Dealing rows to ranks and passes: every row once, within the limits, ranks equally long, little padding."""

from __future__ import annotations

import numpy as np
import pytest

from raysift.gradients.dealing import FEWEST_TOKENS, deal_rows

from ...training_lengths import SHARED_POOL, by_the_longest_row, drawn_lengths, measure, pool_lengths, steps_of  # noqa: TID252

RANKS, MOST_ROWS = 8, 64


@pytest.mark.parametrize("ranks", [1, 2, 8])
@pytest.mark.parametrize("rows", [1, 3, 17, 128])
def test_every_row_is_in_one_pass_and_passes_keep_to_their_limits(ranks, rows):
    lengths = drawn_lengths(rows, seed=rows).tolist()
    for tokens in (64, 1000, 4096):
        dealt = deal_rows(lengths, ranks, tokens, most_rows=5)
        assert sorted(row for own in dealt for part in own for row in part) == list(range(rows))
        assert len({len(own) for own in dealt}) == 1 and len(dealt) == ranks, "ranks must make equally many passes"
        for part in (part for own in dealt for part in own if part):
            longest = max(lengths[row] for row in part)
            assert len(part) <= 5 and (len(part) * longest <= tokens or len(part) == 1)


def test_the_deal_depends_on_the_lengths_alone():
    lengths = drawn_lengths(128).tolist()
    turned = np.random.default_rng(1).permutation(128)
    found = [
        [[sorted(own[row] for row in part) for part in rank] for rank in deal_rows(own, RANKS, 4096, MOST_ROWS)]
        for own in (lengths, [lengths[row] for row in turned])
    ]
    assert found[0] == found[1]


def law_of_balance(lengths: np.ndarray, batch: int, tokens: int) -> None:
    """Work is even, or as even as the longest row lets it be; padding stays below a tenth."""
    found = measure(
        [lengths[step] for step in steps_of(len(lengths), batch)],
        lambda own: deal_rows(own.tolist(), RANKS, tokens, MOST_ROWS),
    )
    assert found.padding <= 0.1
    assert found.balance >= 0.95 * found.best
    worse = measure(
        [lengths[step] for step in steps_of(len(lengths), batch)],
        lambda own: by_the_longest_row(own, (RANKS, tokens, MOST_ROWS), int(lengths.max())),
    )
    assert worse.balance < 0.9 * found.balance and worse.idle > 1.2 * found.idle


@pytest.mark.parametrize("batch", [32, 128])
@pytest.mark.parametrize("tokens", [4096, 16384])
def test_ranks_work_equally_long_on_drawn_lengths(batch, tokens):
    law_of_balance(drawn_lengths(3000), batch, tokens)


@pytest.mark.parametrize("batch", [32, 128])
@pytest.mark.parametrize("tokens", [4096, 16384])
@pytest.mark.slow
def test_ranks_work_equally_long_on_the_lengths_of_real_rows(batch, tokens):
    if not SHARED_POOL.exists():
        pytest.skip(f"needs {SHARED_POOL}")
    law_of_balance(pool_lengths("nano", 2000), batch, tokens)


def test_one_very_long_row_has_a_pass_and_a_rank_to_itself():
    lengths = [4000, *[100] * 63]
    dealt = deal_rows(lengths, RANKS, 4096, MOST_ROWS)
    (rank,) = (own for own in dealt if [0] in own)
    assert [part for part in rank if part] == [[0]]
    work = [sum(len(part) * max(lengths[row] for row in part) for part in own if part) for own in dealt]
    assert max(sorted(work)[:-1]) <= 1000, "the others share out the 6300 tokens of the short rows"


def test_short_steps_are_one_pass_whatever_their_padding():
    lengths = [FEWEST_TOKENS // 4, *[2] * 20]
    assert [len(own) for own in deal_rows(lengths, 1, 4096, MOST_ROWS)] == [1]

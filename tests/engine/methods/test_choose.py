"""Choosing under a budget equals sorting everything and cutting, whatever the chunks."""

import numpy as np
import pyarrow as pa
import pytest

from raysift.errors import DataError
from raysift.methods.choose import choose_top
from raysift.settings.budget import Budget


def table(ids, scores, tokens=None):
    columns = {"id": pa.array(ids, pa.int64()), "score": pa.array(scores, pa.float64())}
    return pa.table(columns | ({"n_tokens": pa.array(tokens, pa.int64())} if tokens is not None else {}))


def slow_choice(ids, scores, tokens, budget):
    """Sort by score, then id; take while the tokens fit."""
    taken, spent = [], 0
    for i in sorted(range(len(ids)), key=lambda i: (-scores[i], ids[i])):
        if spent + tokens[i] > budget:
            break
        spent += tokens[i]
        taken.append(ids[i])
    return taken


@pytest.mark.parametrize("chunks", [1, 2, 7, 50])
@pytest.mark.parametrize("budget", [1, 57, 900, 10**6])
def test_a_token_budget_equals_the_slow_choice(chunks, budget):
    rng = np.random.default_rng(0)
    ids = rng.permutation(500)
    scores = rng.integers(0, 20, 500).astype(float)  # many ties
    tokens = rng.integers(1, 40, 500)
    expected = slow_choice(ids, scores, tokens, budget)
    order = rng.permutation(500)
    parts = [table(ids[p], scores[p], tokens[p]) for p in np.array_split(order, chunks)]
    if not expected:
        with pytest.raises(DataError, match="nothing was selected"):
            choose_top(parts, Budget(tokens=budget), 500)
        return
    chosen, _ = choose_top(parts, Budget(tokens=budget), 500)
    assert chosen.tolist() == expected


def test_compaction_forgets_no_row_that_could_be_chosen(monkeypatch):
    """Chunks larger than the buffer, so that rows are dropped on the way."""
    rng = np.random.default_rng(1)
    n = 300_000
    ids, scores, tokens = np.arange(n), rng.random(n), rng.integers(1, 100, n)
    parts = [table(ids[p], scores[p], tokens[p]) for p in np.array_split(np.arange(n), 9)]
    chosen, _ = choose_top(parts, Budget(tokens=50_000), n)
    assert chosen.tolist() == slow_choice(ids, scores, tokens, 50_000)


def test_rows_without_a_score_are_never_chosen_but_count_for_the_share():
    chunk = table([1, 2, 3, 4], [None, 0.5, None, 0.1])
    chosen, scores = choose_top([chunk], Budget(share=0.5), 4)
    assert chosen.tolist() == [2, 4]
    assert scores.tolist() == [0.5, 0.1]


def test_a_nan_is_refused():
    with pytest.raises(DataError, match="NaN"):
        choose_top([table([1], [float("nan")])], Budget(rows=1), 1)
    with pytest.raises(DataError, match="NaN"):
        choose_top([table([1], [float("nan")], [3])], Budget(tokens=10), 1)

"""Top-k is a full sort by (score descending, id ascending), cut at k, however the rows arrive."""

from __future__ import annotations

import numpy as np
import pytest

from raysift import topk
from raysift.errors import DataError
from raysift.topk import TopK, top_k


def full_sort(ids: np.ndarray, scores: np.ndarray, k: int) -> tuple[list[int], list[float]]:
    pairs = sorted(zip(ids.tolist(), scores.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0]))[:k]
    return [i for i, _ in pairs], [s for _, s in pairs]


def many_ties(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    ids = rng.permutation(np.arange(-n, n, 2))
    return ids, rng.integers(-3, 4, n) / 2.0


@pytest.mark.parametrize("k", [1, 7, 100, 499, 500, 900])
@pytest.mark.parametrize("chunks", [1, 9, 63])
def test_any_chunking_and_order_equals_one_full_sort(k: int, chunks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topk, "_MIN_BUFFER", 16)  # so that chunks are forgotten on the way, as in a large run
    ids, scores = many_ties(500, seed=k)
    rng = np.random.default_rng(chunks)
    total = TopK(k)
    for chunk in np.array_split(rng.permutation(500), chunks):
        total.add(ids[chunk], scores[chunk])
    found_ids, found_scores = total.result()
    assert (found_ids.tolist(), found_scores.tolist()) == full_sort(ids, scores, k)
    assert total.seen == 500


def test_memory_stays_bounded_while_rows_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topk, "_MIN_BUFFER", 1000)
    collector = TopK(10)
    for start in range(0, 50_000, 500):
        collector.add(np.arange(start, start + 500), np.arange(start, start + 500, dtype=float))
        assert collector._held <= 1500
    assert collector.result()[0].tolist() == list(range(49_999, 49_989, -1))


def test_nan_is_refused_with_its_count_and_ids_and_nothing_is_taken() -> None:
    collector = TopK(2)
    with pytest.raises(DataError, match=r"2 of 3 scores are NaN \(ids \[11, 13\]"):
        collector.add([11, 12, 13], [np.nan, 1.0, np.nan])
    assert collector.seen == 0 and len(collector.result()[0]) == 0


def test_infinite_scores_keep_their_place() -> None:
    ids, _ = top_k([1, 2, 3, 4], [np.inf, 0.0, -np.inf, 1.0], 4)
    assert ids.tolist() == [1, 4, 2, 3]


def test_minus_zero_ties_with_zero() -> None:
    assert top_k([5, 4], [0.0, -0.0], 2)[0].tolist() == [4, 5]


def test_row_offered_twice_is_refused() -> None:
    with pytest.raises(DataError, match="more than once"):
        top_k([1, 1, 2], [0.5, 0.5, 0.1], 3)


@pytest.mark.parametrize(("ids", "scores"), [([1, 2], [0.1]), ([[1]], [[0.1]]), ([0.5], [0.1])])
def test_ill_shaped_chunks_are_refused(ids: list[object], scores: list[object]) -> None:
    with pytest.raises(DataError):
        top_k(ids, scores, 1)

"""Deals the rows of one optimizer step to ranks and passes, so that ranks work equally long and passes hold little padding.

    work of a pass      rows x longest row          padded tokens
    work of a rank      the sum over its passes

Rows are sorted by length, the longest first, and cut into passes of neighbours: each takes rows up to a number of tokens. The
passes are dealt, the costliest first, to the rank with the least work. The number of tokens is the smallest with which no rank
gets more than P passes; then rows at the ends of passes move from the rank with the most work to a neighbour on a rank with
less, while that makes the most smaller. P is the smallest number that holds the rows with little padding and even work.

A row that is longer than a rank's share has a rank to itself; other ranks take its passes' places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MOST_PADDING = 0.1
"""Share of a step's padded tokens that may be padding, if more passes can prevent it."""
LEAST_BALANCE = 0.95
"""Mean work of the ranks by the most, if more passes can make it even; a row that is longer than all this is the measure."""
FEWEST_TOKENS = 384
"""Passes are not made smaller than this to either end: a shorter one takes as long as its calls."""
MOVES = 4
"""Moves per row before the search for a better balance ends."""


@dataclass
class _Deal:
    """Passes as spans of the sorted rows, the rank of each, and the work of each rank."""

    spans: list[tuple[int, int]]
    rank_of: list[int]
    work: list[int]

    @property
    def most_passes(self) -> int:
        return max(self.rank_of.count(rank) for rank in range(len(self.work)))


def deal_rows(lengths: Sequence[int], ranks: int, tokens: int, most_rows: int) -> list[list[list[int]]]:
    """The passes of each rank, as indices into `lengths`, costliest first; every rank has the same number of passes.

    A pass has at most `most_rows` rows and `tokens` padded tokens, or is one row. Ranks may have passes without rows, if
    there are few rows or some very long ones.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    rows = [int(lengths[row]) for row in order]
    found = _dealt(rows, ranks, tokens, most_rows)
    passes: list[list[list[int]]] = [[] for _ in range(ranks)]
    for span, rank in sorted(zip(found.spans, found.rank_of, strict=True), key=lambda one: -_work(rows, one[0])):
        passes[rank].append(order[slice(*span)])
    return [own + [[] for _ in range(found.most_passes - len(own))] for own in passes]


def _work(rows: Sequence[int], span: tuple[int, int]) -> int:
    return (span[1] - span[0]) * rows[span[0]]


def _cut(rows: Sequence[int], tokens: int, most_rows: int) -> list[tuple[int, int]]:
    """Spans of neighbours of at most so many padded tokens and rows, or of one row."""
    spans, start = [], 0
    while start < len(rows):
        end = min(len(rows), start + max(1, min(most_rows, tokens // max(1, rows[start]))))
        spans.append((start, end))
        start = end
    return spans


def _shared_out(rows: Sequence[int], spans: list[tuple[int, int]], ranks: int) -> _Deal:
    """The costliest pass first, each to the rank with the least work; ties go to the rank with fewer passes."""
    rank_of, work, count = [0] * len(spans), [0] * ranks, [0] * ranks
    for place in sorted(range(len(spans)), key=lambda place: -_work(rows, spans[place])):
        rank = min(range(ranks), key=lambda rank: (work[rank], count[rank]))
        rank_of[place] = rank
        work[rank] += _work(rows, spans[place])
        count[rank] += 1
    return _Deal(spans, rank_of, work)


def _dealt(rows: Sequence[int], ranks: int, tokens: int, most_rows: int) -> _Deal:
    """The fewest passes a rank with little padding and even work; if passes would become short first, the evenest."""
    largest = _shared_out(rows, _cut(rows, tokens, most_rows), ranks)
    real, passes, best = sum(rows), largest.most_passes, None
    while True:
        found = _split(rows, _with_passes(rows, ranks, passes, tokens, most_rows) or largest)
        found = _balanced(rows, found, tokens, most_rows)
        if best is None or max(found.work) < max(best.work):
            best = found
        padded, even = sum(found.work), sum(found.work) / ranks / LEAST_BALANCE
        if padded * (1 - MOST_PADDING) <= real and max(found.work) <= max(rows[0], even):
            return found
        passes += 1
        if real < FEWEST_TOKENS * ranks * passes:
            return best


def _with_passes(rows: Sequence[int], ranks: int, passes: int, tokens: int, most_rows: int) -> _Deal | None:
    """The passes of the fewest tokens of which no rank gets more than `passes`; None if those of `tokens` are too many."""
    low, high, best = 1, tokens, None
    while low <= high:
        middle = (low + high) // 2
        spans = _cut(rows, middle, most_rows)
        found = _shared_out(rows, spans, ranks) if len(spans) <= ranks * passes else None
        if found and found.most_passes <= passes:
            best, high = found, middle - 1
        else:
            low = middle + 1
    return best


def _split(rows: Sequence[int], found: _Deal) -> _Deal:
    """The deal with the costliest passes cut in two, where ranks have places left and the most work becomes less."""
    passes, ranks, best = found.most_passes, len(found.work), found
    spans = list(found.spans)
    while len(spans) < ranks * passes:
        place = max(
            range(len(spans)), key=lambda place: (spans[place][1] - spans[place][0] > 1) * _work(rows, spans[place])
        )
        start, end = spans[place]
        if end - start < 2:
            break
        spans[place : place + 1] = [(start, (start + end) // 2), ((start + end) // 2, end)]
        finer = _shared_out(rows, list(spans), ranks)
        if finer.most_passes <= passes and max(finer.work) < max(best.work):
            best = finer
    return best


def _balanced(rows: Sequence[int], found: _Deal, tokens: int, most_rows: int) -> _Deal:
    """The deal after the moves that lessen the work of the rank with the most."""
    for _ in range(MOVES * len(rows)):
        move = _best_move(rows, found, tokens, most_rows)
        if move is None:
            break
        for place, span in move:
            found.work[found.rank_of[place]] += _work(rows, span) - _work(rows, found.spans[place])
            found.spans[place] = span
    return found


def _best_move(
    rows: Sequence[int], found: _Deal, tokens: int, most_rows: int
) -> tuple[tuple[int, tuple[int, int]], ...] | None:
    """One row from a pass of the fullest rank to the pass before or after it, with the spans that both then have."""
    fullest = max(found.work)
    best, least = None, fullest
    for place, (start, end) in enumerate(found.spans):
        giver = found.rank_of[place]
        if found.work[giver] < fullest or end - start < 2:
            continue
        for other, shorter in ((place - 1, (start + 1, end)), (place + 1, (start, end - 1))):
            if not 0 <= other < len(found.spans) or found.rank_of[other] == giver:
                continue
            first, last = found.spans[other]
            longer = (first, last + 1) if other < place else (first - 1, last)
            work = _work(rows, longer)
            if work > tokens or longer[1] - longer[0] > most_rows:
                continue
            taken = found.work[found.rank_of[other]] + work - _work(rows, found.spans[other])
            left = found.work[giver] + _work(rows, shorter) - _work(rows, (start, end))
            if max(taken, left) < least:
                best, least = ((other, longer), (place, shorter)), max(taken, left)
    return best

"""The judge of two answers without the model: its spelling of verdicts, and their probabilities.

With p(v) the probability that the reply begins with verdict v, one of A, B and C:

    mass = sum_v p(v),   weight of v = p(v) / mass

Several tokens may spell one verdict (`A` with or without a space before it); their probabilities add up. With a small mass
the model was about to reply something else: such a reply is unparsable. raysift.pairwise.verdicts decides the verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from raysift.errors import ModelError
from raysift.pairwise.settings import ComparisonSettings
from raysift.scoring.judging import WORD_STARTS, spellings

LETTERS = {"A": "first", "B": "second", "C": "tie"}
"""The letters of a judge's reply, and what each means."""


class VerdictWeights(NamedTuple):
    """Probabilities of the verdicts, given that the reply is a verdict, and the total probability of all verdicts."""

    first: float
    second: float
    tie: float
    mass: float


def verdict_tokens(tokenizer: Any) -> dict[str, list[int]]:
    """The tokens that spell each verdict, with and without white space around it."""
    found, lacking = spellings(tokenizer, LETTERS, lambda token: token.strip(WORD_STARTS))
    if lacking:
        raise ModelError(
            f"compare: the tokenizer has no single token for {', '.join(lacking)}, so verdicts cannot be weighed by the "
            "first token of a reply. Take another judge, or win_rate.by=scores."
        )
    return found


def weigh_verdicts(logprobs: Iterable[tuple[str, float]], settings: ComparisonSettings) -> VerdictWeights | str:
    """The verdicts' probabilities, from log-probabilities of their spellings, or why the reply is not a verdict."""
    sums = dict.fromkeys(LETTERS, 0.0)
    for letter, logprob in logprobs:
        sums[letter] += math.exp(logprob)
    mass = sum(sums.values())
    if not math.isfinite(mass):
        return "the judge gave no finite probabilities"
    if mass == 0 or mass < settings.min_mass:
        return (
            f"unparsable: the verdicts A, B and C together have probability {mass:.3g}, expected at least "
            f"{settings.min_mass:g}"
        )
    return VerdictWeights(sums["A"] / mass, sums["B"] / mass, sums["C"] / mass, mass)


def share_among(room: int, lengths: Sequence[int]) -> list[int]:
    """Split `room` tokens among texts: the longest are cut, all to the same length, whatever their order."""
    left = room
    for rank, length in enumerate(sorted(lengths)):
        level = left // (len(lengths) - rank)
        if length > level:
            return [min(each, level) for each in lengths]
        left -= length
    return list(lengths)

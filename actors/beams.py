"""Beam search over one row's answers: which continuations go on, which are finished, and which answer wins.

It follows transformers' `generate(num_beams=B)` with length penalty 1 and no early stopping. Each step takes the best
continuations of all B beams in order. A continuation that ends an answer is kept if it is among the first B; its score
is the mean log-probability per token, the end token included. Of the others, the first B go on. The search stops once B
answers are kept and the best running beam's mean is not above the worst kept one. It also stops at the last token,
where unfinished beams count as answers too. (The transformers of 2023, on which MoDS's code ran, divided by the tokens
of prompt and answer.)

This module knows no model; `Generator` feeds it. Among equal answers, the one found first wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class AnswerTokens(NamedTuple):
    """The tokens of an answer, without the token that ended it."""

    tokens: list[int]
    finished: bool


def candidates(beams: int, ends: int) -> int:
    """Continuations to look at in each step: enough for all beams to go on even if each can end in `ends` ways."""
    return max(2, 1 + ends) * beams


class BeamSearch:
    """The beams of one row: those still `running`, and the best finished answers."""

    def __init__(self, beams: int, ends: frozenset[int], longest: int) -> None:
        self.beams, self.ends, self.longest = beams, ends, longest
        self.running: list[list[int]] = [[]]
        self._over: list[tuple[float, AnswerTokens]] = []

    def step(self, scores: Sequence[float], parents: Sequence[int], tokens: Sequence[int]) -> list[int]:
        """Take a step's continuations (summed log-probability, beam, token), best first; return the places of those that go on.

        The list is empty when the search is over.
        """
        length = len(self.running[0]) + 1
        going: list[int] = []
        for place, (score, parent, token) in enumerate(zip(scores, parents, tokens, strict=True)):
            ends = token in self.ends
            if ends or length == self.longest:
                if place < self.beams:
                    self._keep(score / length, AnswerTokens([*self.running[parent], *([] if ends else [token])], ends))
            elif len(going) < self.beams:
                going.append(place)
        if not going or self._is_settled(scores[going[0]] / length):
            return []
        self.running = [[*self.running[parents[place]], tokens[place]] for place in going]
        return going

    def best(self) -> AnswerTokens:
        """The answer with the highest mean log-probability."""
        return self._over[0][1]

    def _keep(self, score: float, answer: AnswerTokens) -> None:
        self._over.append((score, answer))
        self._over.sort(key=lambda each: -each[0])  # stable: equal answers stay in the order they were found
        del self._over[self.beams :]

    def _is_settled(self, best_running: float) -> bool:
        return len(self._over) == self.beams and best_running <= self._over[-1][0]

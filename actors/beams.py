"""Beam search over one row's answers: which continuations go on, which are over, and which answer wins.

As transformers' `generate(num_beams=B)` does it, length penalty 1 and no early stop: at each step the best continuations of
all B beams are looked at in order. One that ends an answer is kept if it is among the first B, by its mean
log-probability a token, the end token counted; of the others the first B go on. The search is over once B answers are kept
and the best beam's mean is not above the worst of theirs, or at the last token, where beams that have not ended count
too. (transformers of 2023, which MoDS's code ran on, divided by the tokens of prompt and answer.)

Knows no model: `Generator` feeds it. Of equal answers the one found first wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Answer(NamedTuple):
    """Tokens of an answer without the one that ended it."""

    tokens: list[int]
    finished: bool


def candidates(beams: int, ends: int) -> int:
    """Continuations to look at in each step: enough for B to go on though every beam could end in so many ways."""
    return max(2, 1 + ends) * beams


class BeamSearch:
    """The beams of one row, `running`, and the best answers that are over."""

    def __init__(self, beams: int, ends: frozenset[int], longest: int) -> None:
        self.beams, self.ends, self.longest = beams, ends, longest
        self.running: list[list[int]] = [[]]
        self._over: list[tuple[float, Answer]] = []

    def step(self, scores: Sequence[float], parents: Sequence[int], tokens: Sequence[int]) -> list[int]:
        """Take a step's continuations, best first: summed log-probability, beam, token; gives the places of those that go on.

        None do where the search is over.
        """
        length = len(self.running[0]) + 1
        going: list[int] = []
        for place, (score, parent, token) in enumerate(zip(scores, parents, tokens, strict=True)):
            ends = token in self.ends
            if ends or length == self.longest:
                if place < self.beams:
                    self._keep(score / length, Answer([*self.running[parent], *([] if ends else [token])], ends))
            elif len(going) < self.beams:
                going.append(place)
        if not going or self._is_settled(scores[going[0]] / length):
            return []
        self.running = [[*self.running[parents[place]], tokens[place]] for place in going]
        return going

    def best(self) -> Answer:
        """The answer of the highest mean log-probability."""
        return self._over[0][1]

    def _keep(self, score: float, answer: Answer) -> None:
        self._over.append((score, answer))
        self._over.sort(key=lambda each: -each[0])  # stable: equal ones stay in the order in which they were found
        del self._over[self.beams :]

    def _is_settled(self, best_running: float) -> bool:
        return len(self._over) == self.beams and best_running <= self._over[-1][0]

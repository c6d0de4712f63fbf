"""A language model as judge between two answers, read together in both orders (formulas: raysift.pairwise.comparing).

Like a `Judge` it uses the probabilities of a reply's first token; its prompt and replies are its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa

from raysift.actors.contract import Failed, Row
from raysift.actors.judge import FirstTokens
from raysift.actors.language_model import load_tokenizer
from raysift.actors.loaded import LoadedModel, longest_input
from raysift.actors.prompts import load_card, vocabulary_size
from raysift.errors import DataError
from raysift.pairwise.comparing import share_among, verdict_tokens, weigh_verdicts
from raysift.pairwise.rows import ORDERS
from raysift.pairwise.settings import ComparisonSettings
from raysift.records import MESSAGES, ChatMessage
from raysift.scoring.columns import INPUT_TOKENS, TRUNCATED
from raysift.scoring.judging import CUT_MARK, defuse, frame, special_texts
from raysift.scoring.questions import (
    Exchange,
    question_text,
    split_exchange,
    token_ends,
    without_oldest_turns,
)
from raysift.templates import encode_prompt

OWN = "own_answer"
AGAINST = "against_answer"
WEIGHTS = ("p_first", "p_second", "p_tie", "mass")

Asked = tuple[list[int], list[int]]


class Weigher:
    """Writes a pair's questions to a judge, one per order, and reads the verdicts' weights; for every backend."""

    def __init__(
        self, tokenizer: Any, longest: int, vocabulary: int | None, settings: ComparisonSettings | None = None
    ) -> None:
        self.tokenizer, self.longest, self.vocabulary = tokenizer, longest, vocabulary
        self.settings = settings or ComparisonSettings()
        self.spellings = verdict_tokens(tokenizer)
        self.prefix = tokenizer(self.settings.reply_prefix, add_special_tokens=False)["input_ids"]
        self.special = special_texts(tokenizer)

    def ask(self, row: Row) -> tuple[Asked, bool] | Failed:
        """Both prompts, and whether texts were cut to fit; both orders lose the same words."""
        if row[OWN] is None or row[AGAINST] is None:
            return Failed(f"there is no text in '{OWN if row[OWN] is None else AGAINST}'", of_the_row=True)
        try:
            found = self._fit(row)
        except DataError as error:
            return Failed(str(error), of_the_row=True)
        if found is None:
            return Failed(
                f"the question to the judge does not fit into {self.longest} tokens even without the row's texts"
            )
        largest = max(map(max, found[0]))
        if self.vocabulary is not None and largest >= self.vocabulary:
            return Failed(f"the prompt has token {largest}; the model knows those below {self.vocabulary}")
        return found

    def weigh(self, reply: Sequence[tuple[str, float]], order: str) -> Row | Failed:
        """The verdicts' weights in one order, from the log-probability of each spelling of each verdict."""
        weights = weigh_verdicts(reply, self.settings)
        if isinstance(weights, str):
            return Failed(f"{weights} ({order.replace('_', ' ')})")
        return dict(zip(WEIGHTS, weights, strict=True))

    def _fit(self, row: Row) -> tuple[Asked, bool] | None:
        before = split_exchange(row[MESSAGES], "").before
        asked = self._both_orders(question_text(before), row[OWN], row[AGAINST])
        if self._excess(asked) <= 0:
            return asked, False
        while (shorter := without_oldest_turns(before)) is not None:
            before = shorter
            asked = self._both_orders(question_text(before), row[OWN], row[AGAINST])
            if self._excess(asked) <= 0:
                return asked, True
        cut = self._cut(Exchange(before, ""), row[OWN], row[AGAINST])
        return None if cut is None else (cut, True)

    def _both_orders(self, request: str, own: str, against: str) -> Asked:
        framed = [frame("ANSWER", text, self.special) for text in (own, against)]
        prompts = []
        for first, second in (framed, framed[::-1]):
            content = self.settings.prompt.format(
                request=frame("REQUEST", request, self.special), first=first, second=second
            )
            prompts.append(self._encode_message({"role": "user", "content": content}))
        return prompts[0], prompts[1]

    def _encode_message(self, message: ChatMessage) -> list[int]:
        return [*encode_prompt(self.tokenizer, [message], self.settings.template), *self.prefix]

    def _excess(self, asked: Asked) -> int:
        """By how many tokens the longer prompt is too long; one token is left for the reply."""
        return max(map(len, asked)) - (self.longest - 1)

    def _cut(self, exchange: Exchange, own: str, against: str) -> Asked | None:
        """Cut the longest of last question and answers at the end, to one common length; None if that is not enough."""
        texts = [defuse(text, self.special) for text in (exchange.before[-1]["content"], own, against)]
        ends = [token_ends(self.tokenizer, text) for text in texts]
        marked = exchange.with_texts(CUT_MARK, "")
        room = -self._excess(self._both_orders(question_text(marked.before), CUT_MARK, CUT_MARK))
        while room > 0:
            kept = share_among(room, [len(each) for each in ends])
            question, *answers = (
                text if keep >= len(places) else text[: places[keep - 1] if keep else 0] + CUT_MARK
                for text, places, keep in zip(texts, ends, kept, strict=True)
            )
            cut = exchange.with_texts(question, "")
            asked = self._both_orders(question_text(cut.before), answers[0], answers[1])
            excess = self._excess(asked)
            if excess <= 0:
                return asked
            room -= excess  # a text alone may have a few tokens fewer than within the prompt
        return None


def load_weigher(
    model: str,
    settings: ComparisonSettings | None = None,
    max_length: int | None = None,
    trust_remote_code: bool = False,
) -> Weigher:
    """Make a weigher for a model whose weights are in another process."""
    tokenizer, card = load_tokenizer(model, trust_remote_code), load_card(model, trust_remote_code)
    return Weigher(tokenizer, longest_input(card, max_length), vocabulary_size(card), settings)


class Comparer(FirstTokens):
    """Weighs `own_answer` against `against_answer` as replies to `messages`.

    Columns per order, such as `p_first_own_first`: the probabilities that the answer shown first is better, that the
    second is, or that neither is, given that the reply is a verdict; and `mass`, the probability that it is a verdict.
    """

    inputs: ClassVar[Sequence[str]] = (MESSAGES, OWN, AGAINST)
    outputs: ClassVar[pa.Schema] = pa.schema(
        [(f"{name}_{order}", pa.float64()) for order in ORDERS for name in WEIGHTS]
        + [
            (INPUT_TOKENS, pa.int64()),  # of both orders together
            (TRUNCATED, pa.bool_()),
        ]
    )

    def __init__(
        self,
        model: str | LoadedModel = "nano",
        *,
        settings: ComparisonSettings | None = None,
        **loading: Any,
    ) -> None:
        settings = settings or ComparisonSettings()
        super().__init__(model, template=settings.template, **loading)
        self.weigher = Weigher(self.tokenizer, self.longest, vocabulary_size(self.model), settings)
        self.spellings = self.weigher.spellings

    def answer(self, rows: list[Row]) -> list[Row | Failed]:
        asked = [self.weigher.ask(row) for row in rows]
        prompts = [prompt for item in asked if not isinstance(item, Failed) for prompt in item[0]]
        replies = iter(self.next_logprobs(prompts))
        return [item if isinstance(item, Failed) else self._weigh(*item, replies) for item in asked]

    def _weigh(self, asked: Asked, truncated: bool, replies: Iterator[list[tuple[str, float]]]) -> Row | Failed:
        found = {order: self.weigher.weigh(next(replies), order) for order in ORDERS}
        return join_orders(found, sum(map(len, asked)), truncated)


def join_orders(found: Mapping[str, Row | Failed], n_tokens: int, truncated: bool) -> Row | Failed:
    """A comparer's columns from the weights in each order; if one order failed, the pair failed."""
    joined: Row = {INPUT_TOKENS: n_tokens, TRUNCATED: truncated}
    for order in ORDERS:
        weights = found[order]
        if isinstance(weights, Failed):
            return weights
        joined |= {f"{name}_{order}": weights[name] for name in WEIGHTS}
    return joined

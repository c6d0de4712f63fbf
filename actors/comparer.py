"""A language model as judge between two answers that it reads together, in both orders (formulas in raysift.pairwise.comparing).

It shares with a `Judge` the probabilities of a reply's first token; prompt and reply are its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pyarrow as pa

from raysift.actors.contract import Failed, Row
from raysift.actors.judge import FirstTokens
from raysift.actors.loaded import LoadedModel
from raysift.errors import DataError
from raysift.pairwise.comparing import share_among, verdict_tokens, weigh_verdicts
from raysift.pairwise.rows import ORDERS
from raysift.pairwise.settings import ComparisonSettings
from raysift.records import MESSAGES
from raysift.scoring.columns import INPUT_TOKENS, TRUNCATED
from raysift.scoring.judging import CUT_MARK, defuse, frame, special_texts
from raysift.scoring.questions import (
    Exchange,
    Message,
    question_text,
    split_exchange,
    token_ends,
    without_oldest_turns,
)
from raysift.templates import encode_prompt

OWN = "own_answer"
AGAINST = "against_answer"
FIRST, SECOND, EQUAL, MASS = "p_first", "p_second", "p_tie", "mass"

Asked = tuple[list[int], list[int]]


class Comparer(FirstTokens):
    """Weighs `own_answer` against `against_answer` as replies to `messages`.

    Columns by order, such as `p_first_own_first`: the probabilities that the answer shown first is better, the one shown
    second, or neither, given that the reply is a verdict; and `mass`, that it is one.
    """

    inputs: ClassVar[Sequence[str]] = (MESSAGES, OWN, AGAINST)
    outputs: ClassVar[pa.Schema] = pa.schema(
        [(f"{name}_{order}", pa.float64()) for order in ORDERS for name in (FIRST, SECOND, EQUAL, MASS)]
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
        self.comparison = settings or ComparisonSettings()
        super().__init__(model, template=self.comparison.template, **loading)
        self.spellings = verdict_tokens(self.tokenizer)
        self.prefix = self.tokenizer(self.comparison.reply_prefix, add_special_tokens=False)["input_ids"]
        self.special = special_texts(self.tokenizer)

    def answer(self, rows: list[Row]) -> list[Row | Failed]:
        asked = [self._ask(row) for row in rows]
        prompts = [prompt for item in asked if not isinstance(item, Failed) for prompt in item[0]]
        replies = iter(self.next_logprobs(prompts))
        return [
            item if isinstance(item, Failed) else self._weigh(*item, [next(replies), next(replies)]) for item in asked
        ]

    def _ask(self, row: Row) -> tuple[Asked, bool] | Failed:
        """Both prompts, and whether texts were cut for them; the same words are cut for both orders."""
        if row[OWN] is None or row[AGAINST] is None:
            return Failed(f"there is no text in '{OWN if row[OWN] is None else AGAINST}'")
        try:
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
        except DataError as error:
            return Failed(str(error))
        if cut is None:
            return Failed(
                f"the question to the judge does not fit into {self.longest} tokens even without the row's texts"
            )
        return cut, True

    def _both_orders(self, request: str, own: str, against: str) -> Asked:
        framed = [frame("ANSWER", text, self.special) for text in (own, against)]
        prompts = []
        for first, second in (framed, framed[::-1]):
            content = self.comparison.prompt.format(
                request=frame("REQUEST", request, self.special), first=first, second=second
            )
            prompts.append(self._encode_message({"role": "user", "content": content}))
        return prompts[0], prompts[1]

    def _encode_message(self, message: Message) -> list[int]:
        return [*encode_prompt(self.tokenizer, [message], self.template), *self.prefix]

    def _excess(self, asked: Asked) -> int:
        """Tokens that the longer prompt has too many; the reply takes one."""
        return max(map(len, asked)) - (self.longest - 1)

    def _cut(self, exchange: Exchange, own: str, against: str) -> Asked | None:
        """The longest of last question and answers lose their ends, down to one length; None where that is not enough."""
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
            room -= excess  # a text by itself may have a few tokens less than within the prompt
        return None

    def _weigh(self, asked: Asked, truncated: bool, replies: Sequence[Sequence[tuple[str, float]]]) -> Row | Failed:
        found: Row = {INPUT_TOKENS: sum(map(len, asked)), TRUNCATED: truncated}
        for order, reply in zip(ORDERS, replies, strict=True):
            weights = weigh_verdicts(reply, self.comparison)
            if isinstance(weights, str):
                return Failed(f"{weights} ({order.replace('_', ' ')})")
            values = zip((FIRST, SECOND, EQUAL, MASS), weights, strict=True)
            found |= {f"{name}_{order}": value for name, value in values}
        return found

"""Instruction-following difficulty (IFD, Cherry LLM): how little the prompt helps a model to predict the answer.

    ifd = L(answer | prompt) / L(answer),   L = mean loss of the answer's tokens

The last answer of a conversation counts; everything before it is the prompt. Both losses run over exactly the same
tokens: those of the answer in the rendered conversation, without its end token (Cherry LLM has none). For L(answer),
they follow either the chat template around an empty question (`frame`; Cherry LLM keeps its `### Response:`) or the
first token of a text (`bos`). An answer that does not fit is cut the same for both losses. Cherry LLM drops rows above
1, where the prompt hurts; here they keep their score, and thresholds decide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from raysift.actors.contract import Failed, Row
from raysift.actors.likelihood import Scorer
from raysift.actors.loaded import NO_LIMIT, LoadedModel
from raysift.errors import DataError, ModelError
from raysift.pool.given_input import conversation_of
from raysift.records import MESSAGES
from raysift.scoring.columns import CONDITIONAL_LOSS, DIRECT_LOSS, IFD, IFD_SCHEMA, LABEL_TOKENS, TRUNCATED
from raysift.scoring.questions import split_exchange
from raysift.scoring.settings import IfdSettings
from raysift.templates import IGNORED, Encoded, encode_conversation, encode_prompt


class Sides(NamedTuple):
    """The last answer (`tokens` long) after what precedes it (`conditional`) and alone (`direct`)."""

    conditional: Encoded
    direct: Encoded
    tokens: int


class LastAnswer(Scorer):
    """Computes the loss of the last answer of `messages` with and without its prompt; `weigh` makes the columns."""

    inputs = (MESSAGES,)
    renders_rows = True
    stage: ClassVar[str] = "ifd"
    remedy: ClassVar[str] = "use without_prompt=bos"
    """Advice in the error message if the chat template refuses an empty question."""

    def __init__(
        self, model: str | LoadedModel = "nano", *, settings: IfdSettings | None = None, **loading: Any
    ) -> None:
        settings = settings or IfdSettings()
        super().__init__(model, template=settings.template, **loading)
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        self.special = {number for number, token in added.items() if token.special} | {*self.tokenizer.all_special_ids}
        self.alone = self._opening(settings)

    def answer(self, rows: list[Row]) -> list[Row | Failed]:
        encoded = [self._encode(row) for row in rows]
        sound = [item for item in encoded if not isinstance(item, Failed)]
        losses = iter(self.label_losses([side for item in sound for side in (item.conditional, item.direct)]))
        return [item if isinstance(item, Failed) else self.weigh(item, next(losses), next(losses)) for item in encoded]

    def weigh(self, sides: Sides, conditional: float, direct: float) -> Row | Failed:
        """The row's answer from the summed losses of both sides."""
        raise NotImplementedError(f"{self.name} does not say what it makes of the two losses")

    def _opening(self, settings: IfdSettings) -> list[int]:
        """The tokens before an answer without its prompt."""
        if settings.without_prompt == "bos":
            first = self.tokenizer.bos_token_id
            first = self.tokenizer.eos_token_id if first is None else first
            if first is None:
                raise ModelError(
                    f"{self.stage}: the tokenizer has neither a first nor an end token. Use without_prompt=frame."
                )
            return [int(first)]
        try:
            opening = encode_prompt(self.tokenizer, [{"role": "user", "content": ""}], settings.template)
        except DataError as error:
            raise ModelError(f"{self.stage}: {error} It was given an empty question; {self.remedy}.") from error
        if not opening:
            raise ModelError(f"{self.stage}: the chat template writes nothing around an empty question; {self.remedy}.")
        return opening

    def _encode(self, row: Row) -> Sides | Failed:
        try:
            messages = split_exchange(conversation_of(row)).messages
            whole = encode_conversation(self.tokenizer, messages, NO_LIMIT, self.template)
        except DataError as error:
            return Failed(str(error), of_the_row=True)
        start, end = self._last_answer(whole)
        if start == end:
            return Failed("the answer has no tokens", of_the_row=True)
        if start == 0:
            return Failed("the chat template puts nothing before the answer")
        room = self.longest - max(start, len(self.alone))
        if room < 1:
            return Failed(
                f"the prompt has {start} tokens, there is room for {self.longest - 1}", of_the_row=self.has_room
            )
        spoken = whole.input_ids[start : min(end, start + room)]
        return Sides(
            conditional=_with_labels(whole, whole.input_ids[:start], spoken, end - start > room),
            direct=_with_labels(whole, self.alone, spoken, end - start > room),
            tokens=len(spoken),
        )

    def _last_answer(self, whole: Encoded) -> tuple[int, int]:
        """Where the last run of labels begins and ends, without special tokens at its end."""
        end = len(whole.labels)
        while end and whole.labels[end - 1] == IGNORED:
            end -= 1
        start = end
        while start and whole.labels[start - 1] != IGNORED:
            start -= 1
        while end > start and whole.input_ids[end - 1] in self.special:
            end -= 1
        return start, end


class Ifd(LastAnswer):
    """Measures how little the prompt helps to predict the last answer."""

    outputs = IFD_SCHEMA

    def weigh(self, sides: Sides, conditional: float, direct: float) -> Row | Failed:
        if not (math.isfinite(conditional) and math.isfinite(direct)):
            return Failed("the model gave no finite loss")
        if direct <= 0:
            return Failed("the answer alone has no loss, so there is nothing to compare with")
        return {
            IFD: conditional / direct,
            CONDITIONAL_LOSS: conditional / sides.tokens,
            DIRECT_LOSS: direct / sides.tokens,
            LABEL_TOKENS: sides.tokens,
            TRUNCATED: sides.conditional.truncated,
        }


def _with_labels(whole: Encoded, given: Sequence[int], spoken: Sequence[int], truncated: bool) -> Encoded:
    return Encoded(
        input_ids=[*given, *spoken],
        labels=[*[IGNORED] * len(given), *spoken],
        truncated=truncated,
        doubled_special=whole.doubled_special,
        template=whole.template,
    )

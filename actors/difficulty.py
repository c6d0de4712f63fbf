"""How hard a row is for a model that is not trained: log P(answer | prompt) and log P(answer), and both lengths.

Each row takes two passes, with tokens and cuts as for `Ifd`: the last answer of a conversation counts, and everything
before it is the prompt. Both sums run over exactly the same tokens, without the end token. Without its prompt, the
answer follows the chat template around an empty question. RAISE's paper, whose auxiliary model is
Llama-3.1-8B-Instruct, does not specify what precedes an answer in that case.
"""

from __future__ import annotations

import math
from typing import Any

from raysift.actors.contract import Failed, Row
from raysift.actors.ifd import LastAnswer, Sides
from raysift.actors.loaded import LoadedModel
from raysift.scoring.columns import (
    ANSWER_TOKENS,
    DIFFICULTY_SCHEMA,
    LOGPROB_ALONE,
    LOGPROB_GIVEN,
    PROMPT_TOKENS,
    TRUNCATED,
)
from raysift.scoring.settings import IfdSettings


class Difficulty(LastAnswer):
    """Lengths and summed log-probabilities of the last answer of `messages`, with and without what precedes it."""

    outputs = DIFFICULTY_SCHEMA
    stage = "difficulty"
    remedy = "use another auxiliary model or another template"

    def __init__(self, model: str | LoadedModel = "nano", *, template: str = "auto", **loading: Any) -> None:
        super().__init__(model, settings=IfdSettings(template=template), **loading)

    def weigh(self, sides: Sides, conditional: float, direct: float) -> Row | Failed:
        if not (math.isfinite(conditional) and math.isfinite(direct)):
            return Failed("the model gave no finite log-probability")
        return {
            PROMPT_TOKENS: len(sides.conditional.input_ids) - sides.tokens,
            ANSWER_TOKENS: sides.tokens,
            LOGPROB_GIVEN: -conditional,
            LOGPROB_ALONE: -direct,
            TRUNCATED: sides.conditional.truncated,
        }

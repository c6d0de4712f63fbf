"""The model's own answers to the questions of whole conversations, with transformers or with vLLM.

`Responder` answers with transformers. When vLLM answers, `Asker` turns rows into requests and `Reader` turns the
results into the same columns; neither holds weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raysift.actors.contract import Failed, Row, RowActor
from raysift.actors.generator import Generator
from raysift.actors.prompts import load_prompts, question_of
from raysift.errors import DataError
from raysift.pool.given_input import conversation_of
from raysift.records import MESSAGES

if TYPE_CHECKING:
    from torch import Generator as RandomStream
    from torch import Tensor

# Names that ray.data.llm reads and writes.
PROMPT = "tokenized_prompt"
GENERATED = "generated_tokens"
LOGPROBS = "logprobs"
ENGINE_ERROR = "__inference_error__"
NOT_ASKED = "not asked: "
"""Prefix of the message of a row that failed before it reached the engine."""


class Responder(Generator):
    """Answers the question of each conversation: its messages without the assistant's last turn."""

    def __init__(self, model: Any, *, top_p: float = 1.0, **settings: Any) -> None:
        super().__init__(model, **settings)
        self.top_p = top_p

    def _encode(self, row: Row) -> list[int] | Failed:
        try:
            return super()._encode({**row, MESSAGES: question_of(row[MESSAGES])})
        except DataError as error:
            return Failed(str(error), of_the_row=True)

    def _scores(self, logits: Tensor, streams: Sequence[RandomStream]) -> Tensor:
        if streams and self.top_p < 1:
            logits = nucleus(logits.float(), self.temperature, self.top_p)
        return super()._scores(logits, streams)


def nucleus(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """Logits without the tokens not needed to reach the probability `top_p` (set to -inf); the best token stays."""
    ranked, order = (logits / temperature).softmax(-1).sort(dim=-1, descending=True)
    before = ranked.cumsum(-1) - ranked
    out = before >= top_p
    out[..., 0] = False
    return logits.masked_fill(out.scatter(-1, order, out), float("-inf"))


class Asker(RowActor):
    """Encodes the prompts of conversations for a separate engine; a row that cannot be asked carries its error."""

    inputs = (MESSAGES,)
    renders_rows = True
    outputs = pa.schema([(PROMPT, pa.list_(pa.int64()))])

    def __init__(self, model: str, **settings: Any) -> None:
        self.prompts = load_prompts(model, **settings)

    def answer(self, rows: list[Row]) -> list[Row | Failed]:
        """The tokens of each question."""
        encoded = [self._encode(row) for row in rows]
        return [prompt if isinstance(prompt, Failed) else {PROMPT: prompt} for prompt in encoded]

    def _encode(self, row: Row) -> list[int] | Failed:
        return self.prompts.encode_question(conversation_of(row))


class PromptAsker(Asker):
    """The same for rows that are prompts, which end where the answer begins: what a `Generator` is to a `Responder`."""

    def _encode(self, row: Row) -> list[int] | Failed:
        return self.prompts.encode(conversation_of(row))


def engine_failure(message: str) -> Failed:
    """Why a row has no answer, for its reader.

    Rows that never reached the engine do not count here: the circuit breaker of the asking actor has judged them.
    """
    return Failed(message.removeprefix(NOT_ASKED), of_the_row=message.startswith(NOT_ASKED))


class Reader(RowActor):
    """Makes a `Responder`'s columns from an engine's tokens; a row that failed before or in it keeps its message."""

    inputs = (GENERATED, ENGINE_ERROR)
    outputs = Generator.outputs

    def __init__(self, model: str, **settings: Any) -> None:
        self.prompts = load_prompts(model, **settings)

    def answer(self, rows: list[Row]) -> list[Row | Failed]:
        """An answer is finished if its last token is an end token."""
        return [
            engine_failure(row[ENGINE_ERROR]) if row[ENGINE_ERROR] else self.prompts.read(row[GENERATED] or [])
            for row in rows
        ]

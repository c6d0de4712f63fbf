"""The length of each row in tokens of the model that will be trained on it."""

from __future__ import annotations

import pyarrow as pa

from raysift.actors.contract import Failed, Row, RowActor
from raysift.actors.language_model import load_tokenizer
from raysift.actors.loaded import NO_LIMIT
from raysift.pool.given_input import conversation_of
from raysift.records import MESSAGES, RESPONSE_CHARS, RESPONSE_TOKENS, TOKENS
from raysift.templates import encode_conversation


class TokenLengths(RowActor):
    """Counts the tokens of the whole conversation as the trainer will see it, and those that count for the loss."""

    inputs = (MESSAGES,)
    renders_rows = True
    outputs = pa.schema([(TOKENS, pa.int64()), (RESPONSE_TOKENS, pa.int64()), (RESPONSE_CHARS, pa.int64())])

    def __init__(self, model: str, template: str = "auto", trust_remote_code: bool = False) -> None:
        self.tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
        self.template = template

    def answer(self, rows: list[Row]) -> list[Row | Failed]:
        return [self._measure(conversation_of(row)) for row in rows]

    def _measure(self, messages: list[dict[str, str]]) -> Row:
        encoded = encode_conversation(self.tokenizer, messages, NO_LIMIT, self.template)
        self.tokens_read += len(encoded.input_ids)
        return {
            TOKENS: len(encoded.input_ids),
            RESPONSE_TOKENS: sum(label != -100 for label in encoded.labels),
            RESPONSE_CHARS: sum(len(m["content"]) for m in messages if m["role"] == "assistant"),
        }

"""Question and answer of a conversation, as scorers read them: the last answer, and everything before it.

MoDS handles single turns only. In longer conversations the question is the dialogue before the last answer, with turns marked
`Human:` and `Assistant:` as in the preference data that open reward models were trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysift.errors import DataError, StageError
from raysift.pool.given_input import INPUT, conversation_of, cut_to, split_input
from raysift.records import MESSAGE, ChatMessage
from raysift.scoring.settings import EmbeddedText, InputJoin

Tokens = TypeVar("Tokens", bound=Sized)

_SPEAKERS = {"user": "Human: ", "assistant": "Assistant: ", "tool": "Tool: ", "system": ""}


class Exchange(NamedTuple):
    """The turns before the last answer, and the answer."""

    before: list[ChatMessage]
    answer: str

    @property
    def messages(self) -> list[ChatMessage]:
        """The whole conversation."""
        return [*self.before, {"role": "assistant", "content": self.answer}]

    def with_texts(self, last: str, answer: str) -> Exchange:
        """This exchange with the question's last turn cut to `last`, and another answer."""
        return Exchange([*self.before[:-1], cut_to(self.before[-1], last)], answer)


def split_exchange(messages: Sequence[ChatMessage], answer: str | None = None) -> Exchange:
    """The question and its answer; `answer` replaces the conversation's own answer, which may then be missing."""
    answered = bool(messages) and messages[-1]["role"] == "assistant"
    before = list(messages[:-1] if answered else messages)
    if not answered and answer is None:
        last = f"a message of the {messages[-1]['role']}" if messages else "nothing"
        raise DataError(f"the conversation ends with {last}, expected an answer of the assistant")
    if not any(message["role"] != "assistant" for message in before):
        raise DataError("nothing was asked before the last answer")
    return Exchange(before, messages[-1]["content"] if answer is None else answer)


def with_answers(messages: pa.ListArray, answers: pa.Array) -> pa.ListArray:
    """`split_exchange` of many conversations with other answers, as whole conversations again; no text is copied row by row."""
    turns, counts = messages.flatten(), messages.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    ends = np.cumsum(counts)
    spoken = pc.equal(turns.field("role"), "assistant").to_numpy(zero_copy_only=False)
    answered = np.zeros(len(counts), bool)
    answered[counts > 0] = spoken[ends[counts > 0] - 1]
    kept = np.ones(len(turns), bool)
    kept[ends[answered] - 1] = False
    row = np.repeat(np.arange(len(counts)), counts)
    if np.bincount(row[kept & ~spoken], minlength=len(counts)).min(initial=1) < 1:
        raise DataError("nothing was asked before the last answer")
    place = np.concatenate([np.flatnonzero(kept), len(turns) + np.arange(len(counts))])
    order = np.argsort(np.concatenate([row[kept], np.arange(len(counts))]), kind="stable")
    roles = pa.concat_arrays([turns.field("role"), pa.repeat("assistant", len(counts))])
    texts = pa.concat_arrays([turns.field("content"), answers])
    chosen = pa.StructArray.from_arrays([roles, texts], fields=list(MESSAGE)).take(pa.array(place[order]))
    starts = np.concatenate([[0], np.cumsum(counts - answered + 1)])
    return pa.ListArray.from_arrays(pa.array(starts, pa.int32()), chosen)


def exchange_of(row: Mapping[str, Any], answer_column: str | None) -> Exchange:
    """The row's question with its own last answer, or with the text of `answer_column` instead."""
    if answer_column is None:
        return split_exchange(conversation_of(row))
    if answer_column not in row:
        raise StageError(f"scoring: the batch lacks the column '{answer_column}' (found: {sorted(row)}).")
    if row[answer_column] is None:
        raise DataError(f"there is no text in '{answer_column}'")
    return split_exchange(conversation_of(row), row[answer_column])


def question_text(before: Sequence[ChatMessage], join: InputJoin = "blank_line", trailing_newline: bool = False) -> str:
    """The question as one text; `join` and `trailing_newline` affect only single-turn questions (see RewardSettings)."""
    if any(message["role"] == "assistant" for message in before):
        return "\n\n".join(_SPEAKERS[message["role"]] + message["content"] for message in before)
    texts = [message["content"] for message in before]
    instruction, given = _apart(before[-1])
    if join == "newline" and given is not None:
        texts[-1] = f"{instruction}\n{given}"
    return "\n\n".join(texts) + ("\n" if trailing_newline and given is None else "")


def _apart(message: ChatMessage) -> tuple[str, str | None]:
    """Instruction and input (None if there is none); split at the first blank line unless meta records the input."""
    if INPUT in message:
        instruction, given = split_input(message)
        return instruction, given or None
    instruction, blank, given = message["content"].partition("\n\n")
    return instruction, given if blank else None


def without_oldest_turns(before: Sequence[ChatMessage]) -> list[ChatMessage] | None:
    """The question without its first answer and the turns before that, except system messages; None if it has one turn."""
    spoken = [number for number, message in enumerate(before) if message["role"] == "assistant"]
    if not spoken:
        return None
    rest = list(before[spoken[0] + 1 :])
    if not any(message["role"] != "assistant" for message in rest):
        return None
    return [message for message in before[: spoken[0]] if message["role"] == "system"] + rest


def share_room(room: int, question: int, answer: int) -> tuple[int, int]:
    """Split `room` tokens between question and answer: the longer one is cut first, then both equally."""
    if question + answer <= room:
        return question, answer
    half = room // 2
    if question <= half:
        return question, room - question
    if answer <= room - half:
        return room - answer, answer
    return half, room - half


def fit_exchange(
    exchange: Exchange, encode: Callable[[Exchange], Tokens], tokenizer: Any, longest: int, mark: str = ""
) -> Tokens | None:
    """Encode an exchange that is too long in at most `longest` tokens; None if even its frame has more.

    The oldest turns are dropped first. Then the longer of last question and answer is cut at its end, and `mark` put there.
    """
    while (shorter := without_oldest_turns(exchange.before)) is not None:
        exchange = Exchange(shorter, exchange.answer)
        tokens = encode(exchange)
        if len(tokens) <= longest:
            return tokens
    texts = exchange.before[-1]["content"], exchange.answer
    ends = [token_ends(tokenizer, text) for text in texts]
    room = longest - len(encode(exchange.with_texts(mark, mark)))
    while room > 0:
        kept = share_room(room, len(ends[0]), len(ends[1]))
        cut = [_cut(*each, mark) for each in zip(texts, ends, kept, strict=True)]
        tokens = encode(exchange.with_texts(*cut))
        if len(tokens) <= longest:
            return tokens
        room -= len(tokens) - longest  # a text may have a few more tokens within its frame than by itself
    return None


def token_ends(tokenizer: Any, text: str) -> list[int]:
    """The end of each token of the text, in characters."""
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [end for _, end in encoding["offset_mapping"]]


def _cut(text: str, ends: Sequence[int], keep: int, mark: str) -> str:
    if keep >= len(ends):
        return text
    return text[: ends[keep - 1] if keep else 0] + mark


def embedded_text(messages: Sequence[ChatMessage], text: EmbeddedText) -> str:
    """The part of a conversation that is embedded."""
    if text == "conversation":
        return "\n\n".join(message["content"] for message in messages)
    asked = [message for message in messages if message["role"] == "user"]
    if text == "first_paragraph":
        return _apart(asked[0])[0] if asked else ""
    return "\n\n".join(message["content"] for message in asked)

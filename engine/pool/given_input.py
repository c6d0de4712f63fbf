"""Alpaca's input on its way from ingest to the prompt.

Ingest joins instruction and input into one message of the user, so that a conversation has one id in every layout, and keeps
the input in meta beside it. The template `alpaca`, whose two forms differ by it, finds it in the message itself, where
`conversation_of` puts it; every other template passes it over. Scorers that join instruction and input otherwise, or leave
the input out, as MoDS does, find it there too.

Preference pairs and examples have it in a meta of their own, so that targets are shown as rows are.

The input counts where the last message of the user ends with it after a blank line: a column of this name that has nothing
to do with the conversation does no harm. Of twins that differ only in where their input begins, ingest keeps one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from raysift.pool.json_text import dump
from raysift.records import MESSAGES, META, ChatMessage, Example, Pair

INPUT = "input"
TOLD_APART_BY = "alpaca"
"""The template that tells an input from its instruction."""


def join_input(instruction: str, given: str) -> str:
    """Instruction and input as one message."""
    return f"{instruction}\n\n{given}" if given else instruction


def split_input(message: Mapping[str, str]) -> tuple[str, str]:
    """Instruction and input of a message of `conversation_of`; the input is empty where none is told apart."""
    content, given = message["content"], message.get(INPUT, "")
    return (content.removesuffix(join_input("", given)), given) if given else (content, "")


def cut_to(message: Mapping[str, str], content: str) -> ChatMessage:
    """The message with its content cut short, and the input with it."""
    start = len(join_input(split_input(message)[0], " ")) - 1
    return {**message, "content": content} | ({INPUT: content[start:]} if INPUT in message else {})


def conversation_of(row: Mapping[str, Any]) -> list[ChatMessage]:
    """The row's messages; the last one of the user has its input beside it, where the row's meta holds one."""
    messages: list[ChatMessage] = row[MESSAGES]
    meta = row.get(META)
    if not meta or f'"{INPUT}"' not in meta:
        return messages
    carried = orjson.loads(meta)
    return mark_input(messages, carried.get(INPUT) if isinstance(carried, dict) else None)


def prompt_of(target: Pair | Example) -> list[ChatMessage]:
    """The turns before a target's answer, the input of its meta told apart as in a row."""
    return mark_input([{"role": m.role, "content": m.content} for m in target.prompt], target.meta.get(INPUT))


def input_meta(target: Pair | Example) -> str | None:
    """The meta of a row that is made of a target's prompt: its input, if it has one."""
    given = target.meta.get(INPUT)
    return dump({INPUT: given}).decode() if isinstance(given, str) and given else None


def mark_input(messages: Sequence[ChatMessage], given: Any) -> list[ChatMessage]:
    """The messages with `given` beside the last one of the user, if that ends with it."""
    marked = list(messages)
    asked = [number for number, message in enumerate(messages) if message["role"] == "user"]
    if isinstance(given, str) and given and asked and marked[asked[-1]]["content"].endswith(join_input("", given)):
        marked[asked[-1]] = {**marked[asked[-1]], INPUT: given}
    return marked

"""Prompt and completion: `{"prompt": ..., "completion": ...}`, each a text or a list of messages; or `response`.

A text prompt is one message of the user and a text completion one of the assistant, both to the letter: a trailing
`<|endoftext|>` stays, because only the data's owner knows whether it is text.
"""

from __future__ import annotations

from raysift.pool.formats.layout import Layout, Record, needs
from raysift.pool.formats.problem import text_of
from raysift.pool.formats.turns import Turns, read_turns, with_system


def read_side(record: Record, field: str, role: str) -> Turns:
    """A field that holds text said by `role`, or messages."""
    if isinstance(record.get(field), list):
        return read_turns(record[field], field)
    return [(role, text_of(record, field))]


def read(record: Record) -> list[Turns]:
    answer = "completion" if "completion" in record else "response"
    prompt = with_system(record.get("system"), read_side(record, "prompt", "user"))
    return [prompt + read_side(record, answer, "assistant")]


LAYOUT = Layout(
    name="prompt_completion",
    needs=needs("prompt completion", "prompt response"),
    fields=frozenset({"prompt", "completion", "response", "system"}),
    read=read,
)

"""Alpaca: `{"instruction": ..., "input": ..., "output": ...}`, with optional `system` and `history`.

The user's message is the instruction, and after a blank line the input where there is one; meta keeps that input
(raysift.pool.given_input). `history` is a list of [instruction, response] pairs that come first.
"""

from __future__ import annotations

from raysift.pool.formats.layout import Layout, Record, needs
from raysift.pool.formats.problem import RecordProblem, kind_of, text_of
from raysift.pool.formats.turns import Turns, with_system
from raysift.pool.given_input import INPUT, join_input


def read_prompt(record: Record) -> Turns:
    """All that comes before the response."""
    prompt = join_input(text_of(record, "instruction"), text_of(record, "input", required=False))
    turns: Turns = [*_history(record["history"]), ("user", prompt)] if record.get("history") else [("user", prompt)]
    return with_system(record.get("system"), turns)


def _history(value: object) -> Turns:
    if not isinstance(value, list):
        raise RecordProblem("wrong_type", f"'history' is {kind_of(value)}, expected a list of pairs")
    turns: Turns = []
    for pair in value:
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise RecordProblem("wrong_type", "'history' holds something other than [instruction, response]")
        turns += [("user", pair[0]), ("assistant", pair[1])]
    return turns


def read_inputs(record: Record) -> list[object]:
    """The input field of the one conversation."""
    return [record.get(INPUT)]


def read(record: Record) -> list[Turns]:
    return [[*read_prompt(record), ("assistant", text_of(record, "output"))]]


LAYOUT = Layout(
    name="alpaca",
    needs=needs("instruction output"),
    fields=frozenset({"instruction", "input", "output", "system", "history"}),
    read=read,
    inputs=read_inputs,
)

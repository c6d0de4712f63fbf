"""Preferences: a prompt, a better answer `chosen` and a worse one `rejected`, in the layouts people publish.

- prompt, chosen, rejected as text, or as lists of messages (the lists may repeat the prompt);
- chosen and rejected only: two conversations with a common beginning, as lists of messages or HH transcripts;
- ShareGPT pairs: `conversations`, and chosen and rejected as one message each;
- Alpaca with `instruction`, `input`, chosen and rejected;
- `prompt_messages` beside a flat `prompt` is the prompt.

Given as a *pool*, such a file yields the prompt followed by the chosen answer; `rejected` stays in meta.
"""

from __future__ import annotations

from typing import Any

from raysift.pool.formats import alpaca, prompt_completion
from raysift.pool.formats.layout import Layout, Record, needs
from raysift.pool.formats.problem import RecordProblem, kind_of
from raysift.pool.formats.sharegpt import field_of
from raysift.pool.formats.transcripts import is_transcript, read_transcript
from raysift.pool.formats.turns import Turns, read_turn, read_turns, with_system

PROMPT_FIELDS = ("prompt_messages", "conversations", "conversation", "messages", "instruction", "prompt")


def read_prompt(record: Record) -> Turns | None:
    """The explicit prompt, or None where it is to be found inside the answers."""
    present = [field for field in PROMPT_FIELDS if record.get(field) is not None]
    if not present:
        return None
    if present[0] == "instruction":
        return alpaca.read_prompt(record)
    if present[0] == "prompt":
        prompt = record["prompt"]
        if isinstance(prompt, str) and is_transcript(prompt):
            turns = read_transcript(prompt)
            # "...\n\nAssistant:" at the end asks for the answer; it is not an answer.
            turns = turns[:-1] if turns[-1] == ("assistant", "") else turns
        else:
            turns = prompt_completion.read_side(record, "prompt", "user")
        return with_system(record.get("system"), turns)
    field = field_of(record) if present[0].startswith("conversation") else present[0]
    return with_system(record.get("system"), read_turns(record[field], field))


def read_answer(value: Any, field: str, prompt: Turns | None) -> Turns:
    """All turns of one side that come after the explicit prompt."""
    if isinstance(value, dict):
        return [read_turn(value, field)]
    if isinstance(value, list):
        turns = read_turns(value, field)
    elif isinstance(value, str):
        turns = read_transcript(value) if prompt is None and is_transcript(value) else [("assistant", value)]
    elif value is None:
        raise RecordProblem("one_sided", f"'{field}' is missing or null")
    else:
        raise RecordProblem("wrong_type", f"'{field}' is {kind_of(value)}, expected text, a message or messages")
    if prompt and turns[: len(prompt)] == prompt:
        return turns[len(prompt) :]
    return turns


def read_sides(record: Record) -> tuple[Turns, Turns, Turns]:
    """Prompt, what follows it in the chosen answer, and what follows it in the rejected one."""
    prompt = read_prompt(record)
    chosen = read_answer(record.get("chosen"), "chosen", prompt)
    rejected = read_answer(record.get("rejected"), "rejected", prompt)
    if prompt is None:
        shared = 0
        limit = min(len(chosen), len(rejected)) - 1  # the last turn is the answer, also where both are the same
        while shared < limit and chosen[shared] == rejected[shared]:
            shared += 1
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    return prompt, chosen, rejected


def read(record: Record) -> list[Turns]:
    prompt = read_prompt(record)
    return [(prompt or []) + read_answer(record.get("chosen"), "chosen", prompt)]


LAYOUT = Layout(
    name="preference",
    needs=needs("chosen rejected"),
    fields=frozenset({*PROMPT_FIELDS, "input", "history", "system", "chosen"}),
    read=read,
    inputs=alpaca.read_inputs,
)

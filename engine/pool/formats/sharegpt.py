"""ShareGPT: `{"conversations": [{"from": "human", "value": ...}, ...]}`, with optional `system` and `tools`.

`function_call` is said by the assistant, `observation` by a tool. `tools` is carried through in meta.
"""

from __future__ import annotations

from raysift.pool.formats.layout import Layout, Record, needs
from raysift.pool.formats.turns import Turns, read_turns, with_system


def field_of(record: Record) -> str:
    """The field's name, which some sets spell in the singular."""
    return "conversations" if "conversations" in record else "conversation"


def read(record: Record) -> list[Turns]:
    field = field_of(record)
    return [with_system(record.get("system"), read_turns(record.get(field), field))]


LAYOUT = Layout(
    name="sharegpt",
    needs=needs("conversations", "conversation"),
    fields=frozenset({"conversations", "conversation", "system"}),
    read=read,
)

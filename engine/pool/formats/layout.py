"""What a layout of records is: the fields it needs, and how a record of it becomes conversations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from raysift.pool.formats.turns import Turns
from raysift.pool.json_text import load
from raysift.records import META

Record = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """A record belongs to the layout when it has every field of one of `needs`."""

    name: str
    needs: tuple[frozenset[str], ...]
    fields: frozenset[str]
    """Fields that the conversation uses up; all others are carried through as meta."""
    read: Callable[[Record], list[Turns]]
    """The conversations of a record, nearly always one; raises RecordProblem."""
    inputs: Callable[[Record], Sequence[Any]] | None = None
    """What stood in the input field of each conversation, which has it joined to the instruction; kept in meta as well."""

    def fits(self, found: frozenset[str]) -> bool:
        return any(need <= found for need in self.needs)


def needs(*choices: str) -> tuple[frozenset[str], ...]:
    """`needs("prompt completion", "prompt response")`: either both of the first or both of the second."""
    return tuple(frozenset(choice.split()) for choice in choices)


def carried_of(record: Record, used: AbstractSet[str]) -> Record:
    """What meta keeps of a record: all but the fields used up by the conversation.

    A column `meta` that is an object or null, or the JSON text of an object, is what meta already means: its keys lie beside
    the others, which count where both have one.
    """
    if record.keys() <= used:
        return {}
    carried = {key: value for key, value in record.items() if key not in used}
    inner = _object_of(carried.get(META))
    if inner is None:
        return carried
    carried.pop(META, None)
    return inner | carried


def _object_of(value: Any) -> Record | None:
    """The object that a value is, or holds as JSON text; null is an empty one."""
    if isinstance(value, str):
        try:
            value = load(value)
        except ValueError:
            return None
        return value if isinstance(value, dict) else None
    return {} if value is None else value if isinstance(value, dict) else None

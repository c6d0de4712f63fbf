"""What a layout of records is: the fields it needs, and how a record of it becomes conversations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from raysift.formats.turns import Turns

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

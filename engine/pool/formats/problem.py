"""Why a record is no conversation."""

from __future__ import annotations


class RecordProblem(Exception):
    """A record that cannot become a conversation; `reason` is a key of raysift.pool.checks.REASONS."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def text_of(record: dict[str, object], field: str, *, required: bool = True) -> str:
    """A field that must hold text; an absent or null optional one is the empty text."""
    value = record.get(field)
    if value is None and not required:
        return ""
    if not isinstance(value, str):
        raise RecordProblem("wrong_type", f"'{field}' is {kind_of(value)}, expected text")
    return value


def kind_of(value: object) -> str:
    """The JSON name of a value's type, for messages that must not show the value."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")

"""How row ids stand in JSON. Without imports, so that the command line starts quickly."""

from __future__ import annotations

from typing import Any


def id_text(row_id: int) -> str:
    """A row's id as JSON shows it: as text, because JavaScript, jq and others round numbers beyond 2^53.

    `raysift explain` takes what this gives.
    """
    return str(row_id)


def exact(value: Any) -> Any:
    """The value with its integers beyond 2^53, which in our tables and events are ids, as text."""
    if isinstance(value, dict):
        return {key: exact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [exact(item) for item in value]
    return id_text(value) if isinstance(value, int) and abs(value) > 2**53 else value

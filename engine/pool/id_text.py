"""Row ids as text: 16 hexadecimal digits on screen, in JSON and in exports. Without imports, so that commands start quickly.

Parquet tables keep ids as 64-bit integers. JSON cannot: JavaScript, jq and others round numbers beyond 2^53.
"""

from __future__ import annotations

from typing import Any

DIGITS, SHORT = 16, 8  # in full; on screen, where `raysift explain` takes any unambiguous beginning
_SIGN = 1 << 63


def id_text(row_id: int) -> str:
    """A row's id as 16 hexadecimal digits of its 64 bits."""
    return f"{row_id % (2 * _SIGN):016x}"


def short_id(row_id: int) -> str:
    """The first digits of an id, for tables on a screen."""
    return id_text(row_id)[:SHORT]


def id_ranges(text: str) -> list[tuple[int, int]]:
    """The lowest and highest id that a text may mean: an id's beginning in hexadecimal, or a whole id in decimal digits.

    Some texts are both. No range: the text is no id.
    """
    digits, found = text.strip().lower(), []
    if digits and len(digits) <= DIGITS and set(digits) <= set("0123456789abcdef"):
        low, high = (int(digits.ljust(DIGITS, filler), 16) for filler in "0f")
        found.append((low - 2 * _SIGN, high - 2 * _SIGN) if low >= _SIGN else (low, high))
    decimal = digits.removeprefix("-")
    if decimal.isascii() and decimal.isdigit() and -_SIGN <= int(digits) < _SIGN:
        found.append((int(digits), int(digits)))
    return found


def exact(value: Any) -> Any:
    """The value with its integers beyond 2^53, which in our tables and events are ids, as text."""
    if isinstance(value, dict):
        return {key: exact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [exact(item) for item in value]
    return id_text(value) if isinstance(value, int) and abs(value) > 2**53 else value

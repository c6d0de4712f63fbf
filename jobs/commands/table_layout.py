"""Fits a table to a terminal: numbers and ids stay whole, text wraps between words, columns that do not fit go below."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len

BORDER, BETWEEN = 1, 3  # characters of lines and blanks per table and per column
LONGEST_WORD = 24  # longer words, such as paths, may be broken
ABSENT = "–"

_NUMBER = re.compile(r"[-+~<>=/x,.\d%]*\d[-+~<>=/x,.\d%]*(e[-+]\d+)?|" + ABSENT)


@dataclass(frozen=True)
class Column:
    """One column of a table; `place` is its position among the requested columns."""

    place: int
    is_text: bool
    width: int
    """Width in characters."""


def lay_out(heads: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[list[Column]]:
    """Split the columns into blocks at most `width` wide, each starting with the first column; one block if all columns fit."""
    columns = [_measure(place, head, [row[place] for row in rows]) for place, head in enumerate(heads)]
    if not columns:
        return [[]]
    least = [narrow for _, narrow in columns]
    blocks: list[list[int]] = [[0]]
    for place in range(1, len(columns)):
        block = [*blocks[-1], place]
        if len(blocks[-1]) > 1 and _width_of([least[i].width for i in block]) > width:
            blocks.append([0])
        blocks[-1].append(place)
    return [_widen([columns[place] for place in block], width) for block in blocks]


def _measure(place: int, head: str, cells: Sequence[str]) -> tuple[Column, Column]:
    """A column at its full width, and at its least width without breaking a number or a word."""
    is_text = head != "id" and not all(_NUMBER.fullmatch(cell) for cell in cells)
    words = max((cell_len(word) for word in head.split()), default=0)
    longest = max((cell_len(cell) for cell in cells), default=0)
    parts = [min(cell_len(word), LONGEST_WORD) for cell in cells for word in cell.split()] if is_text else [longest]
    return Column(place, is_text, max(longest, cell_len(head))), Column(place, is_text, max([words, *parts]))


def _widen(columns: Sequence[tuple[Column, Column]], width: int) -> list[Column]:
    """Give columns their full width if there is room; otherwise shrink the widest text columns first."""
    widths = [wide.width for wide, _ in columns]
    while _width_of(widths) > width:
        free = [i for i, (_, narrow) in enumerate(columns) if widths[i] > narrow.width]
        if not free:
            break
        widths[max(free, key=lambda i: widths[i])] -= 1
    return [Column(wide.place, wide.is_text, size) for (wide, _), size in zip(columns, widths, strict=True)]


def _width_of(widths: Sequence[int]) -> int:
    return sum(widths) + BETWEEN * len(widths) + BORDER


def duration(seconds: float) -> str:
    """Hours and minutes of long work, minutes and seconds of short."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{seconds:.1f}s"

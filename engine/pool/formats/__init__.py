"""Layouts of records, and which one a record has.

To add a layout: one small file with a `LAYOUT`, and its line in `LAYOUTS`. Order matters: the first that fits is
taken, so the more particular ones come first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from raysift.errors import ConfigError
from raysift.pool.formats import alpaca, messages, preference, prompt_completion, self_instruct, sharegpt
from raysift.pool.formats.layout import Layout

__all__ = ["LAYOUTS", "Layout", "find_layout", "recognise"]

LAYOUTS: dict[str, Layout] = {
    module.LAYOUT.name: module.LAYOUT
    for module in (preference, messages, sharegpt, self_instruct, alpaca, prompt_completion)
}


def find_layout(name: str) -> Layout:
    """The layout of that name."""
    if name not in LAYOUTS:
        raise ConfigError(f"ingest: format '{name}' is unknown. Known: auto, {', '.join(sorted(LAYOUTS))}.")
    return LAYOUTS[name]


def recognise(found: Iterable[str], format: str, columns: Mapping[str, str], file: str) -> Layout:
    """The layout of a file whose records have the columns `found`; `columns` maps a layout's field to the column."""
    names = frozenset(found)
    shown = ", ".join(sorted(names))
    for field, column in columns.items():
        if column not in names:
            raise ConfigError(f"ingest: {file} has no column '{column}', named for '{field}' (found: {shown}).")
    renamed = (names - set(columns.values())) | set(columns)
    if format != "auto":
        layout = find_layout(format)
        if not layout.fits(renamed):
            wanted = " or ".join(" + ".join(sorted(need)) for need in layout.needs)
            raise ConfigError(
                f"ingest: {file} does not look like '{format}', which needs {wanted} (found: {shown}). "
                "Name its columns, for example columns.instruction=question."
            )
        return layout
    for layout in LAYOUTS.values():
        if layout.fits(renamed):
            return layout
    known = "; ".join(
        f"{layout.name}: {' or '.join(' + '.join(sorted(need)) for need in layout.needs)}"
        for layout in LAYOUTS.values()
    )
    raise ConfigError(
        f"ingest: {file} has columns of no known layout (found: {shown}). Known are {known}. "
        "Name its columns, for example columns.instruction=question columns.output=answer."
    )

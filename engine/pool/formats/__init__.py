"""Layouts of records, and which one a record has.

To add a layout: one small file with a `LAYOUT`, and its line in `LAYOUTS`. Order matters: the first that fits is
taken, so the more particular ones come first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from raysift.errors import ConfigError
from raysift.pool.formats import alpaca, messages, preference, prompt_completion, self_instruct, sharegpt
from raysift.pool.formats.layout import Layout

__all__ = ["LAYOUTS", "Layout", "find_layout", "recognise", "separator_hint"]

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
    if len(set(columns.values())) < len(columns):
        raise ConfigError(f"ingest: 'ingest.columns' names one column for several fields: {dict(columns)}.")
    renamed = (names - set(columns.values())) | set(columns)
    if format != "auto":
        layout = find_layout(format)
        if not layout.fits(renamed):
            wanted = " or ".join(" + ".join(sorted(need)) for need in layout.needs)
            raise ConfigError(
                f"ingest: {file} does not look like '{format}', which needs {wanted} (found: {shown}). "
                f"Name its columns, for example ingest.columns.instruction=question.{separator_hint(names)}"
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
        "Name its columns, for example ingest.columns.instruction=question ingest.columns.output=answer."
        f"{separator_hint(names)}"
    )


def separator_hint(found: Iterable[str]) -> str:
    """What to say of columns whose one name looks like the names of several; empty for others."""
    names = list(found)
    sign = next((sign for sign in ";\t|," if len(names) == 1 and sign in names[0]), None)
    return (
        f" Is the separator {sign!r}? Columns are separated by ',' in .csv and by tabs in .tsv files." if sign else ""
    )

"""What became of a row, and how large a selection is, in plain sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def fate_of(
    *,
    rank: int | None,
    count: int | None,
    score: float | None,
    has_scores: bool,
    cut: float | None = None,
    order: int | None = None,
    fate: str | None = None,
    failure: str | None = None,
) -> str:
    """One sentence; `count` is the size of the selection, None where nothing is chosen yet."""
    if rank is not None and count is not None:
        return f"Selected as number {rank:,} of {count:,}{f': {fate}' if fate else ''}."
    if not has_scores:
        return f"Kept; it failed: {failure}." if failure else "Kept; the run has no scores yet."
    if fate and order is None:
        return f"Not selected: {fate}{f' ({failure})' if failure else ''}."
    if score is None:
        return f"Not selected, for want of a score: {failure or 'no stage tells why'}."
    if count is None:
        return f"It scores {figure(score)}; the run has not chosen yet."
    if order is not None:
        return f"Not selected: it comes as number {order:,}, and the budget took the first {count:,}."
    if cut is None:
        return f"Not selected: it scores {figure(score)}, and the selection does not follow the scores alone."
    if score == cut:
        return (
            f"Not selected: it scores {figure(score)}, as the last selected row does, and the smaller id comes first."
        )
    return f"Not selected: it scores {figure(score)}, and the lowest score of a selected row is {figure(cut)}."


def figure(value: float) -> str:
    """A number with four digits that count."""
    return f"{value:.4g}" if math.isfinite(value) else str(value)


def share(part: float, whole: float) -> str:
    """A share in per cent: whole per cent from ten on, else one or two digits that count."""
    if not whole:
        return "0 %"
    value = 100 * part / whole
    return f"{value:.0f} %" if value >= 10 or value == 0 else f"{value:.2g} %"


def amount(count: float) -> str:
    """A large number in short: 950, 12,300, 1.2 M."""
    return f"{count / 1e9:.1f} G" if count >= 1e9 else f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count:,.0f}"


def largest_sources(selected: Mapping[str, int], total: int) -> str:
    """How much of a selection comes from its largest sources, of `total` sources of the pool."""
    taken = sum(selected.values())
    if total < 2 or not taken:
        return ""
    counts = sorted(selected.values(), reverse=True)
    first = min(2, len(counts)) if total > 3 else 1
    return f"{share(sum(counts[:first]), taken)} of it from {first} of {total:,} sources"


def tidy(values: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of a row: floats with six digits that count, what is not known left out."""
    found = {}
    for name, value in values.items():
        if isinstance(value, float):
            value = float(f"{value:.6g}") if math.isfinite(value) else None
        if value is not None:
            found[name] = value
    return found

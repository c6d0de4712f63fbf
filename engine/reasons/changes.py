"""Which setting would have changed what became of a row: budgets and bars, short and yet exact.

A bar has to be beyond the row's own score. With n scores in rising order, c of them below the row's and c' not above it:

    above, value     v < score                                 quantile     ceil(q n) <= c        (see scoring.thresholds)
    below, value     v > score                                 quantile     floor(q n) >= c'
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from fractions import Fraction

from raysift.reasons.words import Side
from raysift.settings.budget import parse_budget

DIGITS = 17  # enough to tell any two numbers apart


@dataclass(frozen=True)
class Change:
    """What would have been otherwise, in a sentence, and the settings that do it, as on the command line."""

    text: str
    settings: tuple[str, ...]


@dataclass(frozen=True)
class Bar:
    """A threshold in the form in which it was set, the row's score, and the scores that it was applied to."""

    setting: str
    side: Side
    by_quantile: bool
    score: float
    below: int
    """Scores below the row's."""
    not_above: int
    """Scores not above the row's, its own included."""
    scored: int


def short(value: float, up: bool, strict: bool, digits: int = 3) -> str:
    """The decimal of fewest digits, at least `digits`, at or beyond a number, upwards or downwards, and close to it."""
    exact = Fraction(value)
    for count in range(digits, DIGITS + 1):
        place = (math.floor(math.log10(abs(float(exact)))) if exact else 0) - count + 1
        step = Decimal(1).scaleb(place)
        units = exact / Fraction(step)
        whole = math.ceil(units) if up else math.floor(units)
        if strict and float(step * whole) == value:
            whole += 1 if up else -1
        told = (step * whole).normalize()
        found = Fraction(float(told))  # as a settings file is read
        if (found > exact if strict else found >= exact) if up else (found < exact if strict else found <= exact):
            return format(told, "f") if -6 < told.adjusted() < 15 else f"{told:E}".replace("E+", "e").replace("E", "e")
    return repr(math.nextafter(value, math.inf if up else -math.inf))


def budget_taking(place: int, pool_rows: int, given: str) -> str | None:
    """The budget that takes `place` rows, in the form of the given one; None if no budget does."""
    if not 1 <= place <= pool_rows:
        return None
    if parse_budget(given).share is None:
        return str(place)
    for digits in range(2, 12):
        share = Decimal(place * 100) / Decimal(pool_rows)
        step = Decimal(1).scaleb(share.adjusted() - digits + 1)
        told = min(Decimal(100), (share / step).to_integral_value(ROUND_CEILING) * step)
        text = f"{_plainly(told)}%"
        if place <= parse_budget(text).rows_of(pool_rows):
            return text
    return None


def budget_leaving(rank: int, pool_rows: int, given: str) -> str | None:
    """The largest short budget that takes fewer than `rank` rows; None for the first row, which any budget takes."""
    if rank <= 1:
        return None
    if parse_budget(given).share is None:
        return str(rank - 1)
    for digits in range(2, 12):
        share = Decimal((rank - 1) * 100) / Decimal(pool_rows)
        step = Decimal(1).scaleb(share.adjusted() - digits + 1)
        text = f"{_plainly((share / step).to_integral_value(ROUND_FLOOR) * step)}%"
        if parse_budget(text).rows_of(pool_rows) < rank:
            return text
    return None


def bar_passing(bar: Bar) -> str:
    """The setting at which the row passes the bar."""
    if not bar.by_quantile:
        return f"{bar.setting}.value={short(bar.score, up=bar.side == 'below', strict=True)}"
    if bar.side == "above":
        return f"{bar.setting}.quantile={_share(bar.below, bar.scored, up=False, strict=False)}"
    return f"{bar.setting}.quantile={_share(bar.not_above, bar.scored, up=True, strict=False)}"


def bar_stopping(bar: Bar) -> str | None:
    """The setting at which the row does not pass the bar."""
    if not bar.by_quantile:
        return f"{bar.setting}.value={short(bar.score, up=bar.side == 'above', strict=False)}"
    if bar.side == "above":
        return f"{bar.setting}.quantile={_share(bar.below, bar.scored, up=True, strict=True)}"
    return f"{bar.setting}.quantile={_share(bar.not_above, bar.scored, up=False, strict=True)}"


def _share(count: int, total: int, up: bool, strict: bool) -> str:
    """count / total as a short decimal from 0 to 1, compared exactly as thresholds read it."""
    exact = Fraction(count, total)
    for digits in range(2, DIGITS + 1):
        scaled = exact * 10**digits
        whole = math.ceil(scaled) if up else math.floor(scaled)
        if strict and whole == scaled:
            whole += 1 if up else -1
        is_coarse = not whole and count and not up and digits < 6
        if 0 <= whole <= 10**digits and not is_coarse:
            return _plainly(Decimal(whole).scaleb(-digits))
    return "1" if up else "0"


def _plainly(value: Decimal) -> str:
    return format(value.normalize(), "f")

"""Numbers in words: how a row's score stands among all, how it met a bar, how far it lay from the chosen rows."""

from __future__ import annotations

import math
from typing import Literal

Side = Literal["above", "below"]


def number(value: float) -> str:
    """A number as people read it: three digits that count, whole numbers whole."""
    if not math.isfinite(value):
        return str(value)
    if value == round(value) and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3g}"


def percent(share: float) -> str:
    """A share from 0 to 1; never rounded to 0 % or 100 % unless it is."""
    told = f"{100 * share:.0f}"
    if (told == "0" and share > 0) or (told == "100" and share < 1):
        told = f"{100 * share:.2g}" if share < 0.5 else f"{100 - float(f'{100 * (1 - share):.1g}'):g}"
    return f"{told} %"


def times(count: int) -> str:
    """Once, twice, 3 times."""
    return {1: "once", 2: "twice"}.get(count, f"{count:,} times")


def standing(better: int, worse: int, scored: int, what: str = "higher") -> str:
    """How a value stands among those of `scored` rows, itself included, of which `worse` lie strictly below it."""
    if scored <= 1:
        return "the only one"
    if worse == 0:
        return f"as low as the lowest of {scored:,} rows"
    told = f"{what} than that of {percent(worse / (scored - 1))} of the other {scored - 1:,} rows"
    return told if better else f"{told}, the first of all"


def met_bar(name: str, value: float, bar: float | None, side: Side) -> str:
    """How a value met the bar of a step, for example the quality bar."""
    if bar is None:
        return f"Its {name} is {number(value)}; the bar lets every row with a {name} pass."
    passed = value > bar if side == "above" else value < bar
    if value == bar:
        where = f"exactly the bar of {number(bar)}, which is not {side} it"
    else:
        where = f"{'above' if value > bar else 'below'} the bar of {apart(bar, value)}"
    return f"Its {name} is {apart(value, bar)}, {where}: it {'passed' if passed else 'did not pass'}."


def necessity(value: float, bar: float | None) -> str:
    """What the score of the tuned model's own answer says about the row."""
    told = f"The model that was tuned on the seeds answers the question itself, and its answer scores {number(value)}"
    if bar is None:
        return f"{told}; the bar lets every answered row count as needed."
    side = "below" if value < bar else "not below"
    so = "the model does not know this yet, so the row is needed" if value < bar else "the model knows this already"
    return f"{told}, {side} the bar of {apart(bar, value)}: {so}."


def picked_by_distance(radius: float | None, end: float | None) -> str:
    """How far a centre lay from the rows chosen before it, against the farthest row at the end."""
    if radius is None or not math.isfinite(radius):
        told = "It was the first row chosen, so no distance decided"
        return (
            f"{told}."
            if end is None
            else f"{told}; at the end no row lay farther than {number(end)} from a chosen one."
        )
    told = f"Its distance to the nearest row chosen before it was {number(radius)}"
    return f"{told}." if end is None else f"{told}; at the end no row lay farther than {number(end)} from a chosen one."


def covered(distance: float | None, end: float | None) -> str:
    """Why a row that could have been a centre is none."""
    told = "It is covered: the rows chosen are near it"
    if distance is not None:
        told = f"It is covered: the nearest chosen row is at a distance of {number(distance)}"
    return f"{told}." if end is None else f"{told}, and no row was left farther than {number(end)} from a chosen one."


def cosine(value: float, place: str, subtask: str | None, worse: int, scored: int) -> str:
    """A cosine with the target at one checkpoint, against the pool's."""
    of = f" for '{subtask}'" if subtask else ""
    told = standing(1, worse, scored)
    return f"Its cosine with the target{of} {place} is {value:.2g}, {told}."


def apart(value: float, other: float) -> str:
    """A number with as many digits as show that it is another than `other`."""
    if value == other:
        return number(value)
    for digits in range(3, 17):
        told, against = f"{value:.{digits}g}", f"{other:.{digits}g}"
        if told != against:
            return number(value) if digits == 3 else told
    return repr(value)


def taken_as(fate: str | None) -> str:
    """As what a row was taken, for the end of a sentence; empty where nothing is to be told."""
    known = {
        "seed": "a seed",
        "augmented": "a row added to the seeds",
        "center": "a centre",
        "picked": "a pick of the policy",
    }
    return f", as {known.get(fate, fate)}" if fate else ""

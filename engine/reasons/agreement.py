"""What a person is told of a target whose pairs or examples agree, or do not (see `raysift.gradients.agreement`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raysift.gradients.agreement import (
    ALIKE,
    CANCELS,
    CLEAR_HALVES,
    FEWEST,
    LEAST_TOWARD,
    MOST_CHANCE,
    SERVED,
    WANTED_HALVES,
    WORKED,
)

AGREEMENT = "agreement"
"""Its name among the values of the stage `targets`."""
SHOWN = 3
BEFORE_WARMUP = "This is the model before any warm-up; a run says it again after its own."
Found = Mapping[str, Any]


def tell_agreement(found: Found) -> str:
    """A few sentences: how far halves agree, what follows from it, what would help, and which parts are to blame."""
    said = [_halves(found), _advice(found), _away(found), _cancels(found), _weak_subtasks(found), _against(found)]
    return " ".join(sentence for sentence in said if sentence)


def tell_refusal(found: Found, least: float, setting: str) -> str:
    """Why the run ends here, for a setting that asks for more agreement."""
    return (
        f"targets: {tell_agreement(found)} {setting} asks for {least:g}, so the run ends before its pass over the pool. With a "
        "lower value, or null, the same command goes on."
    )


def _halves(found: Found) -> str:
    kind, h = found["kind"], found["halves"]
    if h is None:
        return _no_halves(found)
    low, high = found["low"], found["high"]
    each = ", subtask by subtask," if len(found["subtasks"]) > 1 else ""
    told = f"halves of these {_members(found)}{each} agree at"
    if low is None:
        return f"{told} {h:.2f}, but so few have no interval: nothing is known of their noise. Give at least ten."
    if (cosine := found["mean_cosine"]) >= ALIKE:
        return (
            f"{told} {h:.2f} because they hardly differ (mean cosine {cosine:.2f}): nothing is known of other {kind}. Give {kind} "
            "with different texts."
        )
    only = "only " if found["level"] == "noise" and h < CLEAR_HALVES else ""
    worked = f"; {WORKED} in targets that worked" if found["level"] != "clear" else ""
    told = f"{told} {only}{h:.2f} ({low:.2f} to {high:.2f}{worked})"
    chance = found["chance"]
    if _is_few(found):
        told += f"; {found['members']} {kind} are too few to be sure"
    elif chance is not None and chance > MOST_CHANCE:
        told += f", and with sides swapped at random as much in {_percent(chance)} of draws"
    follows = {"noise": ": what follows may be noise.", "weak": ": a part of what follows may be noise."}
    return told + follows.get(found["level"], ".")


def _no_halves(found: Found) -> str:
    kind, count, members = found["kind"], found["count"], found["members"]
    if count == 1:
        return f"one {kind[:-1]} has no halves: nothing is known of its noise. Give at least ten."
    if len(found["subtasks"]) > 1:
        return (
            f"each of the {len(found['subtasks'])} subtasks has one {kind[:-1]}, and one has no halves: nothing is known of their "
            f"noise. Give each subtask several {kind}."
        )
    if members == 1:
        return f"these {count} {kind} are one text repeated, and one has no halves: nothing is known of its noise. Give others."
    return f"the gradients of these {_members(found)} are all zero."


def _members(found: Found) -> str:
    count, members = found["count"], found["members"]
    return f"{count:,} {found['kind']}" + (f" ({members:,} different ones)" if members < count else "")


def _is_few(found: Found) -> bool:
    return bool(found["members"] - len(found["subtasks"]) < FEWEST - 1)


def _advice(found: Found) -> str:
    kind, level = found["kind"], found["level"]
    if level in ("clear", "unknown"):
        return ""
    each = " in each subtask" if len(found["subtasks"]) > 1 else ""
    enough = (found["needed"] or 0) <= found["members"] / len(found["subtasks"])
    needed = "" if enough else f"about {_about(found['needed'])}{each} for {WANTED_HALVES:g}"
    if enough and _is_few(found):
        needed = f"at least {FEWEST}"
    there = f"the files have {found['left_out']:,} more, see targets.limit" if found["left_out"] else ""
    told = "; ".join(part for part in (needed, there) if part)
    more = f"more {kind}" + (f" ({told})" if told else "")
    if level == "weak":
        return f"What helps: {more}."
    if kind == "pairs":
        wider = "Use pairs whose answers differ in more than a word or a number"
        # Without a sign test, the chosen answers count by themselves already; `_away` names the preset itself.
        if found["chance"] is None or points_away(found):
            return f"{wider}, or {more}."
        return f"{wider}, {more}, or `rose.preset=anchored`, which adds the chosen answers' own gradients."
    return f"Use examples whose answers are of one kind, or {more}."


def points_away(found: Found) -> bool:
    """Whether the contrast of pairs does not point to what chosen and rejected share."""
    toward = found.get("toward")
    return toward is not None and toward < LEAST_TOWARD


def _away(found: Found) -> str:
    if not points_away(found):
        return ""
    return (
        f"What sets chosen apart does not point to what both share (cosine {found['toward']:.2f}; {SERVED} in targets that "
        "worked), so rows of their kind may rank last: if these are what you want, use `rose.preset=anchored`."
    )


def _cancels(found: Found) -> str:
    between = found["between"]
    if between is None or between < CANCELS or found["level"] == "clear":
        return ""
    return f"The gradients of chosen and rejected are nearly the same (cosine {between:.2f}): most of both cancels."


def weak_subtasks(found: Found) -> list[tuple[float, str]]:
    """Agreement and name of the subtasks that may be noise, lowest first, where there are several subtasks."""
    subtasks = found["subtasks"]
    if len(subtasks) < 2:
        return []
    return sorted((own["halves"], name) for name, own in subtasks.items() if own["level"] == "noise")


def _weak_subtasks(found: Found) -> str:
    told = [f"'{name}' ({h:.2f})" for h, name in weak_subtasks(found)]
    return f"Subtasks that may be noise: {_first(told)}." if told else ""


def _against(found: Found) -> str:
    count, first = found["against"]["count"], found["against"]["first"]
    if not count:
        return ""
    files: dict[str, list[str]] = {}
    for one in first:
        files.setdefault(one["file"], []).append(str(one["record"]))
    word = "record" if found["kind"] == "pairs" else "id"
    told = "; ".join(f"{file}, {word} {', '.join(records)}" for file, records in files.items())
    before = ": " if count == len(first) else ", most of all "
    return f"{count:,} of them {'pulls' if count == 1 else 'pull'} against the rest{before}{told}."


def _first(told: Sequence[str]) -> str:
    left = len(told) - SHOWN
    if left <= 0:
        return ", ".join(told)
    return f"{', '.join(told[:SHOWN])} and {left} other{'s' if left > 1 else ''}"


def _about(count: int) -> str:
    """Two digits that count."""
    return f"{float(f'{count:.2g}'):,.0f}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"

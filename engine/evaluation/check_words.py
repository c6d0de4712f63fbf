"""What a quantile check says, in sentences: is there an order, is it one of skill or of format, and what would tell more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raysift.evaluation.check import LOSS, METRIC, PLAIN, TAUGHT
from raysift.evaluation.comparison import FEWEST_SEEDS
from raysift.evaluation.intervals import mean_interval
from raysift.evaluation.quantiles import paired

Found = Mapping[str, Any]

SAID = {
    1: "rows that score higher teach more",
    0: "the order of the scores cannot be told from no order",
    -1: "rows that score higher teach less",
}
AT = {PLAIN: "as the models answer", TAUGHT: "with the format taught"}
SEEDS_AGREE = 0.5
"""Mean rank correlation of two seeds from which on they are said to agree about the bins."""


def verdicts(found: Found) -> list[str]:
    """The sentences, the one that matters most first."""
    said = [
        f"{found['method']}: {headline(found)}.",
        *_format(found),
        *_best_bin(found),
        *_open(found),
        *_metric(found),
    ]
    return [*said, *_harm(found), *_few(found)]


def headline(found: Found) -> str:
    """Whether there is an order of the loss, in each state."""
    orders = {state: kinds[LOSS]["order"] for state, kinds in found["states"].items()}
    figures = {state: f"{interval_words(one)} {AT[state]}" for state, one in orders.items()}
    kinds = {state: kind_of(one) for state, one in orders.items()}
    if len({*kinds.values()}) == 1:
        return f"{SAID[kinds[PLAIN]]}; rank correlation of bin and loss {', '.join(figures.values())}"
    return "; ".join(f"{AT[state]}, {SAID[kinds[state]]} ({interval_words(orders[state])})" for state in kinds)


def kind_of(order: Found | None) -> int:
    """The kind of an order; of results that are all equal, 0."""
    return 0 if order is None else int(order["kind"])


def interval_words(order: Found | None) -> str:
    """A correlation with its interval."""
    return "all equal" if order is None else f"{order['correlation']:.2f} ({order['low']:.2f} to {order['high']:.2f})"


def _format(found: Found) -> list[str]:
    """From what a difference between the two states comes."""
    if TAUGHT not in found["states"]:
        return []
    order = found["format"]["order"]
    kind, told = kind_of(order), interval_words(order)
    plain, taught = (kind_of(found["states"][state][LOSS]["order"]) for state in (PLAIN, TAUGHT))
    if kind == 1:
        return [
            f"Rows that score higher also answer more in the target's format: their models gain less by being taught it ({told}). "
            + (
                "What order there is before is one of format, as far as can be told."
                if plain == 1 and taught != 1
                else "A part of the order before is format."
            )
        ]
    if kind == -1:
        return [
            f"Rows that score higher answer in another format than the target: their models gain more by being taught it ({told}). "
            "So they look worse before than what they teach."
        ]
    if plain != taught:
        return [
            f"What the models gain by being taught the format has no order that can be told ({told}), so nothing says that the "
            "two differ by format; they may by chance."
        ]
    return []


def _best_bin(found: Found) -> list[str]:
    """Whether bin 1 is worse than another one, and whether its format is why."""
    plain = found["states"][PLAIN][LOSS]
    means = [one["mean"] for one in plain["bins"]]
    best = min(range(len(means)), key=means.__getitem__)
    if not best:
        return []
    behind = _behind(plain, best)
    _, low, _ = mean_interval(behind, found["confidence"])
    if low is None or low <= 0:
        return []
    text = f"Bin 1 has a higher loss than bin {best + 1}, by {sum(behind) / len(behind):.3f} as the models answer"
    if TAUGHT not in found["states"]:
        return [f"{text}."]
    after = _behind(found["states"][TAUGHT][LOSS], best)
    text = f"{text} and by {sum(after) / len(after):.3f} with the format taught"
    _, less, _ = mean_interval(paired(behind, after), found["confidence"])
    if less is not None and less > 0:
        return [f"{text}: {'most' if sum(after) <= sum(behind) / 2 else 'a part'} of that is the format of its rows."]
    return [f"{text}: that cannot be told to come from the format of its rows."]


def _behind(measured: Found, other: int) -> list[float]:
    """By how much bin 1 lies above another one, seed by seed."""
    return paired([seed[0] for seed in measured["seeds"]], [seed[other] for seed in measured["seeds"]])


def _open(found: Found) -> list[str]:
    """What an order that cannot be told may come from."""
    last = found["states"][TAUGHT if TAUGHT in found["states"] else PLAIN][LOSS]["order"]
    if last is None or kind_of(last) or last["agreement"] is None:
        return []
    agreement = last["agreement"]
    if agreement >= SEEDS_AGREE:
        return [
            f"The seeds agree on which bins are better ({agreement:.2f}): the bins do differ, and not in the order of the score."
        ]
    return [
        f"The seeds do not agree on which bins are better ({agreement:.2f}): the bins hardly differ, or more rows a bin "
        "(--rows) and more seeds (--seeds) would tell."
    ]


def _metric(found: Found) -> list[str]:
    orders = {state: kinds[METRIC]["order"] for state, kinds in found["states"].items() if METRIC in kinds}
    if not orders:
        return []
    figures = ", ".join(f"{interval_words(one)} {AT[state]}" for state, one in orders.items())
    kinds = [kind_of(one) for one in orders.values()]
    ends = {1: "ordered as the score is", 0: "cannot be told from no order", -1: "ordered against the score"}
    said = ends[kinds[0]] if len({*kinds}) == 1 else " and ".join(ends[kind] for kind in kinds)
    return [f"By {found['metric']}: {said}; {figures}."]


def _harm(found: Found) -> list[str]:
    """A note where no bin helps at all."""
    plain = found["states"][PLAIN][LOSS]
    best = min(one["mean"] for one in plain["bins"])
    if best < plain["base"]:
        return []
    return [f"No bin lowers the loss of the base model ({plain['base']:.3f}): the best has {best:.3f}."]


def _few(found: Found) -> list[str]:
    said = []
    if found["seeds"] < FEWEST_SEEDS:
        said.append(
            f"{_count(found['seeds'], 'seed')} are few: take the figures as a hint.".replace("1 seed are", "1 seed is")
        )
    if found.get("ties"):
        said.append(
            f"{_count(found['ties'], 'border')} between bins fall on equal scores: there ids alone decided which row is in which."
        )
    return said


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def bars(values: Sequence[float | None], width: int = 10) -> list[str]:
    """Each value as a bar between the lowest and the highest; the lowest has a bar of one character."""
    known = [value for value in values if value is not None]
    least, most = min(known, default=0.0), max(known, default=0.0)
    span = most - least
    return [
        "" if value is None else "█" * (1 + round((width - 1) * ((value - least) / span if span else 0.0)))
        for value in values
    ]


__all__ = ["bars", "headline", "interval_words", "kind_of", "verdicts"]

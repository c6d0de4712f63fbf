"""Things in a selection that a person should look at, each with its count and its threshold; None where all is well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raysift.gradients.agreement import CLEAR_HALVES
from raysift.reasons.agreement import tell_agreement, weak_subtasks
from raysift.report.blocks import Alert

LENGTH_RANK = 0.5
LENGTH_LIFT = 3.0
SOURCE_SHARE = 0.5
TWIN_SHARE = 0.01
CUT_SHARE = 0.01
FAILED_SHARE = 0.01
TIED_SHARE = 0.01
WEIGHT_SHARE = 0.95
DISTINCT_SHARE = 0.25
NOISE_SHARE = 0.5

WARNING, NOTE = "warning", "note"


def length_by_rank(correlation: float | None) -> Alert | None:
    """Whether the score is, in the main, the length of the answer."""
    if correlation is None or abs(correlation) < LENGTH_RANK:
        return None
    which = "Longer" if correlation > 0 else "Shorter"
    return Alert(
        key="length_rank",
        level=WARNING,
        text=f"{which} answers score higher: the rank correlation of score and length is {correlation:.2f}.",
        count=correlation,
        threshold=LENGTH_RANK,
        chip="top",
    )


def length_by_lift(names: Sequence[str], lift: Sequence[float | None]) -> Alert | None:
    """Whether the longest or the shortest tenth of the pool's answers is chosen far more often than by chance."""
    if len(names) < 3:
        return None
    found = max((len(names) - 1, 0), key=lambda place: lift[place] or 0)
    times = lift[found] or 0
    if times < LENGTH_LIFT:
        return None
    which = "longest" if found else "shortest"
    text = f"The {which} answers of the pool ({names[found]} characters) were chosen {times:.1f} times as often as by chance."
    return Alert(key="length_lift", level=WARNING, text=text, count=times, threshold=LENGTH_LIFT, chip="top")


def one_source(pool: Mapping[str, int], selected: Mapping[str, int]) -> Alert | None:
    """Whether more than half of the selection comes from one of several sources."""
    taken, rows = sum(selected.values()), sum(pool.values())
    if len(pool) < 2 or not taken:
        return None
    name = max(sorted(selected), key=lambda source: selected[source])
    share, of_pool = selected[name] / taken, pool.get(name, 0) / rows
    if share <= SOURCE_SHARE:
        return None
    return Alert(
        key="one_source",
        level=NOTE if share <= 1.1 * of_pool else WARNING,
        text=f"{share:.0%} of the selection comes from one source, '{name}'; of the pool, {of_pool:.0%} does.",
        count=share,
        threshold=SOURCE_SHARE,
    )


def twins(count: int, rows: int, looked: int, chip: str) -> Alert | None:
    """Whether the selection holds texts that differ in case, spaces, quotes and stops alone."""
    if not count:
        return None
    of = f" in the first {looked:,} rows" if looked < rows else ""
    return Alert(
        key="twins",
        level=WARNING if count > 1 and count >= TWIN_SHARE * looked else NOTE,
        text=f"Texts that another selected row has, but for case, spaces and punctuation: {count:,}{of}.",
        count=count,
        threshold=TWIN_SHARE * looked,
        chip=chip,
    )


def same_question(count: int, looked: int, chip: str) -> Alert | None:
    """Whether many selected rows ask what another one asks."""
    if count < TWIN_SHARE * looked or not count:
        return None
    text = f"Questions that another selected row asks, too, with another answer: {count:,}."
    return Alert(key="same_question", level=NOTE, text=text, count=count, threshold=TWIN_SHARE * looked, chip=chip)


def asked_in(count: int, rows: int, what: str, where: str, chip: str | None) -> Alert | None:
    """Whether questions of the target or the test set stand among the rows."""
    if not count:
        return None
    text = f"{count:,} of {rows:,} questions of the {what} stand in the {where}, but for case, spaces and punctuation."
    if what == "test set":
        text += " A score on them tells nothing: leave them out of the pool."
    return Alert(key=f"{what.split()[0]}_in_{where}", level=WARNING, text=text, count=count, threshold=0, chip=chip)


def truncated(stage: str, count: int, rows: int, chip: str | None) -> Alert | None:
    """Whether a stage read only the beginning of rows."""
    if not count or not rows:
        return None
    return Alert(
        key=f"truncated_{stage}",
        level=WARNING if count >= CUT_SHARE * rows else NOTE,
        text=f"{stage}: {count:,} of {rows:,} rows were longer than it reads, and cut.",
        count=count,
        threshold=CUT_SHARE * rows,
        chip=chip,
    )


def failed(stage: str, count: int, rows: int, chip: str | None) -> Alert | None:
    """Whether more than a hundredth of a stage's rows failed; a search counts trials that failed, and no rows."""
    if not rows or count <= FAILED_SHARE * rows:
        return None
    return Alert(
        key=f"failed_{stage}",
        level=WARNING,
        text=f"{stage}: {count:,} of {rows:,} rows failed ({count / rows:.1%}).",
        count=count,
        threshold=FAILED_SHARE * rows,
        chip=chip,
    )


def tied(inside: int, outside: int, selected: int, chip: str | None) -> Alert | None:
    """Whether rows outside the selection score as high as the last ones inside, so that their ids decided."""
    if not outside:
        return None
    return Alert(
        key="tied",
        level=WARNING if inside >= TIED_SHARE * selected and inside > 1 else NOTE,
        text=(
            f"{inside + outside:,} rows share the score at the cut. The smaller ids decided: {inside:,} were taken, "
            f"{outside:,} were not."
        ),
        count=inside + outside,
        threshold=TIED_SHARE * selected,
        chip=chip,
    )


def checkpoint_weights(weights: Sequence[float], names: Sequence[str]) -> Alert | None:
    """Whether one checkpoint of several decides alone."""
    total = sum(weights)
    if len(weights) < 2 or total <= 0 or max(weights) / total < WEIGHT_SHARE:
        return None
    name, share = names[max(range(len(weights)), key=weights.__getitem__)], max(weights) / total
    text = f"{name} has {share:.0%} of the weight of all checkpoints: the others hardly count. See the learning rates."
    return Alert(key="checkpoint_weights", level=WARNING, text=text, count=share, threshold=WEIGHT_SHARE)


def target_agreement(found: Mapping[str, Any]) -> Alert | None:
    """Whether the pairs or examples of the target agree too little, or are too few, to say something."""
    if found["level"] == "clear" and not weak_subtasks(found):
        return None
    told = tell_agreement(found)
    return Alert(
        key="target_agreement",
        level=WARNING if found["level"] == "noise" else NOTE,
        text=f"Target: {told}",
        count=found["halves"],
        threshold=CLEAR_HALVES,
    )


def collapsed(distinct: int, picks: int, rows: int) -> Alert | None:
    """Whether a policy picked few rows again and again, of a pool that has more."""
    possible = min(picks, rows)
    if not possible or distinct >= DISTINCT_SHARE * possible:
        return None
    text = f"The policy collapsed: its {picks:,} picks are of {distinct:,} different rows."
    return Alert(
        key="collapsed", level=WARNING, text=text, count=distinct, threshold=DISTINCT_SHARE * possible, chip="top"
    )


def learned_nothing(start: float, end: float) -> Alert | None:
    """Whether the training under the final policy made the model no better on the validation examples."""
    if end > start:
        return None
    text = f"Training under the policy did not help: performance on the validation examples went from {start:.4f} to {end:.4f}."
    return Alert(key="learned_nothing", level=WARNING, text=text, count=end - start, threshold=0)


def fewer_than_asked(chosen: int, asked: int | None) -> Alert | None:
    """Whether fewer rows were chosen than the budget asked for."""
    if asked is None or chosen >= asked:
        return None
    text = f"{asked:,} rows were asked for and {chosen:,} chosen: no other row has a score or a place."
    return Alert(key="fewer_than_asked", level=NOTE, text=text, count=chosen, threshold=asked)


def noise(sentence: str, above: int | None, selected: int | None) -> Alert | None:
    """Whether much of the selection does not stand above what targets without meaning give, or nothing tells."""
    text = f"{sentence[:1].upper()}{sentence[1:]}."
    if above is None or not selected:
        return Alert(key="no_null", level=NOTE, text=text)
    share = above / selected
    if share >= NOISE_SHARE:
        return None
    return Alert(key="noise", level=WARNING, text=text, count=share, threshold=NOISE_SHARE, chip="top")

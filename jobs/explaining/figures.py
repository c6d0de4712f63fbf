"""The numbers that decided about a row, in words; each method tells its own, by the class of its selector."""

from __future__ import annotations

from functools import singledispatch

import numpy as np

from raysift.gradients.null import of_row
from raysift.gradients.null_columns import NullColumns
from raysift.jobs.explaining.facts import Facts, place_among
from raysift.jobs.gradients.null import NULL
from raysift.methods import Selector
from raysift.methods.coverage import CENTER, COVERED, Coverage
from raysift.methods.gradient import BySubtask, GradientSelector
from raysift.methods.mods import AUGMENTED, NECESSITY, QUALITY, SEED, Mods
from raysift.methods.raise_policy import PICKED, Raise
from raysift.policy.verdict import DOUBT
from raysift.reasons import words
from raysift.records import ABOVE_NULL, FATE, RADIUS

SHOWN_SUBTASKS = 6


def figures_of(facts: Facts) -> list[str]:
    """Sentences on the numbers that decided; for a row without a score, why it has none."""
    if facts.standing is None and not facts.own.get(FATE):
        return _failed(facts)
    return _numbers(facts.selector, facts)


@singledispatch
def _numbers(selector: Selector, facts: Facts) -> list[str]:
    return [_score(facts)]


@_numbers.register
def _by_subtask(selector: BySubtask, facts: Facts) -> list[str]:
    by_subtask = facts.own.get("by_subtask") or []
    names = facts.matches.get("subtasks") or []
    told = [_score(facts)]
    if 1 < len(names) == len(by_subtask):
        order = sorted(range(len(names)), key=lambda i: (-by_subtask[i], names[i]))[:SHOWN_SUBTASKS]
        listed = ", ".join(f"{names[i]} {by_subtask[i]:.2g}" for i in order)
        more = f" and {len(names) - len(order)} more" if len(names) > len(order) else ""
        told.append(f"By subtask: {listed}{more}.")
    return told


@_numbers.register
def _by_gradient(selector: GradientSelector, facts: Facts) -> list[str]:
    told, found = _by_subtask(selector, facts), facts.matches
    matched = facts.run.manifest("match", "gradients")
    if matched and found.get("matches"):
        last, cosines = len(found["checkpoints"]) - 1, np.array(found["matches"])
        best = found["subtasks"].index(facts.own["subtask"])
        value = float(cosines[last, best])
        target = facts.run.manifest("targets")
        each = NullColumns.of(target.values).each if target else 1
        among = place_among(facts.run.files(matched, "answers"), last, best * each, value)
        subtask = facts.own["subtask"] if len(found["subtasks"]) > 1 else None
        told.append(words.cosine(value, f"at the last checkpoint ({found['checkpoints'][last]})", subtask, *among))
        if (cosines[:, best] < 0).any() and (cosines[:, best] > 0).any():
            told.append("The checkpoints disagree: at some it helps the target, at others it works against it.")
        elif facts.standing and facts.standing.score < 0:
            told.append("Below 0, training on it works against the target.")
    if facts.own.get(ABOVE_NULL) is not None and (null := facts.value(NULL, "influence")):
        told.append(of_row(null["kind"], facts.own[ABOVE_NULL]))
    return told


@_numbers.register
def _by_stage(selector: Mods, facts: Facts) -> list[str]:
    own, told = facts.own, []
    good, needed = (facts.value("cut", stage) for stage in ("good", "needed"))
    if own[QUALITY] is not None and good:
        told.append(words.met_bar("quality", own[QUALITY], good["value"], "above"))
    if facts.standing:
        told.append(f"Its quality is {_stands(facts)}.")
    if own[NECESSITY] is not None and needed:
        told.append(words.necessity(own[NECESSITY], needed["value"]))
    if own[FATE] in (SEED, AUGMENTED):
        end = facts.value("radius", "seeds" if own[FATE] == SEED else "augmented")
        if own[FATE] == SEED or selector.config.second_coverage:
            told.append(words.picked_by_distance(own[RADIUS], end))
    elif own[FATE] == COVERED:
        told.append(words.covered(_distance(facts), facts.value("radius", "augmented", "seeds")))
    return told + _failed(facts)


@_numbers.register
def _by_distance(selector: Coverage, facts: Facts) -> list[str]:
    end = facts.value("radius", "centers")
    if facts.own[FATE] == CENTER:
        return [words.picked_by_distance(facts.own[RADIUS], end)]
    if facts.own[FATE] == COVERED:
        return [words.covered(_distance(facts), end)]
    return _failed(facts)


@_numbers.register
def _by_policy(selector: Raise, facts: Facts) -> list[str]:
    story = facts.policy
    if story is None:
        return _failed(facts)
    told = []
    if facts.own[FATE] == PICKED:
        first = f"first in step {story.steps[0]:,} of {story.all_steps:,}"
        told.append(f"The policy picked it {words.times(len(story.steps))} in the final training, {first}.")
    else:
        told.append(f"The policy picked it in none of the {story.all_steps:,} steps of the final training.")
    if story.chance_below is not None:
        among = words.standing(1, story.chance_below, story.class_rows)
        of = "the pool" if story.class_rows == story.pool_rows else f"its class of {story.class_rows:,} rows"
        if story.chance is None:
            told.append(f"Before the first step the policy's score for it was {among}, in {of}.")
        else:
            told.append(
                f"Before the first step its chance to be drawn was {story.chance:.2g} times that of an average row of {of}, "
                f"{among}."
            )
    if story.rounds:
        total = sum(story.rounds)
        told.append(
            f"While the policy learned, in {len(story.rounds):,} rounds, it was picked {words.times(total) if total else 'never'}; "
            f"an average row was picked {words.number(story.expected)} times."
        )
    if story.credit is not None:
        way = "raised" if story.credit > 0 else "did not raise"
        told.append(
            f"Its reward: rows with such features {way} the measured performance; credit {story.credit:+.2f}, in standard "
            f"deviations over the pool, {words.standing(1, story.credit_below, story.pool_rows)}."
        )
    if doubt := facts.value(DOUBT, "final"):
        told.append(str(doubt))
    return told


def _failed(facts: Facts) -> list[str]:
    return [f"It failed in {facts.failure}."] if facts.failure else []


def _score(facts: Facts) -> str:
    assert facts.standing
    name = facts.selector.score_words
    return f"{name} is {words.number(facts.standing.score)}, {_stands(facts)}."


def _stands(facts: Facts) -> str:
    found = facts.standing
    assert found
    return words.standing(found.better, found.worse, found.scored)


def _distance(facts: Facts) -> float | None:
    return facts.nearest.distance if facts.nearest else None

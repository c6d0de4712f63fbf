"""Settings with which something else had become of a row, computed from the run's tables; each method knows its own.

Nothing is guessed: where only another run could tell, that is said instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import singledispatch
from typing import NamedTuple

import numpy as np

from raysift.gradients.influence import round_robin
from raysift.jobs.explaining.facts import Facts
from raysift.jobs.runs.tables import read_chunks, read_numbers, with_tokens
from raysift.methods import Selector
from raysift.methods.coverage import CENTER, COVERED, Coverage
from raysift.methods.gradient import BySubtask
from raysift.methods.mods import AUGMENTED, KNOWN, NECESSITY, POOR, QUALITY, SEED, Mods, ModsConfig
from raysift.methods.raise_policy import Raise
from raysift.reasons.changes import Bar, Change, bar_passing, bar_stopping, budget_leaving, budget_taking
from raysift.reasons.words import Side
from raysift.records import FATE, ID, ORDER, SCORE, TOKENS
from raysift.scoring.columns import SCORE_COLUMN
from raysift.scoring.settings import Threshold
from raysift.settings.budget import parse_budget
from raysift.topk import TopK

HELD_NUMBERS = 2**24  # scores held at once to see in which turn a row is picked
BY_DISTANCE = (
    "No single setting: which rows k-center takes depends on all others. A larger budget takes farther rows first."
)


class Found(NamedTuple):
    """What would have changed it, or why that cannot be told."""

    changes: list[Change]
    none: str | None = None


def changes_of(facts: Facts) -> Found:
    """The settings that would have changed what became of the row."""
    if facts.chosen is None:
        return Found([])
    if facts.failure and facts.standing is None:
        return Found([], "No setting of the selection: the row could not be scored, for the reason above.")
    return _changes(facts.selector, facts)


def taking(budget: str) -> Change:
    """A budget that takes the row."""
    return Change(f"--budget {budget} would have taken it.", (f"budget={budget}",))


def leaving(budget: str) -> Change:
    """A budget that leaves the row out."""
    return Change(f"--budget {budget} would have left it out.", (f"budget={budget}",))


@singledispatch
def _changes(selector: Selector, facts: Facts) -> Found:
    assert facts.standing
    if parse_budget(facts.config.budget).counts_tokens:
        return _by_tokens(facts)
    return _by_place(facts, facts.standing.better + 1)


@_changes.register
def _by_subtask(selector: BySubtask, facts: Facts) -> Found:
    if not selector.picks_in_turn:
        return _changes.dispatch(Selector)(selector, facts)
    place = facts.rank or _turn_of(facts)
    if place is None:
        return Found([], "Nothing short can be said: too many turns of the subtasks lie before its own.")
    return _by_place(facts, place)


@_changes.register
def _by_distance(selector: Coverage, facts: Facts) -> Found:
    if facts.own[FATE] == CENTER and facts.rank and selector.config.centers.mode == "exact":
        return _by_place(facts, facts.rank)
    return Found([], BY_DISTANCE)


@_changes.register
def _by_bars(selector: Mods, facts: Facts) -> Found:
    settings, fate = selector.config, facts.own[FATE]
    quality = _bar(facts, QUALITY, "quality", settings.alpha, "mods.alpha", "above")
    necessity = _bar(facts, NECESSITY, "necessity", settings.beta, "mods.beta", "below")
    then = "would have let it pass this bar; whether it is chosen then depends on the rows beside it."
    if fate == POOR and quality:
        return Found([_with(bar_passing(quality), then)])
    if fate == KNOWN and necessity:
        return Found([_with(bar_passing(necessity), then)])
    if fate == COVERED:
        return Found([], BY_DISTANCE)
    stops = [bar_stopping(bar) for bar in (quality, necessity if fate == AUGMENTED else None) if bar]
    if fate in (SEED, AUGMENTED):
        return Found([_with(setting, "would have kept it out.") for setting in stops if setting])
    return Found([])


@_changes.register
def _by_policy(selector: Raise, facts: Facts) -> Found:
    final, order = facts.run.manifest("final"), facts.own[ORDER]
    if order is None or final is None:
        told = "Nothing short can be said: the policy picked it in no step, and another budget means another training."
        return Found([], told)
    steps = f"raise.episode.steps={final.settings['steps']}"
    find, words = (budget_leaving, "left it out") if facts.rank else (budget_taking, "taken it")
    budget = find(order, facts.rows.counts["kept"], facts.config.budget)
    if budget is None:
        return Found([], "No budget would have left it out: it is the first row.")
    told = f"--budget {budget} with {steps}, which keeps the training as it was, would have {words}."
    return Found([Change(told, (f"budget={budget}", steps))])


def _by_place(facts: Facts, place: int) -> Found:
    """By budgets in rows or shares, for methods that take rows from the first place on, whatever the budget."""
    pool, given = facts.rows.counts["kept"], facts.config.budget
    if facts.rank is None:
        budget = budget_taking(place, pool, given)
        return Found([taking(budget)] if budget else [])
    budget = budget_leaving(facts.rank, pool, given)
    return Found([leaving(budget)]) if budget else Found([], "No budget would have left it out: it is the first row.")


def _by_tokens(facts: Facts) -> Found:
    """By the tokens of all rows up to this one: the budget takes the longest run of best rows that fits."""
    lengths = facts.run.manifest("lengths")
    assert facts.standing and facts.scores
    if lengths is None:
        return Found([])
    ahead, own = 0, None
    chunks = read_chunks(facts.run.files(facts.scores, "scores"), [ID, SCORE])
    for chunk in with_tokens(chunks, facts.run.files(lengths, "answers")):
        good = chunk.filter(chunk[SCORE].is_valid())
        ids, scores, tokens = (good[name].to_numpy() for name in (ID, SCORE, TOKENS))
        before = (scores > facts.standing.score) | ((scores == facts.standing.score) & (ids < facts.row_id))
        ahead += int(tokens[before].sum())
        own = int(tokens[ids == facts.row_id][0]) if (ids == facts.row_id).any() else own
    if own is None:
        return Found([], "No budget in tokens takes it: its length is not known.")
    if facts.rank is None:
        return Found([taking(f"{ahead + own}tok")])
    return Found([leaving(f"{ahead + own - 1}tok")]) if ahead else Found([], "It is the first row.")


def _turn_of(facts: Facts) -> int | None:
    """The place at which the subtasks' turns come to the row.

    With rank r in the list of its best subtask, and S subtasks, it is picked in that subtask's r-th turn at the latest:
    among the first S r rows.
    """
    assert facts.scores
    own = np.array(facts.own["by_subtask"], np.float64)
    ahead = np.zeros(len(own), np.int64)
    for ids, table in _subtask_scores(facts):
        before = (table > own) | ((table == own) & (ids < facts.row_id)[:, None])
        ahead += before.sum(axis=0)
    most = len(own) * int(ahead.min() + 1)
    if most * len(own) > HELD_NUMBERS:
        return None
    best = [TopK(most) for _ in own]
    for ids, table in _subtask_scores(facts):
        for one, column in zip(best, table.T, strict=True):
            one.add(ids, column)
    picked, _, _ = round_robin([one.result() for one in best], most)
    return int(np.flatnonzero(picked == facts.row_id)[0]) + 1


def _subtask_scores(facts: Facts) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    assert facts.scores
    for chunk in read_chunks(facts.run.files(facts.scores, "scores"), [ID, SCORE, "by_subtask"]):
        good = chunk.filter(chunk[SCORE].is_valid()).combine_chunks()
        if len(good):
            yield good[ID].to_numpy(), np.stack([np.asarray(row) for row in good["by_subtask"].to_numpy()])


def _bar(facts: Facts, name: str, stage: str, threshold: Threshold, setting: str, side: Side) -> Bar | None:
    """The bar that a row met with a score of this stage; None if it has none, or if nothing is barred."""
    value, judged, settings = facts.own[name], facts.run.manifest(stage), facts.selector.config
    if value is None or judged is None or (threshold.value is None and threshold.quantile is None):
        return None
    assert isinstance(settings, ModsConfig)
    score_column = SCORE_COLUMN[settings.scorer.kind]
    table = read_numbers(facts.run.files(judged, "answers"), score_column, name)
    scores = table[name].drop_null().to_numpy()
    below, not_above = int((scores < value).sum()), int((scores <= value).sum())
    return Bar(setting, side, threshold.quantile is not None, value, below, not_above, len(scores))


def _with(setting: str, words: str) -> Change:
    return Change(f"{setting} {words}", (setting,))

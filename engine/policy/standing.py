"""Where a row stands when a policy picks a batch: its score, what the draw made of it, and what its class gave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from raysift.policy.classes import class_quotas
from raysift.policy.drawing import Draw
from raysift.policy.pool import PolicyPool, positions
from raysift.policy.state import Episode, State, stage_inputs
from raysift.topk import Ids

if TYPE_CHECKING:
    from raysift.policy.picking import Picker


@dataclass(frozen=True)
class PickStanding:
    """Ranks count from 1; ties go to the smaller id. Rows that were picked as often as is allowed have no rank in a class."""

    score: float
    rank: int
    """By score, among all rows."""
    class_rank: int | None
    """By score, among the open rows of the class."""
    pick_rank: int | None
    """The same by what the pick went by: score over temperature plus noise where it was drawn, else the score."""
    class_rows: int
    """Open rows of the class."""
    quota: int
    """Rows that the class gave to the batch."""
    lacking: float | None
    """What the row was short of the last one taken, in what the pick went by; 0 or below where it was picked."""
    likelihood: float | None
    """Its probability in the class over that of a uniform draw; how the policy, not chance, sees it."""

    @property
    def picked(self) -> bool:
        return self.pick_rank is not None and self.pick_rank <= self.quota


def state_before(episode: Episode, pool: PolicyPool, step: int) -> State:
    """The state before a step, from 1, without going through those before it (see `state.replay`)."""
    known = episode.known_performance
    earlier = episode.table["picks"].combine_chunks().slice(0, step).flatten().to_numpy()
    counts = np.bincount(positions(pool, earlier), minlength=len(pool)).astype(np.int32)
    return State(stage_inputs(known[0], known[step - 1], step, episode.steps), counts)


def standing(picker: Picker, state: State, step: int, size: int, draw: Draw | None, place: int) -> PickStanding:
    """Of the row at `place` of the pool, in a batch of `size` rows."""
    pool, settings = picker.pool, picker.settings
    scores = picker.scores(state)
    keys = scores if draw is None else scores / settings.temperature + draw.noise(pool.ids, step)
    is_open = np.ones(len(pool), np.bool_)
    if settings.max_repeats is not None:
        is_open = state.counts < settings.max_repeats
    members = [rows[is_open[rows]] for rows in picker.members]
    number = int(pool.classes[place])
    mine, quota = members[number], class_quotas([len(rows) for rows in members], size)[number]
    rank = rank_of(pool.ids, scores, place)
    if not is_open[place]:
        return PickStanding(float(scores[place]), rank, None, None, len(mine), quota, None, None)
    inside = int(np.searchsorted(mine, place))
    ids = pool.ids[mine]
    softmax = np.exp((scores[mine] - scores[mine].max()) / settings.temperature)
    taken = np.sort(keys[mine])[-quota] if quota else np.inf
    return PickStanding(
        score=float(scores[place]),
        rank=rank,
        class_rank=rank_of(ids, scores[mine], inside),
        pick_rank=rank_of(ids, keys[mine], inside),
        class_rows=len(mine),
        quota=quota,
        lacking=float(taken - keys[place]),
        likelihood=float(softmax[inside] / softmax.mean()),
    )


def rank_of(ids: Ids, values: NDArray[np.float64], place: int) -> int:
    """From 1, the highest value first, of equal ones the smaller id."""
    ahead = (values > values[place]) | ((values == values[place]) & (ids < ids[place]))
    return int(ahead.sum()) + 1

"""What the run's tables hold on one row: its score among all, its values by checkpoint, and why it was chosen or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from raysift.actors.row_gradients import MATCHES
from raysift.config import CommonConfig
from raysift.gradients.null_columns import NullColumns
from raysift.jobs.explaining.finding import columns_in, failure_of, find_row
from raysift.jobs.explaining.record import Neighbour, Standing
from raysift.jobs.runs.run import Run
from raysift.jobs.runs.tables import read_chunks
from raysift.manifest import Manifest
from raysift.methods import Selector
from raysift.reasons import words
from raysift.records import FATE, ID, ORDER, RANK, SCORE
from raysift.settings.budget import parse_budget

if TYPE_CHECKING:
    from raysift.jobs.policy.story import RowStory

SCORING = ("influence", "similarity", "score", "order")
"""Stages that leave the scores of all rows."""


@dataclass(frozen=True)
class Facts:
    """All numbers on one row of the pool that an explanation is made of."""

    run: Run
    config: CommonConfig
    selector: Selector
    row_id: int
    rows: Manifest
    scores: Manifest | None
    chosen: Manifest | None
    standing: Standing | None = None
    own: dict[str, Any] = field(default_factory=dict)
    rank: int | None = None
    failure: str | None = None
    """Why the row has no score."""
    nearest: Neighbour | None = None
    matches: dict[str, Any] = field(default_factory=dict)
    policy: RowStory | None = None

    def value(self, name: str, *stages: str) -> Any:
        """A value of the manifest of the first finished one of these stages, or None."""
        found = self.run.manifest(*stages)
        return found.values.get(name) if found else None


def scores_of(run: Run) -> Manifest | None:
    """The stage that scored all rows."""
    found = (run.manifest(stage) for stage in SCORING)
    return next((manifest for manifest in found if manifest and "scores" in manifest.files), None)


def standing_of(run: Run, scores: Manifest, row_id: int) -> tuple[Standing | None, dict[str, Any]]:
    """The row's place among all scored rows, and its values in the method's own columns."""
    files = run.files(scores, "scores")
    line = find_row(files, row_id, columns_in(files))
    if line is None:
        return None, {}
    own = {name: value for name, value in line.items() if name not in (ID, SCORE)}
    if line[SCORE] is None:
        return None, own
    better = worse = scored = 0
    for chunk in read_chunks(files, [ID, SCORE]):
        good = chunk.filter(chunk[SCORE].is_valid())
        ids, values = good[ID].to_numpy(), good[SCORE].to_numpy()
        ahead = (values > line[SCORE]) | ((values == line[SCORE]) & (ids < row_id))
        better, scored = better + int(ahead.sum()), scored + len(good)
        worse += int((values < line[SCORE]).sum())
    return Standing(line[SCORE], better, worse, scored), own


def rank_of(run: Run, chosen: Manifest | None, row_id: int) -> int | None:
    """The row's rank in the selection, or None."""
    line = find_row(run.files(chosen, "selection"), row_id, [RANK]) if chosen else None
    return line[RANK] if line else None


def matches_at(run: Run, scores: Manifest, row_id: int) -> dict[str, Any]:
    """Cosines per checkpoint and subtask, with the weights of checkpoints and targets; nothing for other methods."""
    matched, target = run.manifest("match", "gradients"), run.manifest("targets")
    if matched is None or target is None or "checkpoints" not in scores.values:
        return {}
    line = find_row(run.files(matched, "answers"), row_id, [MATCHES])
    by_target, each = scores.values.get("target_weights", []), NullColumns.of(target.values).each
    return {
        "matches": [at[::each] for at in line[MATCHES]] if line and line[MATCHES] else None,
        "checkpoints": scores.values["checkpoints"],
        "weights": scores.values["checkpoint_weights"],
        "subtasks": target.values["subtasks"],
        "subtask_weights": [by_target[of] for of in target.values["target_of"]] if len(by_target) > 1 else None,
    }


def place_among(files: Sequence[Any], checkpoint: int, column: int, value: float) -> tuple[int, int]:
    """How many rows have a lower cosine at this checkpoint in this column of the matches, and how many have one at all."""
    worse = scored = 0
    for chunk in read_chunks(files, [MATCHES]):
        cells = chunk[MATCHES].drop_null().combine_chunks()
        if len(cells):
            numbers = np.asarray(cells.flatten().flatten()).reshape(len(cells), len(cells[0]), -1)[
                :, checkpoint, column
            ]
            worse, scored = worse + int((numbers < value).sum()), scored + len(numbers)
    return worse, scored


def verdict_of(facts: Facts) -> str:
    """What became of the row, in one sentence."""
    config, chosen, standing, own = facts.config, facts.chosen, facts.standing, facts.own
    if own.get(FATE) and own.get(ORDER) is None:
        return f"not selected: {own[FATE]}" + (f" ({facts.failure})" if facts.failure else "")
    if facts.scores is None:
        return "kept when the pool was read; the run has no scores yet"
    if standing is None:
        return f"not selected: no score: {facts.failure or 'no stage tells why'}"
    place = f"rank {standing.better + 1:,} of {standing.scored:,} by score"
    if facts.selector.picks_in_turn:
        place += ", that of its best subtask"
    if chosen is None:
        return f"{place}; the run has not chosen yet"
    count = chosen.counts["kept"]
    if facts.rank:
        return f"selected as number {facts.rank:,} of {count:,}{words.taken_as(own.get(FATE)) or f'; {place}'}"
    taken = f"a budget of {config.budget} took {count:,} rows"
    if own.get(ORDER):
        return f"not selected: {own.get(FATE) or 'ranked'} as number {own[ORDER]:,}; {taken}"
    if facts.selector.picks_in_turn:
        return f"not selected: {place}; {taken}, which the subtasks picked in turn, and none had come to this one"
    if parse_budget(config.budget).counts_tokens:
        why = failure_of(facts.run, facts.row_id, ("lengths",))
        if why:
            return f"not selected: {place}; a budget in tokens cannot take it: {why}"
    files = facts.run.files(chosen, "selection")
    last = min(float(np.min(chunk[SCORE].to_numpy())) for chunk in read_chunks(files, [SCORE]))
    own_score = f"this row has {standing.score:.6g}"
    if standing.score == last:
        own_score = "this row has the same, and of equal scores the smaller id comes first"
    return f"not selected: {place}; {taken}, the lowest of them with score {last:.6g}, {own_score}"

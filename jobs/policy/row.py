"""One row in a run of RAISE: when it was picked, and how the policy saw it at some steps of the final training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from raysift.jobs.commands.console import Console
from raysift.jobs.policy.opened import MEASURES, PolicyRun, open_policy_run, round_folders
from raysift.jobs.runs.run import Run
from raysift.policy.features import input_names
from raysift.policy.saved import load_episodes
from raysift.policy.state import Episode
from raysift.scoring.columns import LOGPROB_ALONE, LOGPROB_GIVEN

if TYPE_CHECKING:
    from raysift.policy.standing import PickStanding

SHOWN_INPUTS = 5
SHOWN_STEPS = 20


class Feature(NamedTuple):
    """A number of the row, and the per cent of the pool's rows that have less."""

    name: str
    value: float
    percentile: float


class Moved(NamedTuple):
    """An input, its value as the policy reads it, and how far it moves the score from that of the pool's mean row."""

    name: str
    value: float
    attribution: float


@dataclass(frozen=True)
class Moment:
    """A step of the final training, with the state rebuilt from the log."""

    step: int
    standing: PickStanding
    mean_score: float
    """F of the mean row of the pool; with all attributions it gives the row's."""
    moved: list[Moved]
    """All inputs, those that move the score most first."""


@dataclass(frozen=True)
class RowStory:
    """All that a run of RAISE knows of a row that its policy could pick."""

    class_number: int
    class_rows: int
    steps: list[int]
    """Of the final training, in which it was picked."""
    rounds: list[int]
    """How often it was picked in each round, all its trainings together."""
    logprob_is_mean: bool
    drawn: bool
    """Whether the final training drew its batches, or took the highest scores."""
    features: list[Feature]
    moments: list[Moment]

    @property
    def missing(self) -> str | None:
        """Of a row never picked, what it lacked at the step at which it came closest, of those looked at."""
        if self.steps:
            return None
        open_ones = [moment for moment in self.moments if moment.standing.lacking is not None]
        nearest = min(open_ones, key=lambda moment: moment.standing.lacking or 0.0, default=None)
        if nearest is None:
            return None
        seen, went_by = nearest.standing, "score and draw together" if self.drawn else "score"
        return (
            f"of these steps closest at {nearest.step:,}: number {seen.pick_rank:,} of the {seen.class_rows:,} rows of class "
            f"{self.class_number} by {went_by}, of which {seen.quota} were taken; short by {seen.lacking:.4g}"
        )


def row_story(run: Run | PolicyRun, row_id: int, steps: Sequence[int] | None = None) -> RowStory | None:
    """None where the policy could not pick the row: it has no features, or nothing to learn from.

    Looks at the first, the middle and the last step, and at that in which the row was first picked, unless `steps` are given.
    """
    opened = run if isinstance(run, PolicyRun) else open_policy_run(run)
    place = int(np.searchsorted(opened.pool.ids, row_id))
    if place == len(opened.pool) or opened.pool.ids[place] != row_id:
        return None
    number = int(opened.pool.classes[place])
    rounds = [load_episodes(folder) for folder in round_folders(opened.run)]
    picked = _steps_with(opened.episode, row_id)
    numbers = list(steps) if steps else sorted({*opened.middle_steps(), *picked[:1]})
    features = [
        Feature(name, float(values[place]), 100.0 * float(np.mean(values < values[place])))
        for name, values in opened.difficulty_of_rows.items()
    ]
    return RowStory(
        class_number=number,
        class_rows=int((opened.pool.classes == number).sum()),
        steps=picked,
        rounds=[sum(len(_steps_with(episode, row_id)) for episode in group) for group in rounds],
        logprob_is_mean=opened.logprob_is_mean,
        drawn=opened.draw is not None,
        features=features,
        moments=[look_at(opened, place, step) for step in numbers],
    )


def look_at(opened: PolicyRun, place: int, step: int) -> Moment:
    """How the policy saw the row at this place of the pool before a step of the final training."""
    import torch

    from raysift.policy.attribution import attributions, inputs_of, mean_input, score_inputs
    from raysift.policy.standing import standing, state_before

    pool, settings = opened.pool, opened.settings
    state = state_before(opened.episode, pool, step)
    seen = standing(opened.picker, state, step, opened.batch_size, opened.draw, place)
    inputs = inputs_of(pool, state, settings, [place])
    mean = mean_input(pool, [state], settings)
    parts = attributions(opened.network, inputs, mean)[0]
    with torch.no_grad():
        mean_score = float(score_inputs(opened.network, torch.from_numpy(mean[None]).float())[0])
    names = input_names(pool.features.shape[1] - len(MEASURES))
    moved = [Moved(*line) for line in zip(names, inputs[0].tolist(), parts.tolist(), strict=True)]
    return Moment(step, seen, mean_score, sorted(moved, key=lambda one: (-abs(one.attribution), one.name)))


def show_row(story: RowStory, console: Console) -> None:
    """Print the story; all of it is numbers and names of inputs."""
    lines: list[list[object]] = [["class", f"{story.class_number} ({story.class_rows:,} rows)"]]
    lines += [["picked in the final training", _times(story.steps)]]
    if story.rounds:
        where = [
            f"{number}" + (f" ({times}x)" if times > 1 else "") for number, times in enumerate(story.rounds, 1) if times
        ]
        total = f"{sum(story.rounds):,} times over {len(story.rounds)} rounds"
        lines += [["picked in learning", total + (f": in round {_some(where)}" if where else "")]]
    if story.missing:
        lines += [["not picked", story.missing]]
    console.table("Under the policy", ["", "value"], lines)
    rows = [[_words(one.name, story.logprob_is_mean), one.value, f"{one.percentile:.0f}"] for one in story.features]
    console.table("What it knew of the row", ["", "value", "percentile"], rows)
    heads = [
        "step",
        "score",
        "mean row",
        "rank",
        "rank in class",
        "likelihood",
        *(["rank drawn"] if story.drawn else []),
    ]
    console.table(
        "Score and rank (likelihood: times that of a uniform draw)",
        [*heads, "taken of class", "picked"],
        [_standing_line(moment, story.drawn) for moment in story.moments],
    )
    console.table(
        "The inputs that moved its score most, from that of the mean row",
        ["step", *(f"{n + 1}." for n in range(SHOWN_INPUTS)), "all others"],
        [
            [
                str(moment.step),
                *(f"{one.name} {one.value:+.2f}: {one.attribution:+.2g}" for one in moment.moved[:SHOWN_INPUTS]),
                f"{sum(one.attribution for one in moment.moved[SHOWN_INPUTS:]):+.2g}",
            ]
            for moment in story.moments
        ],
    )


def _standing_line(moment: Moment, drawn: bool) -> list[object]:
    seen = moment.standing
    line: list[object] = [str(moment.step), f"{seen.score:.4f}", f"{moment.mean_score:.4f}", seen.rank, seen.class_rank]
    line += [None if seen.likelihood is None else f"{seen.likelihood:.3g}x", *([seen.pick_rank] if drawn else [])]
    return [*line, seen.quota, "yes" if seen.picked else "no"]


def _steps_with(episode: Episode, row_id: int) -> list[int]:
    """Steps of a training in which the row was picked."""
    cells = episode.table["picks"].combine_chunks()
    where = np.flatnonzero(cells.flatten().to_numpy() == row_id)
    ends = np.cumsum(cells.value_lengths().to_numpy())
    steps: list[int] = episode.table["step"].to_numpy()[np.searchsorted(ends, where, side="right")].tolist()
    return steps


def _times(steps: Sequence[int]) -> str:
    return f"{len(steps):,} times: in step {_some([f'{step:,}' for step in steps])}" if steps else "never"


def _some(words: Sequence[str]) -> str:
    return ", ".join(words[:SHOWN_STEPS]) + (" ..." if len(words) > SHOWN_STEPS else "")


def _words(name: str, logprob_is_mean: bool) -> str:
    unit = "log-probability per token" if logprob_is_mean else "log-probability"
    known = {LOGPROB_GIVEN: f"{unit}, given the prompt", LOGPROB_ALONE: f"{unit}, alone"}
    return known.get(name, name.replace("_", " "))

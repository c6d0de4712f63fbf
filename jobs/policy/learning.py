"""Learning a policy round by round; each finished round is saved, and a killed run resumes after the last one.

FOLDER/round-0001/          see raysift.policy.saved
FOLDER/round-0002.begun/    states of the trainings in work, see raysift.actors.frozen_training
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from raysift.actors.episode import EpisodeSetup, Weights
from raysift.actors.trainee import own_settings
from raysift.jobs.policy.episodes import Fleet
from raysift.policy.drawing import Draw
from raysift.policy.saved import (
    finished_rounds,
    load_episodes,
    load_learner,
    round_name,
    save_round,
)
from raysift.policy.settings import LearningSettings, PolicySettings
from raysift.policy.state import Episode
from raysift.storage import Location

if TYPE_CHECKING:
    from raysift.policy.learning import Learner


def learn_rounds(
    folder: Location, setup: EpisodeSetup, learning: LearningSettings, fleet: Fleet, seed: int
) -> Iterator[dict[str, Any]]:
    """Run the rounds that are not finished yet; yields the results of each when it finishes."""
    from raysift.policy.learning import Learner

    here = replace(setup.place, device="cpu")  # of the trainings' devices this process may have none
    learner = Learner(setup.pool, setup.policy, learning, seed)
    done = finished_rounds(folder)
    if done:
        load_learner(done[-1], learner)
        learner.recall([load_episodes(place) for place in done])
    for number in range(len(done) + 1, learning.rounds + 1):
        clock = time.perf_counter()
        draws = exploring(setup.policy, seed, number, learning.episodes)
        begun = folder / f"{round_name(number)}.begun"
        episodes = fleet.run_round(actor_weights(learner), number, draws, begun)
        before_update = time.perf_counter()
        with own_settings(here):
            update = learner.update(episodes, number)
        update_s = time.perf_counter() - before_update
        account = describe_round(number, episodes) | {"update": vars(update), "update_s": round(update_s, 3)}
        account["seconds"] = round(time.perf_counter() - clock, 3)
        save_round(folder / round_name(number), learner, episodes, account)
        begun.delete()
        yield account


def exploring(policy: PolicySettings, seed: int, number: int, episodes: int) -> list[Draw | None]:
    """The draw of each training of a round; None takes the highest scores."""
    if policy.exploration == "none":
        return [None] * episodes
    return [Draw(seed, f"round {number}, training {episode}") for episode in range(episodes)]


def actor_weights(learner: Learner) -> Weights:
    """A copy of the acquisition function's weights, to send to trainings."""
    return {name: value.numpy().copy() for name, value in learner.actor.state_dict().items()}


def describe_round(number: int, episodes: Sequence[Episode]) -> dict[str, Any]:
    """Results of a round: performance, picks and times of its trainings."""
    ends = [float(episode.known_performance[-1]) for episode in episodes]
    reports = [episode.report_end for episode in episodes if episode.report_end is not None]
    parts = {
        name: round(sum(float(np.nansum(e.table[name].to_numpy())) for e in episodes), 3)
        for name in ("choose_s", "train_s", "validate_s")
    }
    return {
        "round": number,
        "start": float(episodes[0].performance[0]),
        "performance": float(np.mean(ends)),
        "report_start": episodes[0].report_start,
        "report": float(np.mean(reports)) if reports else None,
        "distinct_rows": float(np.mean([len(np.unique(np.concatenate(e.picks))) for e in episodes])),
        "picks": float(np.mean([sum(map(len, e.picks)) for e in episodes])),
        "repeated_more_than_3": float(np.mean([_share_repeated(e, 3) for e in episodes])),
        **parts,
    }


def _share_repeated(episode: Episode, times: int) -> float:
    """Share of the picked rows that were picked more than `times` times."""
    _, counts = np.unique(np.concatenate(episode.picks), return_counts=True)
    return float(np.mean(counts > times))

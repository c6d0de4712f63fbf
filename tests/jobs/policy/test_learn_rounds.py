"""Rounds of learning in the driver, which may have none of the trainings' GPUs; a stand-in for the fleet makes no training."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from raysift.actors.effective_batches import Place
from raysift.actors.episode import EpisodeSetup
from raysift.jobs.policy.learning import learn_rounds
from raysift.policy.saved import finished_rounds
from raysift.policy.settings import EpisodeSettings, LearningSettings, PolicySettings
from raysift.settings.training import recipe
from raysift.storage import open_location

from ...tiny_policies import random_log, tiny_pool  # noqa: TID252


class Fleet:
    """Leaves a state as a training would, and gives logs of random batches."""

    def __init__(self, pool):
        self.pool, self.folders = pool, []

    def run_round(self, policy, number, draws, folder):
        self.folders.append(folder.name)
        (folder / "training-0").make_folder()
        assert all(np.isfinite(values).all() for values in policy.values())
        return [random_log(self.pool, 4, 8, seed=number) for _ in draws]


def test_the_driver_needs_no_gpu_and_keeps_no_states_of_finished_rounds(tmp_path):
    pool, empty = tiny_pool(60), pa.table({"id": pa.array([], pa.int64())})
    setup = EpisodeSetup(
        pool=pool,
        rows=empty,
        validation=empty,
        report=empty,
        policy=PolicySettings(hidden=(8,)),
        episode=EpisodeSettings(),
        train=recipe("nano"),
        model="nano",
        steps=4,
        place=Place(device="cuda", threads=1),
    )
    fleet, learning = Fleet(pool), LearningSettings(rounds=2, passes=1)
    found = list(learn_rounds(open_location(tmp_path), setup, learning, fleet, 0))
    assert [account["round"] for account in found] == [1, 2]
    assert fleet.folders == ["round-0001.begun", "round-0002.begun"]
    assert sorted(place.name for place in tmp_path.iterdir()) == ["round-0001", "round-0002"]
    assert len(finished_rounds(open_location(tmp_path))) == 2

"""One training of the model under a policy: pick a batch, take a step, measure, and log it all.

The trainer, the pool and the validation rows are loaded once; each call starts again from the model's own weights. With several
processes, all run the same lines: the first one picks, and all share the passes and the validation of a step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysift.actors.effective_batches import Place
from raysift.actors.peers import ALONE, Peers
from raysift.actors.step_trainer import StepTrainer
from raysift.actors.token_files import TokenFiles
from raysift.actors.validator import Validator
from raysift.errors import StageError
from raysift.policy.drawing import Draw
from raysift.policy.performance import performance
from raysift.policy.pool import PolicyPool, positions
from raysift.policy.settings import EpisodeSettings, PolicySettings
from raysift.policy.state import LOG, Episode, State, stage_inputs
from raysift.settings.training import TrainConfig
from raysift.topk import Ids

if TYPE_CHECKING:
    from raysift.policy.device_picking import DevicePicker
    from raysift.policy.picking import Picker

    Pickers = Picker | DevicePicker

Measure = Callable[[StepTrainer], float]
Weights = Mapping[str, NDArray[Any]]
AfterStep = Callable[[StepTrainer, list[dict[str, Any]]], None]


@dataclass(frozen=True)
class EpisodeSetup:
    """Everything a training needs; the processes of a machine share one copy."""

    pool: PolicyPool
    rows: pa.Table | TokenFiles
    """The pool's rows as tokens (`EncodeRows`), or the files that hold them."""
    validation: pa.Table
    """Rows whose loss gives the performance that the policy sees."""
    report: pa.Table
    """Rows whose loss is reported but never seen by a policy."""
    policy: PolicySettings
    episode: EpisodeSettings
    train: TrainConfig
    model: str
    steps: int
    place: Place
    adapter: str | None = None
    every: int = 100
    """Steps between saved states."""

    def validator(self, rows: pa.Table | None = None, peers: Peers = ALONE) -> Validator:
        """A validator over these rows; default: the validation rows."""
        rows = self.validation if rows is None else rows
        return Validator(rows, self.train, self.model, self.place, peers=peers)


class EpisodeRunner:
    """Trains under any policy for the same pool, alone or as one of several processes; `measure`, if given, replaces validation.

    `on_step` is called after each step.
    """

    def __init__(
        self,
        setup: EpisodeSetup,
        measure: Measure | None = None,
        on_step: Callable[[], None] = lambda: None,
        peers: Peers = ALONE,
    ) -> None:
        self.setup, self.on_step, self.peers = setup, on_step, peers
        self.trainer = StepTrainer(
            setup.rows, setup.train, setup.steps, setup.model, setup.place, adapter=setup.adapter, peers=peers
        )
        self.measure = measure or measure_here(setup.validator(peers=peers))
        self.measure_report = None
        if len(setup.report):
            self.measure_report = measure_here(setup.validator(setup.report, peers))
        # Every training starts from the same weights, so their performance is measured once.
        self.start = self.measure(self.trainer)
        self.report_start = self.measure_report(self.trainer) if self.measure_report else None

    def __call__(self, policy: Weights, number: int, episode: int, draw: Draw | None) -> Episode:
        """A whole training in round `number`; without a draw, the rows with the highest scores are picked."""
        self.trainer.restart()
        return self.train(self.picker(policy), draw, number, episode)

    def picker(self, policy: Weights) -> Pickers | None:
        """A picker that follows the policy with these weights, on the trainer's device; None but in the first process."""
        import torch

        from raysift.policy.network import Acquisition
        from raysift.policy.picking import picker_on

        if self.peers.rank:
            return None
        network = Acquisition(self.setup.pool.features.shape[1], self.setup.policy.hidden, seed=0)
        network.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in policy.items()})
        return picker_on(str(self.trainer.device), self.setup.pool, self.setup.policy, network.eval())

    def train(
        self,
        picker: Pickers | None,
        draw: Draw | None,
        number: int = 0,
        episode: int = 0,
        lines: list[dict[str, Any]] | None = None,
        after_step: AfterStep | None = None,
    ) -> Episode:
        """Train to the end from the trainer's current step; `lines` is the log up to that step."""
        lines = lines or [self._first_line(number, episode)]
        if len(lines) != self.trainer.step_number + 1:
            raise StageError(
                f"episode: the log holds {len(lines) - 1} steps, the trainer stands at {self.trainer.step_number}. "
                "Delete the stage's folder and run it again."
            )
        start = lines[0]["performance"]
        latest = [line["performance"] for line in lines if line["performance"] is not None][-1]
        counts = np.zeros(len(self.setup.pool), np.int32)
        for line in lines[1:]:
            counts[positions(self.setup.pool, line["picks"])] += 1
        for step in range(len(lines), self.setup.steps + 1):
            line = {"round": number, "episode": episode, "step": step}
            clock = time.perf_counter()
            state = State(stage_inputs(start, latest, step, self.setup.steps), counts)
            ids = self.peers.agree(partial(self._pick, picker, state, step, draw))
            line["choose_s"], clock = _lap(clock)
            line["loss"] = self.trainer.step(ids)
            line["train_s"], clock = _lap(clock)
            line["performance"] = None
            if step % self.setup.episode.validate_every == 0 or step == self.setup.steps:
                line["performance"] = latest = self.measure(self.trainer)
            line["validate_s"], _ = _lap(clock)
            line["picks"] = ids.tolist()
            counts[positions(self.setup.pool, ids)] += 1
            lines.append(line)
            self.on_step()
            if after_step:
                after_step(self.trainer, lines)
        report = self.measure_report(self.trainer) if self.measure_report else None
        return Episode(pa.Table.from_pylist(lines, schema=LOG), self.report_start, report)

    def _pick(self, picker: Pickers | None, state: State, step: int, draw: Draw | None) -> Ids:
        assert picker is not None
        return picker.batch(state, self.setup.train.batch_size, step, draw)

    def _first_line(self, number: int, episode: int) -> dict[str, Any]:
        seconds = dict.fromkeys(("choose_s", "train_s", "validate_s"), 0.0)
        line = {"round": number, "episode": episode, "step": 0, "picks": [], "performance": self.start, "loss": None}
        return line | seconds


def measure_here(validator: Validator) -> Measure:
    """Measure the performance of the model being trained where it is trained."""

    def measure(trainer: StepTrainer) -> float:
        return performance(validator.losses(trainer.model))

    return measure


def _lap(clock: float) -> tuple[float, float]:
    now = time.perf_counter()
    return round(now - clock, 6), now

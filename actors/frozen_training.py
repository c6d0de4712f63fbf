"""The training under a finished policy, which can stop and resume at any step.

    FOLDER/state-N/    the trainer's state after N steps (`StepTrainer.save_state`)
    FOLDER/log.parquet the log up to that step, with its number; written last, it makes the state valid

Policy and draws are functions of the log, so only the trainer's state and the log are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysift.actors.episode import EpisodeRunner, Weights
from raysift.actors.step_trainer import StepTrainer
from raysift.policy.drawing import Draw
from raysift.policy.state import LOG, Episode
from raysift.storage import Location

LOG_FILE = "log.parquet"


@dataclass(frozen=True)
class FrozenTraining:
    """Called with an EpisodeRunner, trains once under the unchanged policy and writes `epoch-1/` like any fine-tune."""

    policy: Weights
    draw: Draw | None
    folder: Location
    steps_per_state: int

    def __call__(self, runner: EpisodeRunner) -> Episode:
        runner.trainer.restart()
        lines = self._resume(runner.trainer)
        episode = runner.train(runner.picker(self.policy), self.draw, lines=lines, after_step=self._keep)
        runner.trainer.save_epoch(self.folder)
        return episode

    def _resume(self, trainer: StepTrainer) -> list[dict[str, Any]] | None:
        place = self.folder / LOG_FILE
        if not place.exists():
            return None
        lines: list[dict[str, Any]] = pq.read_table(place.path, filesystem=place.fs).cast(LOG).to_pylist()
        trainer.load_state(self.folder / f"state-{len(lines) - 1}")
        return lines

    def _keep(self, trainer: StepTrainer, lines: list[dict[str, Any]]) -> None:
        step = trainer.step_number
        if step % self.steps_per_state and step < trainer.steps:
            return
        before = self.steps_kept()
        trainer.save_state((self.folder / f"state-{step}").make_folder())
        place = self.folder / LOG_FILE
        buffer = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(lines, schema=LOG), buffer)
        place.write(buffer.getvalue().to_pybytes())
        if before:
            (self.folder / f"state-{before}").delete()

    def steps_kept(self) -> int:
        """Steps after which the training goes on."""
        place = self.folder / LOG_FILE
        if not place.exists():
            return 0
        with place.open_input() as stream:
            return int(pq.read_metadata(stream).num_rows) - 1

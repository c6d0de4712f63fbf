"""Trainings under an unchanged policy that can stop and resume at any step.

    FOLDER/state-N/    the trainer's state after N steps (`StepTrainer.save_state`)
    FOLDER/log.parquet the log up to that step, with its number; written last, it makes the state valid

Policy and draws are functions of the log, so only the trainer's state and the log are kept. The first process writes; all read.
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
class KeptTraining:
    """Called with an EpisodeRunner, trains once; called again after an interruption, trains on from the last saved state."""

    policy: Weights
    draw: Draw | None
    folder: Location | None
    """None keeps no states."""
    steps_per_state: int
    number: int = 0
    """The round."""
    episode: int = 0
    """The training's number in its round."""

    def __call__(self, runner: EpisodeRunner) -> Episode:
        runner.trainer.restart()
        lines = runner.peers.agree(self._read_log)
        if lines:
            runner.trainer.load_state(self._home / f"state-{len(lines) - 1}")
        keep = None if runner.peers.rank or self.folder is None else self._keep
        picker = runner.picker(self.policy)
        return runner.train(picker, self.draw, self.number, self.episode, lines, keep)

    @property
    def _home(self) -> Location:
        assert self.folder is not None
        return self.folder

    def _read_log(self) -> list[dict[str, Any]] | None:
        if not self.steps_kept():
            return None
        place = self._home / LOG_FILE
        lines: list[dict[str, Any]] = pq.read_table(place.path, filesystem=place.fs).cast(LOG).to_pylist()
        return lines

    def _is_due(self, step: int, steps: int) -> bool:
        return step % self.steps_per_state == 0 and step < steps

    def _keep(self, trainer: StepTrainer, lines: list[dict[str, Any]]) -> None:
        step = trainer.step_number
        if not self._is_due(step, trainer.steps):
            return
        before = self.steps_kept()
        trainer.save_state((self._home / f"state-{step}").make_folder())
        place = self._home / LOG_FILE
        buffer = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(lines, schema=LOG), buffer)
        place.write(buffer.getvalue().to_pybytes())
        if before:
            (self._home / f"state-{before}").delete()

    def steps_kept(self) -> int:
        """Steps after which the training goes on."""
        if self.folder is None or not (place := self.folder / LOG_FILE).exists():
            return 0
        with place.open_input() as stream:
            return int(pq.read_metadata(stream).num_rows) - 1


@dataclass(frozen=True)
class FrozenTraining(KeptTraining):
    """The training under the finished policy: its model is kept too, in `epoch-1/` like that of any fine-tune."""

    def __call__(self, runner: EpisodeRunner) -> Episode:
        episode = super().__call__(runner)
        if runner.peers.rank == 0:
            runner.trainer.save_epoch(self._home)
        return episode

    def _is_due(self, step: int, steps: int) -> bool:
        return step % self.steps_per_state == 0 or step == steps

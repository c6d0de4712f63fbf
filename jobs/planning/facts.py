"""What the stages of a plan are computed from, and the shapes of work that stages share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from raysift.config import CommonConfig
from raysift.jobs.planning.pool import PoolSample
from raysift.planning.speed import Speed
from raysift.planning.work import Work
from raysift.settings.budget import parse_budget
from raysift.settings.memory import Need, Shape
from raysift.settings.resources import Resources
from raysift.settings.training import TrainConfig, count_steps

COMPRESSED = 0.45
"""Bytes of rows on disk over those in memory."""
ANSWER_BYTES = 40.0
"""Of a row's id, error and flags in a table of answers."""


@dataclass(frozen=True)
class Seat:
    """The workers of a stage: how many, and what each has."""

    workers: int
    gpus: float
    """Of each."""
    resources: Resources
    at_once: bool = False

    @property
    def device(self) -> str:
        return "gpu" if self.gpus else "cpu"


@dataclass(frozen=True)
class Starts:
    """Seconds that pass before work begins, and the memory of a worker that has loaded nothing."""

    map_s: float
    """Of a stage on a pool of actors that load a tokenizer, from its call to its manifest."""
    process_s: float
    """Of a worker process, for a task."""
    tokenizer_s: float
    libraries_s: float
    """torch, transformers and peft."""
    train_s: float
    """Of a training on Ray Train beyond what its worker loads: its controller, its group, its account."""
    bare: int
    token_s: float
    """Of tokenising, per token."""


Seating = Callable[[str, str, "Need | None"], Seat]
Knowing = Callable[[str], "Shape | None"]


@dataclass(frozen=True)
class Facts:
    """Everything that a plan knows."""

    config: CommonConfig
    pool: PoolSample
    lengths: np.ndarray
    labels: np.ndarray
    speeds: Mapping[str, Speed]
    starts: Starts
    seat: Seating
    shape: Knowing
    members: Sequence[Any] = ()
    subtasks: int = 1
    basis: str = "measured"
    engine: bool = False
    """Whether answers come from vLLM."""
    cores: int = 1
    problems: Mapping[str, str] = field(default_factory=dict)

    def with_config(self, config: CommonConfig) -> Facts:
        """The same pool and machine under other settings."""
        return replace(self, config=config)

    @property
    def rows(self) -> float:
        """Rows of the pool that ingest keeps."""
        return float(self.pool.kept)

    @property
    def budget(self) -> float:
        """Rows that are selected."""
        budget = parse_budget(self.config.budget)
        if budget.counts_tokens:
            return min(self.rows, (budget.tokens or 0) / max(1.0, float(self.lengths.mean())))
        return float(budget.rows_of(self.pool.kept))

    def driver(self, stage: str, rows: float, kept: float, seconds: float = 0.0, written: float = 0.0) -> Work:
        """A stage of the driver alone: it reads and writes tables."""
        return Work(stage, rows, kept, start_s=0.02 + 2e-6 * rows + seconds, written=written, basis=self.basis)

    def files(self, rows: float) -> float:
        """Bytes of so many rows in files."""
        return rows * self.pool.row_bytes * COMPRESSED

    def ingest(self) -> Work:
        """Reading and checking the pool."""
        pool, seat = self.pool, self.seat("reduce", self.config.model, None)
        return Work(
            "ingest",
            pool.rows_in,
            pool.kept,
            start_s=self.starts.process_s,
            worker_s=pool.rows_in * pool.seconds_a_row,
            workers=seat.workers,
            blocks=max(1, pool.bytes >> 26),
            host=self.starts.bare + int(4 * min(pool.bytes, 2**26)),
            written=self.files(pool.kept),
            basis=self.basis,
        )

    def cut(self, train: TrainConfig) -> np.ndarray:
        """Lengths of the sample as this training cuts them."""
        return np.asarray(np.minimum(self.lengths, train.max_length))

    def tokenising(self, stage: str, rows: float, written: float = 0.0) -> Work:
        """A stage of tokenisers."""
        seat = self.seat("tokenise", self.config.model, None)
        tokens = rows * float(self.lengths.mean())
        return Work(
            stage,
            rows,
            rows,
            tokens,
            self.starts.map_s,
            tokens * self.starts.token_s,
            seat.workers,
            self.blocks(rows, seat),
            host=self.speeds["tokenise"].host if "tokenise" in self.speeds else self.starts.bare,
            written=written,
            restart_s=tokens * self.starts.token_s / self.blocks(rows, seat),
            basis=self.basis,
        )

    def map(
        self,
        stage: str,
        part: str,
        rows: float,
        role: str,
        model: str,
        need: Need | None,
        *,
        passes: float = 1.0,
        lengths: np.ndarray | None = None,
        kept: float | None = None,
        row_bytes: float = ANSWER_BYTES,
        more_host: int = 0,
        start_s: float = 0.0,
        basis: str | None = None,
    ) -> Work:
        """A stage whose actors answer each row, `passes` times at the part's speed."""
        speed, seat = self.speeds[part], self.seat(role, model, need)
        each = speed.row_s if lengths is None else speed.seconds(lengths)
        tokens = speed.row_tokens if lengths is None else float(np.mean(lengths))
        work, blocks = rows * passes * each, self.blocks(rows, seat)
        return Work(
            stage,
            rows,
            rows if kept is None else kept,
            rows * passes * tokens,
            self.starts.map_s + self.starts.libraries_s + speed.load_s + start_s,
            work,
            seat.workers,
            blocks,
            seat.at_once,
            seat.gpus * min(seat.workers, blocks),
            seat.device,
            speed.host + more_host,
            speed.gpu if seat.gpus else 0,
            rows * row_bytes,
            work / blocks,
            basis or self.basis,
        )

    def blocks(self, rows: float, seat: Seat) -> int:
        """Blocks of rows, which workers share out."""
        return max(1, -(-int(rows) // seat.resources.block_rows))

    def task(
        self, stage: str, part: str, count: float, passes: float, role: str, need: Need | None, written: float
    ) -> Work:
        """A stage of one task, which loads the model itself."""
        speed, seat, starts = self.speeds[part], self.seat(role, self.config.model, need), self.starts
        work = count * passes * speed.row_s + speed.once_s
        return Work(
            stage,
            count,
            count,
            0.0,
            starts.process_s + starts.tokenizer_s + starts.libraries_s + speed.load_s,
            work,
            gpus=seat.gpus,
            device=seat.device,
            host=speed.host,
            gpu=speed.gpu if seat.gpus else 0,
            written=written,
            restart_s=work,
            basis=self.basis,
        )

    def train(self, stage: str, rows: float, train: TrainConfig, part: str, need: Need | None) -> Work:
        """A fine-tune on so many rows."""
        speed, seat = self.speeds[part], self.seat("train", self.config.model, need)
        per_epoch, steps = count_steps(train, max(1, round(rows)))
        epochs = steps / per_epoch
        lengths, ranks = self.cut(train), max(1, seat.workers)
        reading = rows * epochs * speed.seconds(lengths) / ranks
        work = reading + steps * speed.step_s + epochs * speed.ends
        here = seat.workers == 0
        outside = 0.0 if here else self.starts.map_s + self.starts.train_s
        return Work(
            stage,
            rows,
            rows,
            rows * epochs * float(lengths.mean()),
            outside + self.starts.libraries_s + speed.load_s,
            work,
            gpus=seat.gpus * ranks,
            device=seat.device,
            host=speed.host,
            gpu=speed.gpu if seat.gpus else 0,
            written=epochs * self.checkpoint_bytes(train),
            restart_s=work / max(1.0, epochs),
            basis=self.basis,
        )

    def checkpoint_bytes(self, train: TrainConfig) -> float:
        """Bytes of an epoch's weights and moments."""
        shape = self.shape(self.config.model)
        if shape is None:
            return 0.0
        whole = train.method == "full"
        return 12.0 * (shape.parameters if whole else shape.adapter(train.lora_rank, train.lora_targets))

    def after(self) -> list[Work]:
        """The training on the selection and its test, if they were asked for."""
        config, found = self.config, []
        if config.train_on_selection:
            found.append(self.train("final", self.budget, config.train, "train", None))
        return found

"""Fine-tune a language model on rows, on Ray Train or in this process, and leave one checkpoint per epoch.

    OUT/epoch-1/adapter/, moments.safetensors, epoch.json      (`model/` for a full fine-tune)
    OUT/untrained.parquet                                      rows that hold nothing to learn, with the reason
    OUT/train.json                                             config, counts, epochs, speed; written last

With `resources.train=0` everything runs in the calling process, which may be a Ray task. Otherwise Ray Data
tokenises the rows and Ray Train starts the workers, which all read every row (`get_dataset_shard`, not split) and share
out each effective batch themselves. Elastic training changes the number of passes, not the batch.

Resuming does not use Ray: a restarted worker group or driver looks into OUT for the last whole checkpoint. OUT belongs to
one training alone: the caller names it by everything that decides the result, as `Run.stage` does. Ray registers a reported
checkpoint up to seconds late and resumes silently by run name, so it only gets a small record for its dashboard, under a
new name for each attempt.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from raysift.actors.effective_batches import (
    Place,
)
from raysift.actors.language_model import SPREAD, portable_name
from raysift.actors.train_checkpoints import EpochRecord, delete_steps, epoch_records
from raysift.errors import StageError
from raysift.jobs.runs.progress import Showing, silent
from raysift.jobs.training.sharding import ranks_of
from raysift.jobs.training.ways import train_here, train_in_a_task, train_on_ray
from raysift.nano import is_nano
from raysift.settings.cluster import Cluster
from raysift.settings.hardware import local_gpus
from raysift.settings.resources import Resources
from raysift.settings.roles import TRAIN
from raysift.settings.training import TrainConfig, count_steps, settle_training
from raysift.storage import Location, open_location

log = logging.getLogger(__name__)

REPORT = "train.json"


class FinetuneReport(BaseModel):
    """The account of a fine-tune; `train.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: TrainConfig
    model: str
    counts: dict[str, int]
    """Rows in, trained and left out by reason; of the trained rows, those truncated or with a doubled special token."""
    tokens: int
    """Tokens of the trained rows, read once an epoch; padding is not counted."""
    steps_per_epoch: int
    steps: int
    epochs: list[EpochRecord]
    seconds: float
    """Time in steps and checkpoints, over all attempts that count, without loading and encoding."""
    tokens_per_second: float
    workers: int
    path: str


def finetune(
    rows: Sequence[Location],
    out: Location | str,
    config: TrainConfig,
    model: str,
    resources: Resources | None = None,
    *,
    adapter: str | Location | None = None,
    gradient_checkpointing: bool = False,
    steps_per_checkpoint: int = 1000,
    trust_remote_code: bool = False,
    callbacks: Sequence[Any] = (),
    progress: Showing = silent,
) -> FinetuneReport:
    """Train `model` on Parquet files of rows (raysift.records.ROWS), continuing what an earlier attempt left in `out`.

    `adapter` is a folder to start from instead of a new adapter (or, for a full fine-tune, a folder of weights).
    `callbacks` are transformers' TrainerCallbacks, called on every worker.
    """
    resources, out = resources or Resources(), open_location(out)
    if resources.role != TRAIN:
        resources = _placed(resources, model)
    on_gpu = resources.on_gpu
    config = settle_training(config, lambda: on_gpu)
    if not rows:
        raise StageError("finetune: no files of rows; the stage before this one kept none.")
    if (out / REPORT).exists():
        return FinetuneReport.model_validate_json((out / REPORT).read_bytes())
    if resources.device == SPREAD:
        # One worker holds all GPUs of its machine, whose layers compute one after the other.
        resources = resources.model_copy(update={"workers": min(1, resources.workers or 0)})
    place = Place(
        device=resources.placed_on,
        threads=resources.threads,
        rows_per_pass=resources.batch_rows,
        tokens_per_pass=resources.tokens,
        gradient_checkpointing=gradient_checkpointing,
        steps_per_checkpoint=steps_per_checkpoint,
        trust_remote_code=trust_remote_code,
        sharded=ranks_of(config, model, resources, trust_remote_code) > 1,
    )
    job = {
        "out": out,
        "config": config,
        "model": portable_name(model),  # Ray Train's workers run in folders of their own
        "place": place,
        "adapter": portable_name(adapter) if isinstance(adapter, str) else adapter,
        "callbacks": list(callbacks),
    }
    if resources.workers == 0:
        account = train_here(rows, job, progress)
    elif resources.device == SPREAD:
        account = train_in_a_task(rows, job, resources, progress)
    else:
        account = train_on_ray(rows, job, resources, progress)
    return _finish(out, config, model, account, resources)


def _placed(resources: Resources, model: str) -> Resources:
    """The resources of a training; one in this process has what the process sees."""
    if resources.asked.train.workers == 0:
        return resources.of(TRAIN, Cluster(most_gpus=local_gpus()), is_nano(model))
    from raysift.jobs.cluster.machines import of_role
    from raysift.jobs.cluster.starting import start_ray

    start_ray()
    return of_role(resources, TRAIN, model)


def _finish(
    out: Location, config: TrainConfig, model: str, counts: dict[str, int], resources: Resources
) -> FinetuneReport:
    per_epoch, steps = count_steps(config, counts["rows_trained"])
    epochs = epoch_records(out)
    if not epochs or epochs[-1].step != steps:
        raise StageError(f"finetune: {out} ends at step {epochs[-1].step if epochs else 0} of {steps}; run it again.")
    delete_steps(out)
    seconds = sum(record.seconds for record in epochs)
    tokens = round(counts["tokens"] * steps / per_epoch)
    report = FinetuneReport(
        config=config,
        model=model,
        counts={key: count for key, count in counts.items() if key != "tokens"},
        tokens=counts["tokens"],
        steps_per_epoch=per_epoch,
        steps=steps,
        epochs=epochs,
        seconds=round(seconds, 3),
        tokens_per_second=round(tokens / max(seconds, 1e-9), 1),
        workers=resources.workers or 0,
        path=str(out),
    )
    (out / REPORT).write(report.model_dump_json(indent=2) + "\n")
    return report

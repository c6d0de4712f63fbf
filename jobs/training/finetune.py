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
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from raysift.actors.effective_batches import (
    COUNTED,
    DOUBLED,
    INPUT_IDS,
    TRUNCATED,
    UNTRAINED,
    EncodeRows,
    Place,
    split_trainable,
    tokens_read,
)
from raysift.actors.language_model import SPREAD, portable_name
from raysift.actors.train_checkpoints import EPOCH_RECORD, EpochRecord, delete_steps, epoch_records
from raysift.errors import RaysiftError, StageError
from raysift.jobs.runs.progress import Bar, Showing, silent
from raysift.jobs.runs.tables import columns_of
from raysift.jobs.training.sharding import ranks_of
from raysift.nano import is_nano
from raysift.records import ERROR, ID, REASON
from raysift.settings.cluster import Cluster
from raysift.settings.hardware import local_gpus
from raysift.settings.resources import Resources
from raysift.settings.roles import TRAIN
from raysift.settings.training import TrainConfig, count_steps, settle_training
from raysift.storage import Location, open_location

log = logging.getLogger(__name__)

REPORT, UNTRAINED_FILE = "train.json", "untrained.parquet"
ENCODED_COLUMNS = [ID, INPUT_IDS, COUNTED, TRUNCATED, DOUBLED, ERROR]


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
        account = _train_here(rows, job, progress)
    elif resources.device == SPREAD:
        account = _train_in_a_task(rows, job, resources, progress)
    else:
        account = _train_on_ray(rows, job, resources, progress)
    return _finish(out, config, model, account, resources)


def _placed(resources: Resources, model: str) -> Resources:
    """The resources of a training; one in this process has what the process sees."""
    if resources.asked.train.workers == 0:
        return resources.of(TRAIN, Cluster(most_gpus=local_gpus()), is_nano(model))
    from raysift.jobs.on_ray.cluster import of_role
    from raysift.jobs.on_ray.raydata import start_ray

    start_ray()
    return of_role(resources, TRAIN, model)


# --- in this process, and on Ray Train -------------------------------------------------------------------------------


def _train_here(rows: Sequence[Location], job: dict[str, Any], progress: Showing) -> dict[str, int]:
    from raysift.actors.trainee import train

    encode = _encoder(job)
    columns = columns_of(rows, EncodeRows, {"template": job["config"].template})
    encoded = [encode(_read(file, columns)) for file in rows]
    account = _Account(job["out"])
    trainable = pa.concat_tables([account.add(table) for table in encoded])
    account.close()
    with progress(count_steps(job["config"], len(trainable))[1], "steps") as bar:
        train(trainable, **job, on_step=lambda step, steps, loss: bar.update(step, steps, _loss_words(loss)))
    return account.counts


def _train_in_a_task(
    rows: Sequence[Location], job: dict[str, Any], resources: Resources, progress: Showing
) -> dict[str, int]:
    """One Ray task that is granted several GPUs; Ray Train would take each of its workers for a rank of one GPU."""
    import ray

    from raysift.jobs.on_ray.counts import counted
    from raysift.jobs.on_ray.peaks import telling

    asked = {"num_cpus": resources.cpus, "num_gpus": resources.gpus_per_worker or 0, "max_retries": resources.restarts}
    asked |= {"memory": resources.memory} if resources.memory else {}
    with progress(None, "steps") as bar, counted(bar) as counts:
        # A lost process starts again and continues from its checkpoint; an error of ours would only come again.
        task = ray.remote(**asked)(telling(_train_as_task)).remote(rows, job, counts)
        try:
            return dict(ray.get(task))
        except Exception as error:
            raise _given_up(job["out"], resources, error) from error


def _train_as_task(rows: Sequence[Location], job: dict[str, Any], counts: Any) -> dict[str, int]:
    from raysift.jobs.on_ray.counts import Count

    count = Count(counts, "rank 0") if counts else None

    class Told(Bar):
        """Sends its steps to the driver."""

        def update(self, done: int, total: int | None = None, words: str = "", tokens: int = 0) -> None:
            if count:
                count.set(done, total, words)

    told = Told("nowhere", "", None, "steps", lambda told, words: None)
    return _train_here(rows, job, lambda total, unit="rows": told)


def _loss_words(loss: float) -> str:
    return f"loss {loss:.3f}"


def _train_on_ray(
    rows: Sequence[Location], job: dict[str, Any], resources: Resources, progress: Showing
) -> dict[str, int]:
    from ray.train import CheckpointConfig, DataConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from raysift.jobs.on_ray.cluster import cluster_cpus, of_role, present_workers
    from raysift.jobs.on_ray.counts import counted
    from raysift.jobs.on_ray.peaks import peaks_name
    from raysift.jobs.on_ray.raydata import data_context, map_rows, read_rows

    out, place = job["out"], job["place"]
    arguments = {
        "model": job["model"],
        "template": job["config"].template,
        "max_length": job["config"].max_length,
        "trust_remote_code": place.trust_remote_code,
    }
    tokenisers = of_role(resources, "tokenise", job["model"])
    encoded = map_rows(rows, EncodeRows, arguments, out / "encoded", tokenisers, progress=progress)
    account = _Account(out)
    for file in encoded:
        account.add(_read(file, ENCODED_COLUMNS))
    account.close()

    workers = resources.workers or 1
    least = resources.asked.train.least or min(workers, present_workers(resources))
    # Workers hold their CPUs all the time; the remaining CPUs read data for them.
    cpus = min(resources.cpus, max(0.01, round((cluster_cpus() - 1) / workers, 2)))
    asked = {"CPU": cpus} | ({"GPU": resources.gpus_per_worker} if resources.gpus_per_worker else {})
    asked |= {"memory": resources.memory} if resources.memory else {}
    ray_home = (out / "ray").make_folder()
    steps = count_steps(job["config"], account.counts["rows_trained"])[1]
    with data_context(resources), progress(steps, "steps") as bar, counted(bar) as counts:
        bar.tokens_each = account.counts["tokens"] * job["config"].batch_size / account.counts["rows_trained"]
        trainer = TorchTrainer(
            _train_as_worker,
            train_loop_config=job | {"counts": counts, "peaks": peaks_name()},
            scaling_config=ScalingConfig(
                num_workers=(least, workers) if least < workers else workers,
                use_gpu=bool(resources.gpus_per_worker),
                resources_per_worker=asked,
            ),
            torch_config=TorchConfig(backend="nccl" if resources.gpus_per_worker else "gloo"),
            run_config=RunConfig(
                name=f"finetune-{uuid.uuid4().hex}",
                storage_path=ray_home.path,
                storage_filesystem=ray_home.fs,
                failure_config=FailureConfig(max_failures=resources.restarts),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
            ),
            # Read before the workers take the CPUs that reading needs, and only once for all workers and restarts.
            datasets={"train": read_rows(encoded, ENCODED_COLUMNS, resources).materialize()},
            dataset_config=DataConfig(datasets_to_split=[]),
        )
        try:
            trainer.fit()
        except Exception as error:
            raise _given_up(out, resources, error) from error
    ray_home.delete()
    (out / "encoded").delete()
    return account.counts


def _train_as_worker(job: dict[str, Any]) -> None:
    """The training loop that each Ray Train worker runs."""
    from ray import train as ray_train

    from raysift.actors.trainee import train
    from raysift.jobs.on_ray.counts import Count
    from raysift.jobs.on_ray.peaks import own_peak, tell

    count = Count(job["counts"], "rank 0") if job["counts"] else None
    peaks = job["peaks"]
    own_peak(peaks)
    job = {name: value for name, value in job.items() if name not in ("counts", "peaks")}
    context = ray_train.get_context()
    place = replace(job["place"], rank=context.get_world_rank(), world_size=context.get_world_size())
    blocks = ray_train.get_dataset_shard("train").iter_batches(batch_size=None, batch_format="pyarrow")
    trainable, _ = split_trainable(pa.concat_tables(list(blocks)))

    def report(record: EpochRecord) -> None:
        """All ranks call this; only rank 0 has something to show."""
        tell(peaks)
        if place.rank:
            ray_train.report(record.model_dump())
            return
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / EPOCH_RECORD).write_text(record.model_dump_json())
            ray_train.report(record.model_dump(), checkpoint=ray_train.Checkpoint.from_directory(folder))

    def on_step(step: int, steps: int, loss: float) -> None:
        tell(peaks)
        if count:
            count.set(step, steps, _loss_words(loss))

    train(trainable, **(job | {"place": place}), on_epoch=report, on_step=on_step)
    tell(peaks, 0 if place.rank else tokens_read(job["config"], trainable))


def _given_up(out: Location, resources: Resources, error: BaseException) -> StageError:
    return StageError(
        f"finetune: training failed, or its workers were lost more than {resources.restarts} times (resources.restarts): "
        f"{_cause(error)} Finished epochs are in {out}; the same command continues from the last one."
    )


def _cause(error: BaseException) -> str:
    """The first of our own error messages among the workers' failures, or else Ray's message."""
    failures = getattr(error, "worker_failures", None) or {}
    for failure in [*failures.values(), error]:
        cause: BaseException | None = failure
        while cause is not None:
            inner = getattr(cause, "cause", None)
            # An error of ours from a task is of our class as well, with the whole trace as its text.
            if isinstance(cause, RaysiftError) and not isinstance(inner, RaysiftError):
                return str(cause)
            cause = inner or cause.__cause__
    return f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error).strip() else 'no message'}"


# --- what goes in and what comes out ---------------------------------------------------------------------------------


class _Account:
    """Counts rows as they pass, and writes those that cannot be trained on."""

    def __init__(self, out: Location) -> None:
        self.out = out
        self.counts = {"rows_in": 0, "rows_trained": 0, "rows_truncated": 0, "rows_doubled_special": 0, "tokens": 0}
        self.untrained: list[pa.Table] = []

    def add(self, encoded: pa.Table) -> pa.Table:
        """The trainable rows of the table."""
        trainable, untrained = split_trainable(encoded)
        self.untrained.append(untrained)
        for reason in untrained[REASON].to_pylist():
            key = "rows_" + reason.replace("-", "_")
            self.counts[key] = self.counts.get(key, 0) + 1
        self.counts["rows_in"] += len(encoded)
        self.counts["rows_trained"] += len(trainable)
        self.counts["rows_truncated"] += pc.sum(trainable[TRUNCATED]).as_py() or 0
        self.counts["rows_doubled_special"] += pc.sum(trainable[DOUBLED]).as_py() or 0
        self.counts["tokens"] += pc.sum(pc.list_value_length(trainable[INPUT_IDS])).as_py() or 0
        return trainable

    def close(self) -> None:
        """Write the rows left out, warn, and refuse to train on nothing."""
        untrained = pa.concat_tables(self.untrained) if self.untrained else UNTRAINED.empty_table()
        sink = pa.BufferOutputStream()
        pq.write_table(untrained.sort_by(ID), sink)
        (self.out / UNTRAINED_FILE).write(sink.getvalue().to_pybytes())
        counts = self.counts
        if not counts["rows_trained"]:
            reasons = {key: n for key, n in counts.items() if key not in ("rows_in", "tokens") and n}
            raise StageError(
                f"finetune: none of {counts['rows_in']} rows can be trained on ({reasons}); see "
                f"{self.out / UNTRAINED_FILE}. Raise max_length or name another template."
            )
        for key in ("rows_truncated", "rows_doubled_special", "rows_no_label_tokens", "rows_failed"):
            if counts.get(key):
                log.warning("finetune: %d of %d rows: %s", counts[key], counts["rows_in"], key.removeprefix("rows_"))


def _encoder(job: dict[str, Any]) -> EncodeRows:
    config = job["config"]
    return EncodeRows(job["model"], config.template, config.max_length, job["place"].trust_remote_code)


def _read(file: Location, columns: list[str]) -> pa.Table:
    with file.open_input() as stream:
        return pq.read_table(stream, columns=columns)


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

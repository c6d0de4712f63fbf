"""The three ways to train: in this process, in one Ray task that holds several GPUs, and on the workers of Ray Train."""

from __future__ import annotations

import logging
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from raysift.actors.effective_batches import (
    COUNTED,
    DOUBLED,
    INPUT_IDS,
    TRUNCATED,
    EncodeRows,
    split_trainable,
    tokens_read,
)
from raysift.actors.train_checkpoints import EPOCH_RECORD, EpochRecord
from raysift.errors import RaysiftError, StageError
from raysift.jobs.runs.progress import Bar, Showing
from raysift.jobs.runs.tables import columns_of
from raysift.jobs.training.account import Account, encoder_of, read_columns
from raysift.records import ERROR, ID
from raysift.settings.resources import Resources
from raysift.settings.training import count_steps
from raysift.storage import Location

log = logging.getLogger(__name__)

START_S = 60.0  # after which Ray Train tries again to start workers
NOT_STARTED = "WorkerGroupStartupTimeoutError"
ENCODED_COLUMNS = [ID, INPUT_IDS, COUNTED, TRUNCATED, DOUBLED, ERROR]


def train_here(rows: Sequence[Location], job: dict[str, Any], progress: Showing) -> dict[str, int]:
    from raysift.actors.trainee import train

    encode = encoder_of(job)
    columns = columns_of(rows, EncodeRows, {"template": job["config"].template})
    encoded = [encode(read_columns(file, columns)) for file in rows]
    account = Account(job["out"])
    trainable = pa.concat_tables([account.add(table) for table in encoded])
    account.close()
    with progress(count_steps(job["config"], len(trainable))[1], "steps") as bar:
        train(trainable, **job, on_step=lambda step, steps, loss: bar.update(step, steps, _loss_words(loss)))
    return account.counts


def train_in_a_task(
    rows: Sequence[Location], job: dict[str, Any], resources: Resources, progress: Showing
) -> dict[str, int]:
    """One Ray task that is granted several GPUs; Ray Train would take each of its workers for a rank of one GPU."""
    import ray

    from raysift.jobs.cluster.machines import room_for_one
    from raysift.jobs.on_ray.counts import counted
    from raysift.jobs.on_ray.peaks import telling

    with (
        progress(None, "steps") as bar,
        counted(bar) as counts,
        room_for_one("finetune", resources, bar.note) as placed,
    ):
        # A lost process starts again and continues from its checkpoint; an error of ours would only come again.
        task = ray.remote(**placed, max_retries=resources.restarts)(telling(_train_as_task))
        try:
            return dict(ray.get(task.remote(rows, job, counts)))
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
    return train_here(rows, job, lambda total, unit="rows": told)


def train_on_ray(
    rows: Sequence[Location], job: dict[str, Any], resources: Resources, progress: Showing
) -> dict[str, int]:
    from ray.train import CheckpointConfig, DataConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from raysift.jobs.cluster.machines import cluster_cpus, of_role, present_workers
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
    account = Account(out)
    for file in encoded:
        account.add(read_columns(file, ENCODED_COLUMNS))
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
                # Ray Train would try for ever to start workers whose room others hold.
                failure_config=FailureConfig(
                    max_failures=resources.restarts, controller_failure_limit=int(resources.wait_s / START_S)
                ),
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
    if type(getattr(error, "controller_failure", None)).__name__ == NOT_STARTED:
        return StageError(
            f"finetune: {resources.workers} workers found no room for {resources.wait_s} s (resources.wait_s); other work holds "
            "the machines. Start again when it is done, or ask for fewer (resources.train). The same command continues."
        )
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


def _loss_words(loss: float) -> str:
    return f"loss {loss:.3f}"

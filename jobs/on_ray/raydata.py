"""The one module that knows Ray Data's knobs: pools, re-blocking, checkpoints by id, limits.

What it works around, in Ray 2.60:
- a fixed actor pool as large as the cluster starves the reader for ever: pools start at one actor and grow;
- the checkpoint filter is one more actor that holds a whole CPU: reading and writing ask for a quarter, and our actors
  share what is left, or a resumed stage on two CPUs would wait for ever;
- the newer Parquet reader merges small files into one block, which would be one task, and lists files in a task of its
  own: the older reader is used, and every read is re-blocked at once;
- `write_parquet` leaves files of killed attempts behind: rows are checkpointed by id (`ray.data.checkpoint`, beta,
  named only here), and on top of that a stage's manifest names the files that count;
- settings live on a copy of the `DataContext`, so that a host pipeline's own are not touched.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset

from raysift import errors
from raysift.actors.contract import RowActor
from raysift.errors import ConfigError, StageError, find_cause
from raysift.jobs.runs.tables import columns_of
from raysift.records import ID
from raysift.settings.resources import Resources
from raysift.storage import Location

log = logging.getLogger(__name__)

BLOCKS_PER_WORKER = 4
HEAD_TIMEOUT_S = 10.0
FILTER_CPUS = 1.0  # what Ray's checkpoint filter books
IO_CPUS = 0.25  # what our readers and writers book

_TELLERS = ("ray.data.exceptions", "ray.data._internal.execution.streaming_executor_state")
_OF_OUR_ACTORS = ("Exception occurred in user code", "An exception was raised from a task of operator")


def start_ray(**options: Any) -> bool:
    """Join the running Ray (or the cluster of RAY_ADDRESS), or start a local one; True when this call started it.

    Whoever gets True owns the session and may shut it down; a host's session is never shut down by us.
    """
    if ray.is_initialized():
        return False
    # A fresh Ray turns token authentication on by itself; say so explicitly, one way or the other. A session that we
    # start listens on loopback only.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    address = os.environ.get("RAY_ADDRESS", "local")
    if address == "local":
        settings["include_dashboard"] = False
    _require_head(address)
    try:
        ray.init(**(settings | options))
    except ConnectionError as error:
        raise ConfigError(
            f"ray: the cluster at RAY_ADDRESS={address} refuses this client (RAY_AUTH_MODE={os.environ['RAY_AUTH_MODE']}). If it "
            f"asks for tokens, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH. Ray says: {error}"
        ) from None
    level = max(logging.WARNING, logging.getLogger().level)
    for library in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(library).setLevel(level)  # Ray Data sets its own at import
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # tells that we switched its bars off
    return True


def _require_head(address: str) -> None:
    """Refuses HOST:PORT where nothing listens: Ray tries for minutes, without a word."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=HEAD_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"ray: nothing answers at RAY_ADDRESS={address}: {error}. Start the cluster, correct the address, or unset "
            "RAY_ADDRESS to run on this machine."
        ) from None


@contextlib.contextmanager
def data_context(resources: Resources, progress: bool = False) -> Iterator[DataContext]:
    """A copy of Ray Data's settings with ours on it, in force inside the block."""
    context = DataContext.get_current().copy()
    context.enable_progress_bars = progress
    context.print_on_execution_start = False
    context.max_errored_blocks = 0  # a lost block would be lost rows; failures of rows are data instead
    context.execution_no_progress_timeout_s = resources.no_progress_timeout_s
    context.use_datasource_v2 = False
    context.issue_detectors_config.detectors = []  # they advise on the code of a pipeline, which is ours
    with DataContext.current(context), _said_once(), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "The minimum number of concurrent actors"
        )  # a resumed stage may lack rows for them
        yield context


@contextlib.contextmanager
def _said_once() -> Iterator[None]:
    """Keeps off the screen what Ray Data says of an error in our actors, with advice on its settings, before it raises it.

    Its log file has all of it; errors of Ray itself come with their traceback as before.
    """

    def mark(record: logging.LogRecord) -> bool:
        said = record.getMessage()
        if not record.exc_info and said.startswith(_OF_OUR_ACTORS):
            record.hide = True  # Ray Data's own mark for its console
        return True

    loggers = [logging.getLogger(name) for name in _TELLERS]
    for logger in loggers:
        logger.addFilter(mark)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(mark)


def cluster_cpus() -> float:
    """CPUs of the whole cluster."""
    return float(ray.cluster_resources().get("CPU", 1.0))


def pool_size(resources: Resources) -> int:
    """Most actors a stage may have: what was asked for, or as many as the cluster's CPUs or GPUs carry."""
    if resources.gpus_per_worker:
        gpus = float(ray.cluster_resources().get("GPU", 0.0))
        room = int(gpus / resources.gpus_per_worker)
        if room < 1:
            raise StageError(
                f"resources: a worker asks for {resources.gpus_per_worker} GPU, the cluster has {gpus:g}. "
                "Set resources.gpus_per_worker=0 to run on CPUs."
            )
    else:
        room = max(1, int(cluster_cpus() / resources.cpus_per_worker))
        _tell_idle(float(ray.cluster_resources().get("GPU", 0.0)), resources.placed_on)
    return min(resources.workers or room, room)


def spread(resources: Resources, count: int) -> Resources:
    """Cuts small test sets into smaller blocks, so that every worker gets some."""
    share = -(-count // (BLOCKS_PER_WORKER * pool_size(resources)))
    return resources.model_copy(update={"block_rows": min(resources.block_rows, max(resources.batch_rows, share))})


@functools.cache
def _tell_idle(gpus: float, device: str) -> None:
    """Say once that there are GPUs which nobody asked for."""
    if gpus and device == "cpu":
        log.warning(
            "the cluster has %g GPUs, and workers run on CPUs; resources.gpus_per_worker=1 gives each a GPU", gpus
        )


def actor_cpus(resources: Resources) -> float:
    """CPUs an actor books: what was asked for, or its share of what filter, reader and writer leave."""
    left = cluster_cpus() - FILTER_CPUS - 2 * IO_CPUS
    return min(resources.cpus_per_worker, max(0.01, round(left / pool_size(resources), 2)))


def read_rows(files: Sequence[Location], columns: Sequence[str] | None, resources: Resources) -> Dataset:
    """Parquet files as a dataset of blocks of `block_rows`, whatever sizes the files have."""
    if not files:
        raise StageError("read: no files to read; the stage before this one kept no rows.")
    dataset = ray.data.read_parquet(
        [file.path for file in files],
        filesystem=files[0].fs,
        columns=list(columns) if columns else None,
        num_cpus=IO_CPUS,
    )
    return dataset.repartition(target_num_rows_per_block=resources.block_rows)


def map_rows(
    files: Sequence[Location],
    actor: type[RowActor],
    arguments: dict[str, Any],
    out: Location,
    resources: Resources,
    *,
    progress: bool = False,
) -> list[Location]:
    """Let a pool of actors answer every row of `files` and write the answers, keyed by id, below `out`.

    Rows already answered by an earlier, killed attempt are not computed again: `out/done` holds their ids. Each id must
    occur once in `files`. Returns the Parquet files of answers.
    """

    def answer(dataset: Dataset) -> Dataset:
        return dataset.map_batches(
            refusing_later(actor),
            fn_constructor_kwargs=arguments,
            batch_format="pyarrow",
            batch_size=resources.batch_rows,
            compute=ActorPoolStrategy(min_size=1, max_size=pool_size(resources)),
            num_cpus=actor_cpus(resources),
            num_gpus=resources.gpus_per_worker or None,
            zero_copy_batch=True,
        )

    return answer_rows(files, columns_of(files, actor, arguments), answer, out, resources, progress=progress)


def refusing_later(actor: type[RowActor]) -> type[RowActor]:
    """The actor, but what its constructor refuses is raised by its first batch.

    Ray prints an error of a constructor with three tracebacks, on standard output too, and keeps no more of it than its text.
    Errors that are not ours stay where they are.
    """

    class _RefusingLater(actor):  # type: ignore[misc, valid-type]
        def __init__(self, *given: Any, **named: Any) -> None:
            self._refused: errors.RaysiftError | None = None
            try:
                super().__init__(*given, **named)
            except errors.RaysiftError as error:
                self._refused = error

        def __call__(self, batch: Any) -> Any:
            if self._refused is not None:
                raise self._refused
            return super().__call__(batch)

    _RefusingLater.__name__ = actor.__name__
    return _RefusingLater


def answer_rows(
    files: Sequence[Location],
    columns: Sequence[str],
    answer: Callable[[Dataset], Dataset],
    out: Location,
    resources: Resources,
    *,
    progress: bool = False,
) -> list[Location]:
    """Let `answer` turn the rows of `files` into as many rows with the same ids, and write those below `out`.

    `map_rows` says what is promised; `answer` must not sort, group, limit or drop rows, or resuming would lose some.
    """
    from ray.data.checkpoint import CheckpointConfig

    answers, done = (out / "answers").make_folder(), (out / "done").make_folder()
    with data_context(resources, progress) as context:
        context.checkpoint_config = CheckpointConfig(
            id_column=ID,
            checkpoint_path=done.path,
            delete_checkpoint_on_success=False,
            override_filesystem=done.fs,
        )
        context.checkpoint_config.checkpoint_actor_pool_max_size = 1
        dataset = answer(read_rows(files, columns, resources))
        try:
            dataset.write_parquet(answers.path, filesystem=answers.fs, ray_remote_args={"num_cpus": IO_CPUS})
        except Exception as error:
            raise find_cause(error) or _named_in(error) or error from None
    return answers.files(".parquet")


def _named_in(error: Exception) -> errors.RaysiftError | None:
    """The raysift error that an actor raised, where Ray has kept no more of it than its text."""
    found = re.findall(r"raysift\.errors\.(\w+): (.+)", str(error))
    kind = getattr(errors, found[-1][0], None) if found else None
    return kind(found[-1][1]) if kind else None

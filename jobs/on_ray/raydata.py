"""The one module that knows Ray Data's knobs: pools, re-blocking, checkpoints by id, limits.

Workarounds for Ray 2.60:
- A fixed actor pool as large as the cluster starves the reader for ever, so pools on CPUs start at one actor and grow.
- The checkpoint filter is one more actor that holds a whole CPU. Reading and writing ask for a quarter CPU each, and
  our actors share the rest; otherwise a resumed stage on two CPUs would wait for ever.
- The newer Parquet reader merges small files into one block, hence one task, and lists files in a separate task. The
  older reader is used instead, and every read is re-blocked at once.
- `write_parquet` leaves files of killed attempts behind. Rows are checkpointed by id (`ray.data.checkpoint`, beta,
  named only here), and a stage's manifest also names the files that count.
- Settings are made on a copy of the `DataContext`, so those of a host pipeline are not touched.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset

from raysift import errors
from raysift.actors.contract import RowActor
from raysift.errors import StageError, find_cause
from raysift.jobs.cluster.machines import IO_CPUS, actor_cpus, first_workers, pool_size
from raysift.jobs.cluster.starting import TOLD_FROM
from raysift.jobs.on_ray.counts import counted
from raysift.jobs.on_ray.lives import Watch, watched, watching
from raysift.jobs.runs.progress import Showing, silent
from raysift.jobs.runs.tables import columns_of, count_rows
from raysift.records import ID
from raysift.settings.resources import Resources
from raysift.storage import Location

log = logging.getLogger(__name__)


_TELLERS = ("ray.data.exceptions", "ray.data._internal.execution.streaming_executor_state")
_OF_OUR_ACTORS = ("Exception occurred in user code", "An exception was raised from a task of operator")


@contextlib.contextmanager
def data_context(resources: Resources) -> Iterator[DataContext]:
    """Inside the block, a copy of Ray Data's settings with our changes is in force."""
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False  # they print four lines for each stage; see `counts` for ours
    context.print_on_execution_start = False
    context.max_errored_blocks = 0  # a lost block would lose rows; row failures are recorded as data
    context.execution_no_progress_timeout_s = resources.no_progress_timeout_s
    context.use_datasource_v2 = False
    context.issue_detectors_config.detectors = []  # they advise on the pipeline's code, which is ours
    with DataContext.current(context), _said_once(), _quieter(), warnings.catch_warnings():
        # A resumed stage may have too few rows for that many actors; restarts have no other name before Ray 2.64.
        warnings.filterwarnings("ignore", "The minimum number of concurrent actors")
        warnings.filterwarnings("ignore", ".ray_remote_args. is deprecated")
        yield context


@contextlib.contextmanager
def _quieter() -> Iterator[None]:
    """Hides what Ray Data says of every execution, in a host's session too, whose own level is back afterwards."""
    levels = {logging.getLogger(name): level for name, level in TOLD_FROM.items()}
    before = {logger: logger.level for logger in levels}
    for logger, level in levels.items():
        logger.setLevel(max(level, logger.level))
    try:
        yield
    finally:
        for logger, level in before.items():
            logger.setLevel(level)


@contextlib.contextmanager
def _said_once() -> Iterator[None]:
    """Hides the message that Ray Data prints before it raises an error of our actors, with advice on its own settings.

    Ray Data's log file still has the message. Errors of Ray itself still show their traceback.
    """

    def mark(record: logging.LogRecord) -> bool:
        said = record.getMessage()
        if not record.exc_info and said.startswith(_OF_OUR_ACTORS):
            record.hide = True  # Ray Data's own flag for its console
        return True

    loggers = [logging.getLogger(name) for name in _TELLERS]
    for logger in loggers:
        logger.addFilter(mark)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(mark)


def read_rows(files: Sequence[Location], columns: Sequence[str] | None, resources: Resources) -> Dataset:
    """Read Parquet files of any size as a dataset with blocks of `block_rows` rows."""
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
    rows: int | None = None,
    progress: Showing = silent,
) -> list[Location]:
    """Answer every row of `files` with a pool of actors and write the answers, keyed by id, below `out`.

    Rows that an earlier, killed attempt has answered are not recomputed: `out/done` holds their ids. Each id must occur
    once in `files`. Returns the Parquet files of answers. `rows` is their number, for the progress shown.
    """

    def answer(dataset: Dataset, watch: Watch) -> Dataset:
        return dataset.map_batches(
            watched(actor, watch),
            fn_constructor_kwargs=arguments,
            batch_format="pyarrow",
            batch_size=rows_at_once(resources),
            compute=actor_pool(resources),
            num_cpus=actor_cpus(resources),
            num_gpus=resources.gpus_per_worker or None,
            memory=resources.memory,
            zero_copy_batch=True,
        )

    columns = columns_of(files, actor, arguments)
    return answer_rows(files, columns, answer, out, resources, rows=rows, progress=progress)


def rows_at_once(resources: Resources) -> int:
    """Rows that an actor gets in a call. On GPUs, whose passes hold many tokens, these are a block: passes of rows of like
    length, sorted among few, would mostly be padding."""
    return max(resources.batch_rows, resources.block_rows) if resources.on_gpu else resources.batch_rows


def actor_pool(resources: Resources) -> ActorPoolStrategy:
    """A pool that starts with as many actors as find a GPU, and grows to all that may; on CPUs it starts with one."""
    most = pool_size(resources)
    return ActorPoolStrategy(min_size=1, max_size=most, initial_size=min(most, first_workers(resources)))


def answer_rows(
    files: Sequence[Location],
    columns: Sequence[str],
    answer: Callable[[Dataset, Watch], Dataset],
    out: Location,
    resources: Resources,
    *,
    rows: int | None = None,
    progress: Showing = silent,
) -> list[Location]:
    """Apply `answer`, which must return one row for each id, to the rows of `files` and write the result below `out`.

    See `map_rows` for the guarantees. `answer` also gets what its actors share (`lives.watched`). It must not sort, group,
    limit or drop rows, or resuming would lose some.
    """
    from ray.data.checkpoint import CheckpointConfig

    answers, done = (out / "answers").make_folder(), (out / "done").make_folder()
    with data_context(resources) as context, progress(rows) as bar:
        context.checkpoint_config = CheckpointConfig(
            id_column=ID,
            checkpoint_path=done.path,
            delete_checkpoint_on_success=False,
            override_filesystem=done.fs,
        )
        context.checkpoint_config.checkpoint_actor_pool_max_size = 1
        already = count_rows(done.files(".parquet")) if bar.is_shown else 0
        try:
            with watching(out, resources, bar.note) as watch, counted(bar, already) as counts:
                dataset = answer(read_rows(files, columns, resources), replace(watch, counts=counts))
                dataset.write_parquet(answers.path, filesystem=answers.fs, ray_remote_args={"num_cpus": IO_CPUS})
        except Exception as error:
            said = _full_disk(error, answers) or find_cause(error) or _named_in(error) or error
            # Frames of Ray Data hold its actors, and with them CPUs and GPUs, for as long as a host keeps the error.
            traceback.clear_frames(error.__traceback__)
            raise said from None
    return answers.files(".parquet")


def _full_disk(error: BaseException | None, place: Location) -> StageError | None:
    """The error of a disk that is full, with where that is; None if the error is another one."""
    node = ""
    while error is not None:
        named = re.search(r"\bip=([\w.:]+)", str(error))  # in the text of Ray's errors alone
        node = f" on node {named[1]}" if named else node
        if type(error).__name__ == "OutOfDiskError":
            return StageError(
                f"ray: the disk for its own objects is full. Make room in Ray's temporary folder: {error}"
            )
        inner = getattr(error, "cause", None) or error.__cause__
        if isinstance(error, OSError) and error.errno in errors.FULL and not isinstance(inner, OSError):
            full = error.filename if isinstance(error.filename, str) and os.path.isabs(error.filename) else place
            return StageError(
                f"files: no space is left{node} for {full}. Make room there, or move the run to a larger disk; the same command "
                "continues with the rows that are not answered yet."
            )
        error = inner
    return None


def _named_in(error: Exception) -> errors.RaysiftError | None:
    """Rebuild the raysift error that an actor raised if Ray has kept only its text; None if there is none."""
    found = re.findall(r"raysift\.errors\.(\w+): (.+)", str(error))
    kind = getattr(errors, found[-1][0], None) if found else None
    return kind(found[-1][1]) if kind else None

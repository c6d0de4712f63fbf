"""The Python API: takes paths or a `ray.data.Dataset`, returns a `Selection`; uses the host's Ray session if there is one."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysift.errors import ConfigError, StaleRunError
from raysift.jobs.commands.console import Console
from raysift.jobs.runs.run import Run, free_name, open_run
from raysift.manifest import Manifest, read_manifest
from raysift.methods import find_method
from raysift.settings.config import CommonConfig, make_config
from raysift.storage import Location

if TYPE_CHECKING:
    from ray.data import Dataset

Paths = str | PathLike[str] | Sequence[str | PathLike[str]]


class Selection:
    """What a run selected. Loads nothing until it is needed."""

    def __init__(self, run: Run, manifest: Manifest) -> None:
        self.run = run
        self.manifest = manifest

    def __len__(self) -> int:
        return int(self.manifest.counts["kept"])

    def __repr__(self) -> str:
        return f"Selection({len(self):,} rows of {self.manifest.counts['rows_in']:,}, {self.run.folder})"

    @property
    def ids(self) -> list[int]:
        """Ids in rank order."""
        ids: list[int] = self.table()["id"].to_pylist()
        return ids

    @property
    def by_source(self) -> dict[str, dict[str, float]]:
        """Per source: rows in the pool, rows selected, lift."""
        return dict(self.manifest.values["by_source"])

    def table(self) -> pa.Table:
        """id, rank, score, source and the method's own columns, in rank order."""
        place = self.run.files(self.manifest, "selection")[0]
        return pq.read_table(place.path, filesystem=place.fs)

    def files(self) -> list[Location]:
        """Parquet files of the selected rows (id, source, messages, meta, raw), in rank order."""
        return self.run.files(self.manifest, "rows")

    def dataset(self) -> Dataset:
        """The selected rows as a Ray dataset, for the next step of a pipeline."""
        import ray

        start_session()
        files = self.files()
        return ray.data.read_parquet([file.path for file in files], filesystem=files[0].fs)


def select(
    method: str,
    pool: Paths | Dataset,
    *,
    run: str | PathLike[str] | None = None,
    pool_name: str | None = None,
    fresh: bool = False,
    console: Console | None = None,
    **settings: Any,
) -> Selection:
    """Select rows by a method and return the selection.

    `pool` is one path, several paths, or a Ray dataset with rows in any known layout. `settings` are those of the YAML
    file: `budget="5%"`, `model=...`, `seed=...`, and sections such as `ingest={...}`. Without `run`, a temporary folder is
    used. `reuse` names runs whose finished stages count here too. A dataset has no fingerprint: to continue or reuse a run
    made from one, give the dataset a name with `pool_name`.
    """
    from raysift.jobs.recipes import Pool, run_method
    from raysift.jobs.runs import checks

    find_method(method)
    given = is_dataset(pool)
    config, this_run = open_new(
        run, fresh, settings | {"method": method, "pool": [] if given else paths_of(pool)}, console
    )
    checks.check_named(config, settings.get("target"), settings.get("test"))
    if given and pool_name is None and this_run.manifest("ingest"):
        raise StaleRunError(
            f"ingest: {this_run.name} was made from some dataset, and nothing tells whether it was this one. Name the data "
            "with pool_name='...' in both calls, or use another run."
        )
    return Selection(this_run, run_method(this_run, config, Pool(pool, pool_name) if given else Pool()))


def finetune(
    rows: Paths | Selection, *, run: str | PathLike[str] | None = None, fresh: bool = False, **settings: Any
) -> Manifest:
    """Fine-tune a model on files or on a selection; the manifest's `epochs` are the checkpoints.

    `settings` are those of the YAML file: `model="nano"`, `train={"recipe": "less"}`, `test=[...]` to evaluate
    afterwards.
    """
    from raysift.jobs import stages
    from raysift.jobs.runs import checks

    chosen = rows.manifest if isinstance(rows, Selection) else None
    config, this_run = open_new(run, fresh, settings | {"pool": [] if isinstance(rows, Selection) else paths_of(rows)})
    if chosen is None:
        checks.check_pool(config)
    checks.check_training(this_run, config, "finetune")
    trained = stages.finetune(this_run, config, chosen or stages.ingest(this_run, config))
    if config.test:
        stages.evaluate(this_run, config, trained)
    return trained


def evaluate(test: Paths, *, run: str | PathLike[str] | None = None, fresh: bool = False, **settings: Any) -> Manifest:
    """Score a model (`model=...`, `adapter=...`) on example files; the manifest's values hold the table."""
    from raysift.jobs import stages
    from raysift.jobs.runs import checks

    config, this_run = open_new(run, fresh, settings | {"test": paths_of(test)})
    checks.check_evaluation(config)
    return stages.evaluate(this_run, config, None)


def open_new(
    run: str | PathLike[str] | None, fresh: bool, settings: dict[str, Any], console: Console | None = None
) -> tuple[CommonConfig, Run]:
    """Return the checked settings and a run whose first stage starts Ray."""
    folder = tempfile.mkdtemp(prefix="raysift-") if run is None else fspath(run)
    config = make_config(settings | {"run": free_name(folder) if fresh else folder})
    return config, Run(config.run, console, config.reuse, start_session)


def is_dataset(given: Any) -> bool:
    """Whether this is a Ray dataset. Checks without importing Ray."""
    data = sys.modules.get("ray.data")
    return data is not None and isinstance(given, data.Dataset)


def paths_of(given: Any) -> list[str]:
    """Return one or several paths as strings; raise if given rows or another library's table, without showing their content."""
    several = [given] if isinstance(given, str | PathLike) else given
    wrong = [] if isinstance(several, list | tuple) else [given]
    wrong += [] if wrong else [one for one in several if not isinstance(one, str | PathLike)]
    if wrong:
        kind = f"{type(wrong[0]).__module__}.{type(wrong[0]).__qualname__}".removeprefix("builtins.")
        raise ConfigError(
            f"input: found a {kind}, expected paths or a ray.data.Dataset. Make one with ray.data.from_pandas, "
            "from_huggingface, from_arrow or from_items."
        )
    return [fspath(one) for one in several]


def load_selection(run: str | PathLike[str]) -> Selection:
    """The selection of a finished run."""
    opened = open_run(fspath(run))
    manifest = read_manifest(opened.folder / "choose")
    if manifest is None:
        raise ConfigError(f"run: '{run}' has no finished selection. Finish it with the command that began it.")
    return Selection(opened, manifest)


def start_session() -> None:
    """Join the running Ray, or start a local one that ends with the process. A host's session is left alone."""
    from raysift.jobs.on_ray.raydata import start_ray

    start_ray()


@contextlib.contextmanager
def own_session(console: Console | None = None) -> Iterator[Callable[[], None]]:
    """Yield a function that starts Ray on its first call. The session ends with the block, unless it belongs to the host."""
    started: list[bool] = []

    def start() -> None:
        if started:
            return
        if console and console.voice in ("rich", "plain"):
            console.line("", "starting Ray ...")
        from raysift.jobs.on_ray.raydata import start_ray

        # Ray's core logs about its own actors in the middle of our lines, and also warns about being silenced.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        terminated = signal.getsignal(signal.SIGTERM)
        with _silent_stderr():
            started.append(start_ray())
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminated)  # Ray's handler ends the process with a printed stack

    try:
        yield start
    finally:
        if any(started):
            import ray

            ray.shutdown()


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drop everything written to standard error inside the block, also by C++ code; exceptions pass through."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)

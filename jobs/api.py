"""The Python API: paths or a `ray.data.Dataset` in, a `Selection` out. Uses the host's Ray where there is one."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysift.errors import ConfigError, StaleRunError
from raysift.jobs.commands.console import Console
from raysift.jobs.runs.run import Run, free_name, open_run
from raysift.manifest import Manifest, read_manifest
from raysift.methods import find_method
from raysift.settings.config import CommonConfig, make_config
from raysift.storage import Location, open_location

if TYPE_CHECKING:
    from ray.data import Dataset


class Selection:
    """What a run selected. Nothing is loaded until it is asked for."""

    def __init__(self, run: Run, manifest: Manifest) -> None:
        self.run = run
        self.manifest = manifest

    def __len__(self) -> int:
        return int(self.manifest.counts["kept"])

    def __repr__(self) -> str:
        return f"Selection({len(self):,} rows of {self.manifest.counts['rows_in']:,}, {self.run.folder})"

    @property
    def ids(self) -> list[int]:
        """Ids in order of rank."""
        ids: list[int] = self.table()["id"].to_pylist()
        return ids

    @property
    def by_source(self) -> dict[str, dict[str, float]]:
        """Per source: rows in the pool, rows selected, lift."""
        return dict(self.manifest.values["by_source"])

    def table(self) -> pa.Table:
        """id, rank, score, source and the method's own columns, in order of rank."""
        place = self.run.files(self.manifest, "selection")[0]
        return pq.read_table(place.path, filesystem=place.fs)

    def files(self) -> list[Location]:
        """Parquet files of the selected rows (id, source, messages, meta, raw), in order of rank."""
        return self.run.files(self.manifest, "rows")

    def dataset(self) -> Dataset:
        """The selected rows as a Ray dataset, for the next step of a pipeline."""
        import ray

        start_session()
        files = self.files()
        return ray.data.read_parquet([file.path for file in files], filesystem=files[0].fs)


def select(
    method: str,
    pool: str | Sequence[str] | Dataset,
    *,
    run: str | None = None,
    pool_name: str | None = None,
    fresh: bool = False,
    console: Console | None = None,
    **settings: Any,
) -> Selection:
    """Select rows by a method and give the selection.

    `pool` is a path, several, or a Ray dataset with rows in any known layout. `settings` are those of the YAML file:
    `budget="5%"`, `model=...`, `seed=...`, and sections such as `ingest={...}`. Without `run` a temporary folder is
    used. `reuse` names runs whose finished stages count here too. A dataset has no fingerprint: to continue or reuse a run
    that was given one, name it with `pool_name`.
    """
    from raysift.jobs.recipes import Pool, run_method

    find_method(method)
    paths = [pool] if isinstance(pool, str) else list(pool) if isinstance(pool, list | tuple) else []
    folder = run or tempfile.mkdtemp(prefix="raysift-")
    if fresh:
        folder = free_name(folder)
    config = make_config(settings | {"method": method, "pool": paths, "run": folder})
    data = Pool() if paths else Pool(pool, pool_name)
    if not paths and pool_name is None and read_manifest(open_location(folder) / "ingest"):
        raise StaleRunError(
            f"ingest: {folder} was made from some dataset, and nothing tells whether it was this one. Name the data "
            "with pool_name='...' in both calls, or use another run."
        )
    this_run = Run(folder, console, config.reuse)
    start_session()
    return Selection(this_run, run_method(this_run, config, data))


def finetune(
    rows: str | Sequence[str] | Selection, *, run: str | None = None, fresh: bool = False, **settings: Any
) -> Manifest:
    """Fine-tune a model on files or on a selection; the manifest's `epochs` are the checkpoints.

    `settings` are those of the YAML file: `model="nano"`, `train={"recipe": "less"}`, `test=[...]` to evaluate after it.
    """
    from raysift.jobs import stages

    paths = [] if isinstance(rows, Selection) else [rows] if isinstance(rows, str) else list(rows)
    config, this_run = _open(run, fresh, settings | {"pool": paths})
    source = rows.manifest if isinstance(rows, Selection) else stages.ingest(this_run, config)
    if config.test:
        stages.check_trainable(this_run, config.train, "finetune")
    trained = stages.finetune(this_run, config, source)
    if config.test:
        stages.evaluate(this_run, config, trained)
    return trained


def evaluate(test: str | Sequence[str], *, run: str | None = None, fresh: bool = False, **settings: Any) -> Manifest:
    """Score a model (`model=...`, `adapter=...`) on example files; the manifest's values hold the table."""
    from raysift.jobs import stages

    config, this_run = _open(run, fresh, settings | {"test": [test] if isinstance(test, str) else list(test)})
    return stages.evaluate(this_run, config, None)


def _open(run: str | None, fresh: bool, settings: dict[str, Any]) -> tuple[CommonConfig, Run]:
    """Checked settings, a run folder and a Ray session."""
    folder = run or tempfile.mkdtemp(prefix="raysift-")
    config = make_config(settings | {"run": free_name(folder) if fresh else folder})
    this_run = Run(config.run, reuse=config.reuse)
    start_session()
    return config, this_run


def load_selection(run: str) -> Selection:
    """The selection of a finished run."""
    opened = open_run(run)
    manifest = read_manifest(opened.folder / "choose")
    if manifest is None:
        raise ConfigError(f"run: '{run}' has no finished selection. Finish it with the command that began it.")
    return Selection(opened, manifest)


def start_session() -> None:
    """Join the running Ray, or start a local one that ends with the process; a host's session is left alone."""
    from raysift.jobs.on_ray.raydata import start_ray

    start_ray()


@contextlib.contextmanager
def own_session() -> Iterator[None]:
    """A Ray session for a command: one that this call started is shut down at the end, a host's is not."""
    from raysift.jobs.on_ray.raydata import start_ray

    # Ray's core remarks on its own actors in the middle of our lines, and on being told not to as well.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    with _silent_stderr():
        started = start_ray()
    try:
        yield
    finally:
        if started:
            import ray

            ray.shutdown()


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """What is written to standard error inside, also by C++ code, is dropped; exceptions pass."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)

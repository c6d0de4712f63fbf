"""What a run did and what it selected, read from its folder when asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysift.errors import ConfigError
from raysift.jobs.api.results import Comparison, Evaluation, Training
from raysift.jobs.api.showing import ROWS_SHOWN, as_html, first_question, last_answer, near, short
from raysift.jobs.api.words import python_words
from raysift.jobs.compare.result import read_result
from raysift.jobs.runs.run import Run as OpenRun
from raysift.jobs.runs.run import open_run
from raysift.manifest import Manifest
from raysift.pool.id_text import short_id
from raysift.records import ID, MESSAGES, META, RANK, RAW, SCORE, SOURCE
from raysift.storage import Location

if TYPE_CHECKING:
    import datasets
    import pandas
    import ray.data


class Run:
    """A run folder: how it was made, the account of each stage, what came out. Also a path, for `reuse=` or as a pool."""

    def __init__(self, opened: OpenRun) -> None:
        self.opened = opened
        """The run as its stages see it, with files and manifests."""

    def __fspath__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"Run({near(self.name)}: {self.method or 'no selection'}, stages {', '.join(self.stages) or 'none'})"

    def _repr_html_(self) -> str:
        lines = [
            [name, one.counts.get("rows_in"), one.counts.get("kept"), one.seconds] for name, one in self.stages.items()
        ]
        facts = {name: self.settings.get(name) for name in ("method", "model", "budget", "seed")}
        return as_html(f"Run {near(self.name)}", facts, ["stage", "rows in", "kept", "seconds"], lines)

    @property
    def name(self) -> str:
        """Folder or URI, as it was named."""
        return str(self.opened.name)

    @property
    def method(self) -> str | None:
        """The method that selected; None for a run that only trained, evaluated or compared."""
        method = self.settings.get("method")
        return None if method is None else str(method)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All settings of the run, as in its `run.yaml`."""
        return self.opened.made_with() or {}

    @property
    def stages(self) -> dict[str, Manifest]:
        """The account of each finished stage, in order: counts, values, seconds, files."""
        return {manifest.stage: manifest for manifest in self.opened.manifests()}

    @property
    def selection(self) -> Selection:
        """The rows that the run chose; raises if it has not finished choosing."""
        manifest = self.opened.manifest("choose")
        if manifest is None:
            raise ConfigError(f"run: '{self.name}' has no finished selection. Finish it with the call that began it.")
        return Selection(self, manifest)

    @property
    def training(self) -> Training | None:
        """The model that was trained on the selection, if any."""
        manifest = self.opened.manifest("final")
        return Training(self.opened, manifest) if manifest else None

    @property
    def evaluation(self) -> Evaluation | None:
        """How the model did on the test examples, if it was tested."""
        manifest = self.opened.manifest("evaluate")
        return Evaluation(self.opened, manifest) if manifest else None

    @property
    def comparison(self) -> Comparison | None:
        """The result of `compare`, if this is the folder of one."""
        found = read_result(self.opened.folder)
        return Comparison(self.opened, found) if found else None

    def report(self, *, text: bool = True) -> str:
        """Write `report.html` and `report.json` into the run's folder, without texts of rows if asked, and name the page."""
        from raysift.jobs.report.writing import write_report

        return str(write_report([self.opened], self.opened.folder, text))

    def scores(self) -> pa.Table:
        """Id and score of every row of the pool, with the method's own columns; the higher, the sooner it is chosen."""
        scored = [manifest for manifest in self.stages.values() if "scores" in manifest.files]
        if not scored:
            raise ConfigError(f"run: '{self.name}' has no scores yet. Finish it with the call that began it.")
        return _read(self.opened.files(scored[-1], "scores"))


class Selection:
    """The chosen rows of a run, read when they are asked for. Also a path: it can be the pool of another call."""

    def __init__(self, run: Run, manifest: Manifest) -> None:
        self.run = run
        """The run that chose them."""
        self.manifest = manifest
        """The account of the stage that chose."""

    def __fspath__(self) -> str:
        return self.run.name

    def __len__(self) -> int:
        return int(self.manifest.counts["kept"])

    def __repr__(self) -> str:
        pool = self.manifest.counts["rows_in"]
        return f"Selection({self.run.method}: {len(self):,} rows of {pool:,}, {near(self.run.name)})"

    def _repr_html_(self) -> str:
        sources = sorted(self.by_source.items(), key=lambda item: -item[1]["pool"])
        largest = [[name, line["pool"], line["selected"], line["lift"]] for name, line in sources[:ROWS_SHOWN]]
        first = [[row[RANK], row[SCORE], row["question"], row["answer"]] for row in self._first(ROWS_SHOWN)]
        facts = {"of": self.manifest.counts["rows_in"], "run": near(self.run.name)}
        title = f"{self.run.method}: {len(self):,} rows"
        by_source = as_html("By source", {}, ["source", "pool", "selected", "lift"], largest)
        return as_html(title, facts, ["rank", "score", "question", "answer"], first) + by_source

    @property
    def ids(self) -> list[int]:
        """Ids in rank order."""
        ids: list[int] = self.table()[ID].to_pylist()
        return ids

    @property
    def by_source(self) -> dict[str, dict[str, float]]:
        """Per source: rows in the pool, rows selected, lift."""
        return dict(self.manifest.values["by_source"])

    def table(self) -> pa.Table:
        """Without texts: id, rank, score, source, the method's own columns, file and position in it; in rank order."""
        return _read(self.run.opened.files(self.manifest, "selection"))

    def scores(self) -> pa.Table:
        """Id and score of every row of the pool, with the method's own columns."""
        return self.run.scores()

    def files(self) -> list[Location]:
        """Parquet files of the selected rows (id, source, messages, meta, raw), in rank order."""
        return self.run.opened.files(self.manifest, "rows")

    def to_arrow(self) -> pa.Table:
        """The rows in rank order: id, rank, score, source, messages, and meta (other columns of the pool) as JSON text."""
        rows, ranked = _read(self.files()).drop_columns([RAW]), self.table()
        table: pa.Table = rows.add_column(1, RANK, ranked[RANK]).add_column(2, SCORE, ranked[SCORE])
        return table

    def to_pandas(self) -> pandas.DataFrame:
        """As `to_arrow`, as a DataFrame."""
        return self.to_arrow().to_pandas()

    def to_datasets(self) -> datasets.Dataset:
        """As `to_arrow`, as a `datasets.Dataset`, which trainers of Hugging Face take."""
        import datasets

        return datasets.Dataset(self.to_arrow())

    def dataset(self) -> ray.data.Dataset:
        """The files of the rows as a Ray dataset, for the next step of a pipeline; starts Ray if none runs."""
        import ray

        from raysift.jobs.cluster.session import start_session

        start_session()
        files = self.files()
        return ray.data.read_parquet([file.path for file in files], filesystem=files[0].fs)

    def rows(self) -> Iterator[dict[str, Any]]:
        """As `to_arrow`, one dictionary a row, with meta as a dictionary."""
        for batch in self.to_arrow().to_batches(max_chunksize=1_000):
            for row in batch.to_pylist():
                yield row | {META: json.loads(row[META] or "{}")}

    def head(self, rows: int = ROWS_SHOWN) -> pandas.DataFrame:
        """The first rows for people: short id, rank, score, source, and the beginnings of question and answer."""
        import pandas

        return pandas.DataFrame(self._first(rows))

    def _first(self, rows: int) -> list[dict[str, Any]]:
        columns = [ID, SOURCE, MESSAGES]
        found: list[pa.Table] = []
        for file in self.files():
            if sum(map(len, found)) >= rows:
                break
            found.append(pq.read_table(file.path, filesystem=file.fs, columns=columns).slice(0, rows))
        ranked = self.table().select([RANK, SCORE]).slice(0, rows)
        texts = pa.concat_tables(found).slice(0, rows).to_pylist()
        return [
            {
                ID: short_id(row[ID]),
                **place,
                SOURCE: row[SOURCE],
                "question": short(first_question(row[MESSAGES])),
                "answer": short(last_answer(row[MESSAGES])),
            }
            for row, place in zip(texts, ranked.to_pylist(), strict=True)
        ]


def load_run(run: str | PathLike[str]) -> Run:
    """A run folder that is there already, finished or not: `load_run("runs/less").selection`."""
    with python_words():
        return Run(open_run(fspath(run)))


def _read(files: list[Location]) -> pa.Table:
    return pa.concat_tables([pq.read_table(file.path, filesystem=file.fs) for file in files])

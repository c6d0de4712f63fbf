"""What a pool, a target, a test or rows to train on may be in Python: names of files, or rows in memory, which become a file.

Such a file lies in the run's folder under the hash of its content, `given/HASH/pool.parquet`. So a restart with the same rows
continues, another run with the same rows can reuse stages, and `run.yaml` replays the run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any, Protocol

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from raysift.errors import ConfigError
from raysift.fingerprint import file_fingerprint
from raysift.storage import Location, extend_name, open_location

GIVEN = "given"
STEP_ROWS = 10_000  # of a row group; fixed, so that the same rows give the same bytes however they were chunked
EXPECTED = (
    "paths, a pandas.DataFrame, a pyarrow.Table, a datasets.Dataset, a ray.data.Dataset or a list of dictionaries"
)


class ArrowTable(Protocol):
    """A pandas.DataFrame, a pyarrow.Table, or any other table of Arrow's C interface."""

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any: ...


class NamedRows(Protocol):
    """A datasets.Dataset or a ray.data.Dataset."""

    def schema(self) -> Any: ...


class HubRows(Protocol):
    """A datasets.Dataset."""

    @property
    def column_names(self) -> Any: ...

    def with_format(self, type: str | None = None) -> Any: ...


Name = str | PathLike[str]
Names = Name | Sequence[Name]
Data = Names | Sequence[Mapping[str, Any]] | ArrowTable | HubRows | NamedRows


@dataclass(frozen=True)
class Held:
    """Rows that were given in memory, written to a temporary file."""

    file: Location
    inside: str
    """Where the file belongs in the run's folder."""

    def place(self, run: str) -> str:
        """Its name in the folder of a run."""
        return extend_name(run, f"/{GIVEN}/{self.inside}")

    def keep(self, run: str) -> Location | None:
        """Copy it into the run's folder; None if it lies there already."""
        place = open_location(self.place(run))
        if place.exists():
            return None
        place.parent.make_folder()
        place.copy_from(self.file)
        return place


def read_given(role: str, given: Any, work: str) -> list[str] | Held:
    """The names of files, or the rows in a file below the local folder `work`. Errors never hold what stands in a row."""
    if (names := as_names(given)) is not None:
        return names
    path = os.path.join(work, role)
    if _is_records(given):
        path += ".jsonl"
        _write_records(role, given, path)
    else:
        path += ".parquet"
        _write_tables(role, _tables(role, given), path)
    file = open_location(path)
    return Held(file, f"{file_fingerprint(file)}/{file.name}")


def as_names(given: Any) -> list[str] | None:
    """One or several paths as text; None if something else was given."""
    several = [given] if isinstance(given, str | PathLike) else given
    if not isinstance(several, list | tuple) or not all(isinstance(one, str | PathLike) for one in several):
        return None
    return [fspath(one) for one in several]


def is_ray_dataset(given: Any) -> bool:
    """Whether this is a Ray dataset. Checks without importing Ray."""
    return _is(given, "ray.data", "Dataset")


def _is(given: Any, module: str, *names: str) -> bool:
    """Whether this is of a class of a library; one that is not imported has made nothing."""
    there = sys.modules.get(module)
    return there is not None and any(isinstance(given, getattr(there, name)) for name in names)


def _is_records(given: Any) -> bool:
    return isinstance(given, list | tuple) and bool(given) and all(isinstance(one, Mapping) for one in given)


def _write_records(role: str, records: Sequence[Mapping[str, Any]], path: str) -> None:
    with open(path, "wb") as file:
        for number, record in enumerate(records, 1):
            try:
                file.write(orjson.dumps(dict(record), option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE))
            except TypeError as error:
                # orjson tells the kind of a value, never the value
                raise ConfigError(f"{role}: record {number} cannot be written as JSON: {error}.") from None


def _tables(role: str, given: Any) -> Iterator[pa.Table]:
    if _is(given, "datasets", "Dataset"):
        yield from given.with_format("arrow").iter(STEP_ROWS)
    elif is_ray_dataset(given):
        import ray

        from raysift.jobs.pool.ingest import kept_whole

        with kept_whole(given):
            blocks = given.to_arrow_refs()
        for block in blocks:
            yield ray.get(block)
    elif hasattr(given, "__arrow_c_stream__") and not isinstance(given, type) and not _hint(given):
        yield _as_table(role, given)
    else:
        raise ConfigError(f"{role}: found {_kind(given)}, expected {EXPECTED}.{_hint(given)}")


def _as_table(role: str, given: Any) -> pa.Table:
    """An Arrow table of columns of one kind each; the message of Arrow's own error holds the value that does not fit."""
    if not _is(given, "pandas", "DataFrame"):
        return pa.table(given)
    columns = {}
    for name in given.columns:
        try:
            columns[str(name)] = pa.Array.from_pandas(given[name])
        except (pa.ArrowException, TypeError, ValueError):
            raise ConfigError(
                f"{role}: column '{name}' of the DataFrame holds values of several kinds. Make them one kind, or give the rows "
                "as dictionaries: frame.to_dict('records')."
            ) from None
    return pa.table(columns)


def _write_tables(role: str, tables: Iterator[pa.Table], path: str) -> None:
    """All rows as one Parquet file whose bytes follow from the rows alone."""
    writer: pq.ParquetWriter | None = None
    held: list[pa.Table] = []
    count = written = 0
    try:
        for table in tables:
            held.append(table.replace_schema_metadata(None))
            count, written = count + len(table), written + len(table)
            writer = writer or pq.ParquetWriter(path, held[0].schema, compression="zstd", store_schema=False)
            while count >= STEP_ROWS:
                count -= STEP_ROWS
                whole = pa.concat_tables(held)
                writer.write_table(whole.slice(0, STEP_ROWS).combine_chunks())
                held = [whole.slice(STEP_ROWS)]
        if writer and count:
            writer.write_table(pa.concat_tables(held).combine_chunks())
    except (pa.ArrowException, TypeError, ValueError):
        raise ConfigError(
            f"{role}: the rows cannot be written as Parquet: their columns or kinds of values differ from part to part, or "
            "Parquet has no such kind. Give them as a list of dictionaries."
        ) from None
    finally:
        if writer:
            writer.close()
    if not written:
        raise ConfigError(f"{role}: there are no rows in what was given.")


def _kind(given: Any) -> str:
    if isinstance(given, list | tuple):
        kinds = sorted({_kind(one) for one in given})
        return f"a list of {' and '.join(kinds)}" if kinds else "an empty list"
    return f"{type(given).__module__}.{type(given).__qualname__}".removeprefix("builtins.")


def _hint(given: Any) -> str:
    if _is(given, "datasets", "DatasetDict", "IterableDatasetDict"):
        return " Name one of its splits: dataset['train']."
    if _is(given, "datasets", "IterableDataset"):
        return " Give it as ray.data.from_huggingface(dataset), which reads it in parts."
    if _is(given, "pandas", "Series"):
        return " Give the whole DataFrame."
    return ""

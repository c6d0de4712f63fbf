"""Arrow files and streams, opened and checked in a process of their own.

Arrow trusts the buffers of a file: a wrong offset in one ends the process that follows it. So another process opens the
file, checks every batch, and hands on those that are sound as a stream. If it dies, the file is at fault and not the worker.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice

import pyarrow as pa
import pyarrow.ipc

from raysift.storage import Location

_COUNT = b"batches"


class BrokenArrow(Exception):
    """The file is no sound Arrow file; the message says why."""


def arrow_batches(place: Location, start: int = 0, end: int = -1) -> Iterator[pa.RecordBatch]:
    """Batches `start` to `end` of a file or stream, -1 for all that follow; raises BrokenArrow."""
    with _opened(place, start, end) as reader:
        yield from reader


def describe_arrow(place: Location) -> tuple[tuple[str, ...], int | None]:
    """Column names, and the number of batches of a file; a stream does not tell (None). Raises BrokenArrow."""
    with _opened(place, 0, 0) as reader:
        count = int(reader.schema.metadata[_COUNT])
        names = tuple(reader.schema.names)
        for _ in reader:
            pass
        return names, None if count < 0 else count


@contextlib.contextmanager
def _opened(place: Location, start: int, end: int) -> Iterator[pa.RecordBatchReader]:
    """The other process's stream of sound batches."""
    with tempfile.TemporaryFile() as said:
        command = [sys.executable, "-m", "raysift.pool.foreign_arrow"]
        paths = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, env=paths)
        assert child.stdin and child.stdout
        try:
            with contextlib.suppress(BrokenPipeError), child.stdin:
                child.stdin.write(pickle.dumps((place, start, end)))
            broken: Exception | None = None
            try:
                yield pa.ipc.open_stream(child.stdout)
            except (pa.ArrowException, OSError) as error:  # where the stream breaks off, the process tells why
                broken = error
            if code := child.wait():
                said.seek(0)
                words = " ".join(said.read().decode("utf-8", "replace").split())
                died = f"its content ended the process that opened it (signal {-code})"
                raise BrokenArrow(died if code < 0 else words[-300:])
            if broken:
                raise broken
        finally:
            child.kill()
            child.wait()
            child.stdout.close()


def _send() -> None:
    place, start, end = pickle.load(sys.stdin.buffer)
    with place.open_input() as stream:
        is_file = stream.read(6) == b"ARROW1"  # a stream can only be read from its start
        stream.seek(0)
        reader = pa.ipc.open_file(stream) if is_file else pa.ipc.open_stream(stream)
        count = reader.num_record_batches if is_file else -1
        last = None if end < 0 else end
        batches = map(reader.get_batch, range(count)[start:last]) if is_file else islice(reader, start, last)
        with pa.ipc.new_stream(sys.stdout.buffer, reader.schema.with_metadata({_COUNT: str(count)})) as out:
            for batch in batches:
                for column in batch.columns:
                    _check(column)
                out.write_batch(batch.replace_schema_metadata({_COUNT: str(count)}))


def _check(column: pa.Array) -> None:
    """Raises where a buffer cannot be followed. Text that is not UTF-8 passes: that is a matter of its row."""
    kind = _as_bytes(column.type)
    column.validate()
    (column if kind == column.type else column.view(kind)).validate(full=True)


def _as_bytes(kind: pa.DataType) -> pa.DataType:
    """The type with bytes in the place of text, all else alike."""
    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_as_bytes(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_as_bytes(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_as_bytes(kind.value_type)))
    return kind


if __name__ == "__main__":
    try:
        _send()
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")

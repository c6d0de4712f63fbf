"""CSV and TSV files as rows of cells, and the column names in their first row."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from typing import Any

from raysift.pool.files import MAX_RECORD_BYTES, BadFile, SourceFile, open_stream


def csv_header(file: SourceFile) -> tuple[str, ...]:
    """The column names of a CSV file."""
    with open_stream(file) as stream:
        return tuple(next(csv_rows(stream, file), []))


def csv_rows(stream: Any, file: SourceFile, most: int = MAX_RECORD_BYTES) -> Iterator[list[str]]:
    """Rows of cells of at most `most` characters; raises BadFile with the line where the text is no CSV."""
    # Cells may hold any number of lines and characters; the reader's limit of 131,072 is for the whole process.
    csv.field_size_limit(sys.maxsize)
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    held = 0  # characters since the last whole row: a quote that is not closed takes in all that follows

    def lines() -> Iterator[str]:
        nonlocal held
        while line := text.readline(most + 1 - held):
            held += len(line)
            if held > most:
                raise csv.Error(f"a row is longer than {most // 2**20} MiB. Is a quote not closed?")
            yield line

    reader = csv.reader(lines(), delimiter="\t" if file.suffix == ".tsv" else ",", strict=True)
    started = 1
    try:
        for row in reader:
            held, started = 0, reader.line_num + 1
            yield row
    except csv.Error as error:
        line = started if held > most else reader.line_num
        raise BadFile(file.name, f"is not valid CSV: {error}", line) from None

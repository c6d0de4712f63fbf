"""CSV and TSV files as rows of cells, and the column names in their first row."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from typing import Any

from raysift.pool.files import BadFile, SourceFile, open_stream


def csv_header(file: SourceFile) -> tuple[str, ...]:
    """The column names of a CSV file."""
    with open_stream(file) as stream:
        header = next(csv_rows(stream, file), [])
    doubled = sorted({name for name in header if header.count(name) > 1})
    if doubled:
        raise BadFile(file.name, f"its header names the columns {doubled} more than once.", 1)
    return tuple(header)


def csv_rows(stream: Any, file: SourceFile) -> Iterator[list[str]]:
    """Rows of cells; raises BadFile with the line where the text is no CSV."""
    # Cells may hold any number of lines and characters; the reader's limit of 131,072 is for the whole process.
    csv.field_size_limit(sys.maxsize)
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.reader(text, delimiter="\t" if ".tsv" in file.location.name else ",", strict=True)
    try:
        yield from reader
    except csv.Error as error:
        raise BadFile(file.name, f"is not valid CSV: {error}", reader.line_num) from None

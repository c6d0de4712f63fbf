"""Encoded rows as token files (raysift.actors.token_files), made in Ray tasks that hold about PART_ROWS rows each.

    1 part     one task reads all answers
    more       sort: each task reads some files of answers and writes a piece for every part, rows in a range of ids
               merge: each task reads one part's pieces and writes its token file

The ranges are quantiles of all ids, so neither the files of the answers nor the number of tasks at a time changes a byte.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysift.actors.effective_batches import COUNTED, INPUT_IDS, split_trainable
from raysift.actors.token_files import write_part
from raysift.jobs.on_ray.ray_tasks import run_tasks
from raysift.jobs.runs.tables import read_chunks
from raysift.records import ERROR, ID
from raysift.settings.resources import Resources
from raysift.storage import Location

PART_ROWS = 50_000
_ENCODED = [ID, INPUT_IDS, COUNTED, ERROR]


def write_token_files(answers: Sequence[Location], rows: int, folder: Location, resources: Resources) -> list[Location]:
    """The token files of these answers, in order of id; of answers without a trainable row, one file without rows."""
    out, pieces, parts = (folder / "tokens").make_folder(), folder / "pieces", max(1, -(-rows // PART_ROWS))
    if parts == 1:
        merges = [(out, 0, list(answers))]
    else:
        ends = cut_ids(answers, parts)
        pieces.make_folder()
        shares = [list(share) for share in np.array_split(np.arange(len(answers)), min(parts, len(answers)))]
        sorts = [(pieces, number, [answers[i] for i in share], ends) for number, share in enumerate(shares)]
        for _ in run_tasks(write_pieces, sorts, resources, "encode: files of answers"):
            pass
        merges = [
            (out, part, [pieces / _piece(number, part) for number in range(len(shares))]) for part in range(parts)
        ]
    written = dict(run_tasks(merge_part, merges, resources, "encode: token files"))
    pieces.delete()
    return [written[number] for number in range(parts)]


def cut_ids(answers: Sequence[Location], parts: int) -> np.ndarray:
    """The first id of each part but the first; parts have equally many rows. Holds 8 bytes a row, outside of memory."""
    with tempfile.TemporaryFile() as file:
        for chunk in read_chunks(answers, [ID]):
            file.write(chunk[ID].to_numpy().tobytes())
        ids = np.memmap(file, np.int64, "r+")
        ids.sort()
        return np.array(ids[[len(ids) * part // parts for part in range(1, parts)]])


def write_pieces(pieces: Location, number: int, answers: Sequence[Location], ends: np.ndarray) -> None:
    """The trainable rows of these answers, one file for each range of ids."""
    table = _trainable(answers)
    part_of = np.searchsorted(ends, table[ID].to_numpy(), side="right")
    for part in range(len(ends) + 1):
        place = pieces / _piece(number, part)
        pq.write_table(table.filter(pa.array(part_of == part)), place.path, filesystem=place.fs, compression="zstd")


def merge_part(out: Location, part: int, files: Sequence[Location]) -> Location:
    """Write the token file of the trainable rows in these files."""
    return write_part(out, part, _trainable(files))


def _trainable(files: Sequence[Location]) -> pa.Table:
    tables = [split_trainable(chunk)[0] for chunk in read_chunks(files, _ENCODED)]
    if not tables:
        kinds = (pa.int64(), pa.list_(pa.int32()), pa.list_(pa.bool_()), pa.string())
        return pa.schema(list(zip(_ENCODED, kinds, strict=True))).empty_table()
    return pa.concat_tables(tables)


def _piece(number: int, part: int) -> str:
    return f"{part:05d}-{number:05d}.parquet"

"""The rows that a seed draws of each bin, copied out of the pool in one pass: `rows/HASH/bin-NN.parquet`."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysift.fingerprint import fingerprint
from raysift.jobs.check.plan import Plan
from raysift.jobs.runs.chosen_rows import chosen_chunks
from raysift.jobs.runs.run import Run
from raysift.manifest import Manifest, read_manifest, settle, write_manifest
from raysift.records import ROWS
from raysift.storage import Location
from raysift.topk import Ids


class Drawn(NamedTuple):
    """The rows of all bins for a seed; written only where a training needs them."""

    seed: int
    ids: list[Ids]
    place: Location
    """Named by the rows, so that seeds which draw the same share them."""

    @property
    def digests(self) -> list[str]:
        """What identifies the rows of each bin."""
        return [digest_of(ids) for ids in self.ids]

    def file(self, number: int) -> Location:
        """Where the rows of a bin lie, from 1."""
        return self.place / _name(number)


def draw(run: Run, plan: Plan, seed: int) -> Drawn:
    """The draw of a seed, not yet written."""
    ids = plan.drawn(seed)
    return Drawn(seed, ids, run.folder / "rows" / fingerprint([digest_of(one) for one in ids]))


def write_drawn(plan: Plan, drawn: Drawn) -> None:
    """Write the rows, unless they lie there whole."""
    found = read_manifest(drawn.place)
    if found is not None and found.damage() is None:
        return
    drawn.place.make_folder()
    each, wanted = plan.each, np.concatenate(drawn.ids)
    names = [_name(number) for number in range(1, len(drawn.ids) + 1)]
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(
                pq.ParquetWriter((drawn.place / name).path, ROWS, filesystem=drawn.place.fs, compression="zstd")
            )
            for name in names
        ]
        for chunk, places in chosen_chunks(plan.source.files(plan.rows, "rows"), wanted, ROWS.names):
            for number in np.unique(places // each).tolist():
                part = chunk.filter(pa.array(places // each == number))
                writers[number].write_table(part.select(ROWS.names).cast(ROWS))
    _commit(drawn, names, each)


def _commit(drawn: Drawn, names: Sequence[str], each: int) -> None:
    manifest = Manifest(
        stage="rows",
        fingerprint=drawn.place.name,
        settings={"seed": drawn.seed},
        files={"rows": list(names)},
        sizes=settle(drawn.place, names),
        counts={"rows": each * len(names)},
    )
    write_manifest(drawn.place, manifest)


def digest_of(ids: Ids) -> str:
    """A hash of rows by their ids, which are hashes of what they say."""
    return hashlib.blake2b(np.sort(ids).astype("<i8").tobytes(), digest_size=8).hexdigest()


def _name(number: int) -> str:
    return f"bin-{number:02d}.parquet"

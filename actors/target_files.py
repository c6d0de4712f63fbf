"""The files of the targets stage: per checkpoint its vectors and an account of its members; all members' figures at the end.

CHECKPOINT.safetensors          one vector per subtask, written one after the other; with null columns each is followed by its
                                null ones: (subtasks, 1 + columns, width)
CHECKPOINT.account.safetensors  members, those set aside, and sketches; written last, so it says that the vectors are there
members.json, examples.parquet  the members at all checkpoints
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysift.actors.checkpointed import Checkpoint
from raysift.storage import Location
from raysift.store.local_files import on_this_disk
from raysift.tensors import load_tensors, map_tensor, save_tensors, writing_rows

if TYPE_CHECKING:
    from raysift.gradients.preference import Targets

TARGETS = "targets"
EXAMPLES = pa.schema(
    [
        ("key", pa.int64()),  # of the texts (see `content_key`)
        ("checkpoint", pa.string()),
        ("subtask", pa.string()),
        ("loss", pa.float64()),
        ("margin", pa.float64()),  # pairs only, as is `between`
        ("norm", pa.float64()),
        ("between", pa.float64()),
        ("cosine", pa.float64()),  # with its subtask's target
        ("truncated", pa.bool_()),
    ]
)
"""A line per pair or example and checkpoint; `sketch` follows, lists of float32 of one length."""


class TargetFiles:
    """Writes a checkpoint's targets as they are computed, and finds those that a stage wrote before it was killed."""

    def __init__(self, folder: Location, projection: str) -> None:
        self.folder = folder
        self.projection = projection
        self.nulls = 0
        """Null columns of each subtask."""

    @contextlib.contextmanager
    def writing(
        self, checkpoint: Checkpoint, subtasks: Sequence[str], width: int
    ) -> Iterator[Callable[[np.ndarray], None]]:
        """Inside the block, each call writes the next vector: that of a subtask, then its null ones."""
        metadata = {"subtasks": json.dumps(list(subtasks)), "projection": self.projection}
        place = self.folder / f"{checkpoint.name}.safetensors"
        shape = (len(subtasks), 1 + self.nulls, width) if self.nulls else (len(subtasks), width)
        with writing_rows(place, TARGETS, shape, metadata) as write:
            yield write

    def account(self, checkpoint: Checkpoint, targets: Targets) -> None:
        """Write what else there is to know; the checkpoint is then done."""
        told = {name: [asdict(entry) for entry in getattr(targets, name)] for name in ("members", "set_aside")}
        own = {"subtasks": targets.subtasks, "nulls": [self.nulls, targets.empty_nulls], "toward": targets.toward}
        metadata = {name: json.dumps(value) for name, value in {**own, **told}.items()}
        save_tensors(self._account(checkpoint), {"sketches": np.asarray(targets.sketches, np.float32)}, metadata)

    def done(self, checkpoint: Checkpoint, width: int) -> Targets | None:
        """The targets of a checkpoint that is done, without their vectors; None if it is not, or has other null columns."""
        from raysift.gradients.preference import Member, Targets
        from raysift.gradients.rows import SetAside

        if not self._account(checkpoint).exists():
            return None
        tensors, told = load_tensors(self._account(checkpoint), "targets")
        nulls, empty = json.loads(told.get("nulls", "[0, 0]"))
        if nulls != self.nulls:
            return None
        return Targets(
            subtasks=tuple(json.loads(told["subtasks"])),
            vectors=np.empty((0, width), np.float32),
            members=[Member(**entry) for entry in json.loads(told["members"])],
            set_aside=[SetAside(**entry) for entry in json.loads(told["set_aside"])],
            sketches=tensors["sketches"],
            toward=tuple(json.loads(told.get("toward", "[]"))),
            empty_nulls=empty,
        )

    def tidy(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Remove the accounts, once their content is in the files for all checkpoints."""
        for checkpoint in checkpoints:
            self._account(checkpoint).delete()

    def _account(self, checkpoint: Checkpoint) -> Location:
        return self.folder / f"{checkpoint.name}.account.safetensors"


def save_examples(
    place: Location, checkpoints: Sequence[Checkpoint], targets: Sequence[Targets], keys: Sequence[int]
) -> None:
    """Write a line per pair or example and checkpoint: its figures, and its sketch (see raysift.gradients.sketches).

    `keys` are the members' content keys, so that a line is found again for the same text.
    """
    tables = []
    for checkpoint, target in zip(checkpoints, targets, strict=True):
        lines = [{"key": keys[member.id], "checkpoint": checkpoint.name, **vars(member)} for member in target.members]
        numbers = np.ascontiguousarray(target.sketches, np.float32)
        sketches = pa.FixedSizeListArray.from_arrays(pa.array(numbers.reshape(-1)), numbers.shape[1])
        table = pa.Table.from_pylist([{name: line[name] for name in EXAMPLES.names} for line in lines], schema=EXAMPLES)
        tables.append(table.append_column("sketch", sketches))
    with place.open_output() as stream:
        pq.write_table(pa.concat_tables(tables), stream, compression="zstd")


def load_targets(folder: Location, checkpoints: Sequence[Checkpoint], null: bool = False) -> list[Any]:
    """The target matrices (subtasks, width) of these checkpoints, in their order, read from disk where they are used.

    With `null`, each subtask's vector is followed by its null ones: (subtasks x (1 + columns), width).
    """
    import torch

    found = []
    for checkpoint in checkpoints:
        vectors = torch.from_numpy(map_tensor(on_this_disk(folder / f"{checkpoint.name}.safetensors"), TARGETS))
        if vectors.dim() == 3:
            vectors = vectors.flatten(0, 1) if null else vectors[:, 0]
        found.append(vectors)
    return found

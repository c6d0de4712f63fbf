"""The checkpoints of a fine-tune on disk: `epoch-N/` with weights, Adam's moments by name and `epoch.json`.

A folder is valid once it holds its record, which is written last. `step-N/`, with `step.json`, is a checkpoint within a
long epoch; the next checkpoint replaces it.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from raysift.actors.fetched_models import unpinned
from raysift.actors.optimizers import moments_of
from raysift.actors.sharded import is_sharded, save_whole
from raysift.fingerprint import file_fingerprint
from raysift.gradients.moments import save_moments
from raysift.settings.base import TRAIN
from raysift.storage import Location, open_location

EPOCH_RECORD, STEP_RECORD, MOMENTS = "epoch.json", "step.json", "moments.safetensors"


class EpochRecord(BaseModel):
    """The contents of `epoch.json`; `step.json` has the same fields for the finished part of an epoch."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epoch: int
    step: int
    """Optimizer steps since the training began."""
    mean_learning_rate: float
    """Mean of the learning rates after the epoch's steps: the weight of this checkpoint in LESS and ROSE."""
    first_learning_rate: float
    last_learning_rate: float
    mean_loss: float
    """In nats per counted token, over the epoch's steps, each measured as it was made."""
    loss_sum: float
    label_tokens: int
    seconds: float
    hashes: dict[str, str] = Field(default_factory=dict)
    """Content hash of each file of the epoch, such as `moments.safetensors`."""
    template: str | None = None
    """The chat template of the training; None in records older than this field."""
    marks: tuple[tuple[int, float, int], ...] = ()
    """Step, loss_sum and label_tokens at some twenty steps of the epoch: the curve of the loss."""


def loss_curve(records: Sequence[EpochRecord]) -> list[tuple[int, float]]:
    """Step and mean loss since the point before, in nats per counted token, over all epochs."""
    points = []
    for record in records:
        sums, tokens = 0.0, 0
        for step, loss_sum, label_tokens in record.marks:
            if label_tokens > tokens:
                points.append((step, (loss_sum - sums) / (label_tokens - tokens)))
            sums, tokens = loss_sum, label_tokens
    return points


def epoch_records(out: Location) -> list[EpochRecord]:
    """Records of the finished epochs, in order."""
    return sorted((record for _, record in _checkpoints(out, EPOCH_RECORD)), key=lambda record: record.epoch)


def last_checkpoint(out: Location) -> tuple[Location, EpochRecord, bool] | None:
    """The complete folder with the most steps, its record, and whether it ends an epoch."""
    found = [(folder, record, True) for folder, record in _checkpoints(out, EPOCH_RECORD)]
    found += [(folder, record, False) for folder, record in _checkpoints(out, STEP_RECORD)]
    return max(found, key=lambda item: (item[1].step, item[2]), default=None)


def template_of(named: str, model: Any, adapter: str | Location | None, usual: str = "auto") -> str:
    """The chat template to prompt a model with.

    It is the one named or, for `train`, that of the training, from the record beside the adapter or the weights;
    `usual` if there is no such record.
    """
    if named != TRAIN:
        return named
    weights = adapter or model
    place = open_location(unpinned(weights)) if isinstance(weights, str) else weights
    if not isinstance(place, Location) or not place.is_folder():
        return usual
    record = Location(place.fs, place.path.rstrip("/").rpartition("/")[0]) / EPOCH_RECORD
    recorded = json.loads(record.read_bytes()) if record.exists() else {}  # from any version: only one field is read
    return recorded.get("template") or usual


def _checkpoints(out: Location, name: str) -> list[tuple[Location, EpochRecord]]:
    found = []
    for file in out.files(f"/{name}", recursive=True):
        folder = file.parent
        if folder.parent.path == out.path.rstrip("/"):
            found.append((folder, EpochRecord.model_validate_json(file.read_bytes())))
    return found


def write_checkpoint(
    folder: Location,
    record: EpochRecord,
    name: str,
    model: Any,
    tokenizer: Any,
    optimizer: Any,
    writes: bool = True,
) -> None:
    """Write weights and moments, then the record that makes them valid, with the hashes of an epoch's files.

    Of a model that is divided among ranks, all call this, because each gives its shares; one of them `writes`.
    """
    if writes:
        folder.delete()
    is_adapter = hasattr(model, "peft_config")
    with _filled_folder(folder / ("adapter" if is_adapter else "model"), writes) as path:
        if is_adapter:
            # By default PEFT asks the hub whether the embedding was resized.
            model.save_pretrained(path, save_embedding_layers=False)
        else:
            if is_sharded(model):
                save_whole(model, path, writes)
            else:
                model.save_pretrained(path)
            tokenizer.save_pretrained(path)
    save_moments(folder / MOMENTS if writes else None, moments_of(model, optimizer, record.step))
    if not writes:
        return
    files = folder.files(recursive=True)
    for file in files:
        file.sync()
    if name == EPOCH_RECORD:
        written = {file.path.removeprefix(f"{folder.path}/"): file_fingerprint(file) for file in files}
        record = record.model_copy(update={"hashes": written})
    (folder / name).write(record.model_dump_json(indent=2) + "\n")


@contextlib.contextmanager
def _filled_folder(place: Location, kept: bool = True) -> Iterator[str]:
    """A local folder to write into: `place` itself, or a temporary one that is copied there at the end, or not `kept`."""
    if not kept:
        with tempfile.TemporaryDirectory() as folder:
            yield folder
        return
    place.make_folder()
    if place.is_local:
        yield place.path
        return
    import pyarrow.fs as pafs

    with tempfile.TemporaryDirectory() as folder:
        yield folder
        pafs.copy_files(folder, place.path, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=place.fs)


def delete_steps(out: Location, keep: str = "") -> None:
    """Remove the checkpoints within epochs, except the one named `keep`."""
    for folder, _ in _checkpoints(out, STEP_RECORD):
        if folder.name != keep:
            (folder / STEP_RECORD).delete()  # first, so that a partly deleted folder is never valid
            folder.delete()

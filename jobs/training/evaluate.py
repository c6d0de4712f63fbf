"""Evaluation of examples: `evaluate` on Ray Data actors, `evaluate_here` in the calling process, for example in a Ray task
that already holds a model. Both call the same actors and give the same answers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysift.actors.contract import RowActor
from raysift.actors.generator import Generator
from raysift.actors.language_model import resolve_model
from raysift.actors.likelihood import AnswerLoss, Likelihood
from raysift.actors.loaded import LoadedModel, load
from raysift.actors.train_checkpoints import template_of
from raysift.evaluation.metrics import EvalConfig
from raysift.evaluation.report import (
    CHOOSE,
    GENERATE,
    LOSS,
    EvalReport,
    Record,
    answers_by_id,
    choose_examples,
    make_report,
    question_rows,
)
from raysift.jobs.runs.progress import Showing, silent
from raysift.records import Example
from raysift.settings.generation import GenerationSettings
from raysift.settings.resources import Resources
from raysift.storage import Location

ACTORS: dict[str, type[RowActor]] = {GENERATE: Generator, CHOOSE: Likelihood, LOSS: AnswerLoss}
ANSWERS_FILE = "answers.parquet"
REPORT_FILE = "report.json"


def evaluate(
    examples: Iterable[Example],
    model: str,
    out: Location,
    config: EvalConfig,
    resources: Resources,
    *,
    adapter: str | Location | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    progress: Showing = silent,
) -> EvalReport:
    """Answer and score the examples on pools of actors; writes `answers.parquet` and `report.json` below `out`.

    When restarted with the same settings after a kill, it keeps the answers already written.
    """
    from raysift.jobs.cluster.machines import spread
    from raysift.jobs.on_ray.generation import generate, recorded_backend
    from raysift.jobs.on_ray.raydata import map_rows

    resolve_model(model, "tokenizer")
    started = time.perf_counter()
    chosen = choose_examples(examples, config)
    found: dict[str, dict[int, Record]] = {}
    answered_by: dict[str, str] = {}
    for name, rows in question_rows(chosen, config).items():
        folder = (out / name).make_folder()
        questions = folder / "questions.parquet"
        with questions.open_output() as stream:
            pq.write_table(rows, stream)
        own = spread(resources, rows.num_rows)
        loads: dict[str, Any] = {"adapter": adapter, "trust_remote_code": trust_remote_code}
        if name == GENERATE:
            loads |= {"dtype": dtype, "rows": rows.num_rows, "progress": progress, "whole": False}
            files = generate([questions], model, folder, _generation(config), own, **loads)
            answered_by = recorded_backend(folder)
        else:
            arguments = _arguments(name, config, model, **loads) | {"device": own.placed_on, "threads": own.threads}
            arguments["dtype"] = dtype
            files = map_rows([questions], ACTORS[name], arguments, folder, own, rows=rows.num_rows, progress=progress)
        answers = pa.concat_tables([pq.read_table(file.path, filesystem=file.fs) for file in files])
        found[name] = answers_by_id(name, rows, answers)
    report = replace(make_report(chosen, found, config, time.perf_counter() - started), answered_by=answered_by)
    with (out / ANSWERS_FILE).open_output() as stream:
        pq.write_table(report.answers, stream)
    (out / REPORT_FILE).write(json.dumps(report.values, indent=2) + "\n")
    return replace(report, files=(ANSWERS_FILE, REPORT_FILE))


def evaluate_here(
    examples: Iterable[Example],
    model: str | LoadedModel,
    config: EvalConfig,
    *,
    adapter: str | Location | None = None,
    trust_remote_code: bool = False,
    device: str = "auto",
    threads: int | None = None,
) -> EvalReport:
    """Answer and score the examples in this process, with a model that is loaded once here or already loaded."""
    chosen = choose_examples(examples, config)
    loaded = load(model, adapter, device=device, threads=threads, trust_remote_code=trust_remote_code)
    started = time.perf_counter()
    found = {
        name: answers_by_id(name, rows, ACTORS[name](**_arguments(name, config, loaded))(rows))
        for name, rows in question_rows(chosen, config).items()
    }
    return make_report(chosen, found, config, time.perf_counter() - started)


def _arguments(
    name: str,
    config: EvalConfig,
    model: str | LoadedModel,
    adapter: str | Location | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "model": model,
        "adapter": adapter,
        "template": template_of(config.template, model, adapter),
        "max_length": config.max_length,
        "trust_remote_code": trust_remote_code,
    }
    if name == GENERATE:
        arguments |= {name: getattr(config, name) for name in ("max_new_tokens", "temperature", "seed")}
    return arguments


def _generation(config: EvalConfig) -> GenerationSettings:
    """The same settings as generation names them; a model that leaves no room for a prompt fails row by row, as it does here."""
    names = ("max_new_tokens", "temperature", "seed", "template", "max_length", "backend")
    return GenerationSettings.model_construct(**{name: getattr(config, name) for name in names})

"""Evaluation on Ray Data actors: `evaluate` for examples, `validation_loss` for conversations.

`evaluate_here` and `validation_loss_here` do the same inside the calling process, without Ray: for a Ray task that
holds a model already, and for tests. Both ways call the same actors and give the same answers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysift.actors.contract import RowActor
from raysift.actors.generator import Generator
from raysift.actors.language_model import resolve_model
from raysift.actors.likelihood import AnswerLoss, Likelihood
from raysift.actors.loaded import LoadedModel, load
from raysift.actors.train_checkpoints import template_of
from raysift.errors import StageError
from raysift.evaluation.intervals import Interval, mean_interval, ratio_interval
from raysift.evaluation.metrics import EvalConfig
from raysift.evaluation.report import (
    CHOOSE,
    GENERATE,
    LOSS,
    Answer,
    EvalReport,
    answers_by_id,
    choose_examples,
    make_report,
    question_rows,
)
from raysift.records import ERROR, ID, Example
from raysift.settings.resources import Resources
from raysift.storage import Location

if TYPE_CHECKING:
    from raysift.actors.contract import Row

ACTORS: dict[str, type[RowActor]] = {GENERATE: Generator, CHOOSE: Likelihood, LOSS: AnswerLoss}
ANSWERS_FILE = "answers.parquet"
REPORT_FILE = "report.json"
BLOCKS_PER_WORKER = 4


def evaluate(
    examples: Iterable[Example],
    model: str,
    out: Location,
    config: EvalConfig,
    resources: Resources,
    *,
    adapter: str | Location | None = None,
    trust_remote_code: bool = False,
    progress: bool = False,
) -> EvalReport:
    """Answer and score the examples on pools of actors; writes `answers.parquet` and `report.json` below `out`.

    Killed and started again with the same settings it keeps the answers that were written.
    """
    resolve_model(model)
    started = time.perf_counter()
    chosen = choose_examples(examples, config)
    found: dict[str, dict[int, Answer]] = {}
    for name, rows in question_rows(chosen, config).items():
        folder = (out / name).make_folder()
        questions = folder / "questions.parquet"
        with questions.open_output() as stream:
            pq.write_table(rows, stream)
        arguments = _placed(_arguments(name, config, model, adapter, trust_remote_code), resources)
        answers = _on_ray([questions], rows.num_rows, ACTORS[name], arguments, folder, resources, progress)
        found[name] = answers_by_id(name, rows, answers)
    report = make_report(chosen, found, config, time.perf_counter() - started)
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
    """Answer and score the examples in this process, with a model that is loaded once or was loaded before."""
    chosen = choose_examples(examples, config)
    loaded = load(model, adapter, device=device, threads=threads, trust_remote_code=trust_remote_code)
    started = time.perf_counter()
    found = {
        name: answers_by_id(name, rows, ACTORS[name](**_arguments(name, config, loaded))(rows))
        for name, rows in question_rows(chosen, config).items()
    }
    return make_report(chosen, found, config, time.perf_counter() - started)


@dataclass(frozen=True)
class LossReport:
    """Mean losses in nats, by token (what training minimises) and by row (each conversation counts alike)."""

    by_token: Interval
    by_row: Interval
    rows: int
    tokens: int
    truncated: int
    failed: int
    seconds: float = 0.0


def validation_loss(
    files: Sequence[Location],
    model: str,
    out: Location,
    config: EvalConfig,
    resources: Resources,
    *,
    adapter: str | Location | None = None,
    trust_remote_code: bool = False,
    progress: bool = False,
) -> LossReport:
    """Mean loss over the assistant's tokens in Parquet files of rows (`id`, `messages`), on a pool of actors."""
    resolve_model(model)
    started = time.perf_counter()
    count = sum(_rows_of(file) for file in files)
    arguments = _placed(_arguments(LOSS, config, model, adapter, trust_remote_code), resources)
    answers = _on_ray(files, count, AnswerLoss, arguments, out, resources, progress)
    if answers.num_rows != count:
        raise StageError(
            f"validation loss: {answers.num_rows} answers to {count} rows. Ids must be unique over all files; "
            f"delete {out} and run it again."
        )
    return _loss_report(answers, config, time.perf_counter() - started)


def validation_loss_here(rows: pa.Table, model: str | LoadedModel, config: EvalConfig) -> LossReport:
    """The same for a table of rows in this process."""
    started = time.perf_counter()
    answers = AnswerLoss(**_arguments(LOSS, config, model))(rows)
    return _loss_report(answers, config, time.perf_counter() - started)


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


def _placed(arguments: dict[str, Any], resources: Resources) -> dict[str, Any]:
    return arguments | {"device": resources.placed_on, "threads": resources.threads}


def _on_ray(
    files: Sequence[Location],
    count: int,
    actor: type[RowActor],
    arguments: dict[str, Any],
    out: Location,
    resources: Resources,
    progress: bool,
) -> pa.Table:
    """All answers of a pool of actors; test sets are small, so blocks are cut to give every worker some."""
    from raysift.jobs.on_ray.raydata import map_rows, pool_size

    share = -(-count // (BLOCKS_PER_WORKER * pool_size(resources)))
    block_rows = min(resources.block_rows, max(resources.batch_rows, share))
    cut = resources.model_copy(update={"block_rows": block_rows})
    answers = map_rows(files, actor, arguments, out, cut, progress=progress)
    return pa.concat_tables([pq.read_table(file.path, filesystem=file.fs) for file in answers])


def _rows_of(file: Location) -> int:
    with file.open_input() as stream:
        return int(pq.read_metadata(stream).num_rows)


def _loss_report(answers: pa.Table, config: EvalConfig, seconds: float) -> LossReport:
    rows: list[Row] = sorted(answers.to_pylist(), key=lambda row: row[ID])
    sound = [row for row in rows if row[ERROR] is None]
    if not sound:
        reason = rows[0][ERROR] if rows else "there are none"
        raise StageError(f"validation loss: none of {len(rows)} rows has a loss; the first says: {reason}.")
    losses, tokens = [row["loss"] for row in sound], [row["n_label_tokens"] for row in sound]
    totals = [loss * count for loss, count in zip(losses, tokens, strict=True)]
    return LossReport(
        by_token=ratio_interval(totals, tokens, config.confidence),
        by_row=mean_interval(losses, config.confidence),
        rows=len(sound),
        tokens=sum(tokens),
        truncated=sum(row["truncated"] for row in sound),
        failed=len(rows) - len(sound),
        seconds=seconds,
    )

"""A judge reads both answers of each question, in both orders: on a pool of actors, or through `ray.data.llm` on vLLM.

Both write the same columns (raysift.actors.comparer). An engine takes one prompt per row, so each question becomes two
rows there. They are joined by example and order once all answers are back.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from raysift.actors.comparer import Comparer, join_orders, load_weigher
from raysift.actors.contract import Failed, Row
from raysift.actors.vllm_comparer import ComparisonAsker, ComparisonReader
from raysift.config import CommonConfig
from raysift.jobs.on_ray.fitting import need_to_answer, with_room
from raysift.jobs.on_ray.raydata import map_rows
from raysift.jobs.pairwise.sides import read_row_dicts, write_table
from raysift.jobs.runs.run import Run, StageResult
from raysift.jobs.runs.tables import Tally, count_answers, relative
from raysift.jobs.scoring.quality import Unparsable, judge_arguments, judge_through_vllm
from raysift.jobs.stages import loading
from raysift.pairwise.rows import ORDER, ORDERS, order_key, rows_by_order
from raysift.pairwise.settings import WinRateSettings
from raysift.records import ERROR, ID
from raysift.scoring.columns import INPUT_TOKENS, TRUNCATED
from raysift.storage import Location

ASKED_FILE, BY_ORDER_FILE, JOINED_FILE = "questions.parquet", "questions-by-order.parquet", "compared.parquet"


def compare_answers(
    stage: str,
    run: Run,
    config: CommonConfig,
    settings: WinRateSettings,
    rows: pa.Table,
    folder: Location,
) -> StageResult:
    """Judge each pair of answers of `rows_to_compare` in both orders; counts and reports replies without a verdict."""

    def work(own: CommonConfig) -> list[Location]:
        if settings.judge.backend == "vllm":
            return _through_vllm(stage, run, own, settings, rows, folder)
        return _on_actors(run, own, settings, rows, folder)

    need = None if settings.judge.backend == "vllm" else need_to_answer(config, settings.judge_model)
    answers = with_room(run, stage, config, need, work, "score", settings.judge_model)
    cut, unparsable = Tally(TRUNCATED), Unparsable()

    def look_at(chunk: pa.Table) -> None:
        cut(chunk)
        unparsable(chunk)

    counts = count_answers(stage, answers, len(rows), [TRUNCATED], look_at) | {"truncated": cut.counts[TRUNCATED]}
    if counts["truncated"]:
        run.console.note(
            f"{stage}: {counts['truncated']} of {len(rows)} texts were longer than the judge reads, and cut"
        )
    counts["unparsable"] = unparsable.count
    if counts["unparsable"]:
        run.console.note(
            f"{stage}: {counts['unparsable']} of {len(rows)} questions got a reply that is no verdict, and have failed"
        )
    return StageResult(files={"answers": relative(answers, folder)}, counts=counts, rows=len(rows))


def _on_actors(
    run: Run,
    config: CommonConfig,
    settings: WinRateSettings,
    rows: pa.Table,
    folder: Location,
) -> list[Location]:
    arguments = {
        "model": settings.judge_model,
        "max_length": settings.judge.max_length,
        "settings": settings.comparison,
    }
    files = [write_table(rows, folder / ASKED_FILE)]
    placed, resources = arguments | loading(config, settings.judge_model), config.resources
    return map_rows(files, Comparer, placed, folder, resources, rows=len(rows), progress=run.progress)


def _through_vllm(
    stage: str,
    run: Run,
    config: CommonConfig,
    settings: WinRateSettings,
    rows: pa.Table,
    folder: Location,
) -> list[Location]:
    files = [write_table(rows_by_order(rows), folder / BY_ORDER_FILE)]
    arguments = judge_arguments(config, settings.judge_model, settings.judge.max_length, settings.comparison)
    spellings = load_weigher(**arguments).spellings
    found = judge_through_vllm(
        *(
            stage,
            run,
            config,
            files,
            len(rows) * len(ORDERS),
            folder,
            ComparisonAsker,
            ComparisonReader,
            arguments,
            spellings,
        ),
        beside={INPUT_TOKENS: 0, TRUNCATED: False, ORDER: ""},
    )
    count_answers(stage, found, len(rows) * len(ORDERS))
    return [write_table(_joined(rows, found), folder / JOINED_FILE)]


def _joined(rows: pa.Table, answers: Sequence[Location]) -> pa.Table:
    """A comparer's columns, joined from one answer per order."""
    by_key = {row[ID]: row for row in read_row_dicts(answers)}
    records = []
    for number in rows[ID].to_pylist():
        halves = {order: by_key[order_key(number, order)] for order in ORDERS}
        found: dict[str, Row | Failed] = {
            order: half if half[ERROR] is None else Failed(half[ERROR]) for order, half in halves.items()
        }
        tokens = sum(half[INPUT_TOKENS] or 0 for half in halves.values())
        joined = join_orders(found, tokens, any(half[TRUNCATED] for half in halves.values()))
        records.append({ID: number, ERROR: joined.message} if isinstance(joined, Failed) else {ID: number, **joined})
    return pa.Table.from_pylist(records, schema=Comparer.answer_schema())

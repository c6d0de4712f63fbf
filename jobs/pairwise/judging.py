"""The stages of a win rate after the answers: `judge`, one for each aspect, and `win_rate` (verdicts and table).

Rows are joined by the example's id, or by a hash of it and the answer, never by position. Equal answers to one question
are not judged, so they cannot differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import pyarrow as pa

from raysift.errors import StageError
from raysift.jobs.pairwise.sides import drawn_examples, read_rows, write_table
from raysift.jobs.runs.run import Run, StageResult
from raysift.jobs.runs.tables import publish
from raysift.manifest import Manifest
from raysift.pairwise.rows import (
    Question,
    Reading,
    readings_of_comparison,
    readings_of_scores,
    rows_to_compare,
    rows_to_score,
)
from raysift.pairwise.settings import Aspect, ComparisonSettings, WinRateSettings, prompt_of_aspect
from raysift.pairwise.verdicts import RESULT, decide, result_record, win_line, win_table
from raysift.records import ERROR, ID
from raysift.scoring.columns import SCORE_COLUMN
from raysift.scoring.settings import JudgeSettings, QualitySettings
from raysift.settings.config import CommonConfig
from raysift.storage import Location

RESULT_FILE = "win_rate.parquet"
Asking = TypeVar("Asking", JudgeSettings, ComparisonSettings)
MOST_LISTED = 100  # failed questions that the manifest names; the table of questions has them all


def judge(
    run: Run,
    config: CommonConfig,
    settings: WinRateSettings,
    questions: Sequence[Question],
    inputs: Mapping[str, Any],
    aspect: Aspect | None,
) -> Manifest:
    """Scores of the answers, or weights of the verdicts, all in all or by one aspect."""
    from raysift.jobs.on_ray.raydata import spread
    from raysift.jobs.pairwise.comparing import compare_answers
    from raysift.jobs.scoring.quality import score_answers

    compares = settings.by == "comparison"
    name = f"judge-{aspect}" if aspect else "judge"

    def body(folder: Location) -> StageResult:
        rows = rows_to_compare(questions) if compares else rows_to_score(questions)
        if not len(rows):  # all answers are missing or alike
            return StageResult(
                files={"answers": []}, counts=dict.fromkeys(("rows_in", "kept", "failed", "truncated"), 0)
            )
        here = config.model_copy(update={"resources": spread(config.resources, len(rows))})
        if compares:
            return compare_answers(name, run, here, settings, _by_aspect(settings.comparison, aspect), rows, folder)
        files = [write_table(rows, folder / "questions.parquet")]
        return score_answers(name, run, here, _scorer(settings.judge, aspect), files, len(rows), folder)

    asked: dict[str, Any] = {"by": settings.by, "judge": settings.judge, "aspect": aspect}
    asked |= {"comparison": settings.comparison} if compares else {}
    return run.stage(name, asked | drawn_examples(config, settings), inputs, body)


def count(
    run: Run,
    settings: WinRateSettings,
    questions: Sequence[Question],
    judged: Mapping[Aspect | None, Manifest],
    titles: Mapping[str, str],
) -> Manifest:
    """Verdicts of all questions, and the table."""

    def body(folder: Location) -> StageResult:
        tables = {
            aspect: {row[ID]: row for row in read_rows(run.files(manifest, "answers"))}
            for aspect, manifest in judged.items()
        }
        records, outcomes = [], []
        for question in questions:
            readings = _readings(question, settings, tables) if question.needs_judge else []
            outcomes.append(decide(question, readings, settings.margin))
            records.append(result_record(question, readings, outcomes[-1]))
        write_table(pa.Table.from_pylist(records, schema=RESULT), folder / RESULT_FILE)
        failed = [{ID: record[ID], ERROR: record[ERROR]} for record in records if record[ERROR]]
        total = win_line("total", outcomes, settings.confidence)
        if not total.n:
            raise StageError(
                f"win rate: none of {len(records)} questions has a verdict; the first: {failed[0][ERROR]}."
            )
        tasks = [q.example.task for q in questions]
        parts = [f"{q.example.task}/{q.example.subset}" if q.example.subset else q.example.task for q in questions]
        sets, subsets = (win_table(zip(n, outcomes, strict=True), settings.confidence) for n in (tasks, parts))
        table = {"sets": sets, "subsets": subsets if len(subsets) > len(sets) else []}
        return StageResult(
            files={"verdicts": [RESULT_FILE]},
            counts={"rows_in": len(records), "kept": total.n, "failed": total.failed},
            values={name: [vars(line) for line in lines] for name, lines in table.items()}
            | {"total": vars(total), "failed": failed[:MOST_LISTED], **titles},
            rows=len(records),
        )

    decides = {"margin": settings.margin, "confidence": settings.confidence}
    inputs = {manifest.stage: manifest.fingerprint for manifest in judged.values()}
    manifest = run.stage("win_rate", decides, inputs, body)
    publish(run.files(manifest, "verdicts")[0], run.folder / RESULT_FILE)
    return manifest


def _readings(
    question: Question, settings: WinRateSettings, tables: Mapping[Aspect | None, Mapping[int, Any]]
) -> list[Reading] | str:
    """All readings of a question, or why one of them is missing."""
    found: list[Reading] = []
    for aspect, rows in tables.items():
        if settings.by == "comparison":
            part = readings_of_comparison(question, rows)
        else:
            part = readings_of_scores(question, rows, SCORE_COLUMN[settings.judge.kind])
        if isinstance(part, str):
            return f"{aspect}: {part}" if aspect else part
        found += [reading._replace(aspect=aspect) for reading in part]
    return found


def _scorer(settings: QualitySettings, aspect: Aspect | None) -> QualitySettings:
    """The judge of single answers, asked by the aspect."""
    return settings.model_copy(update={"judge": _by_aspect(settings.judge, aspect)})


def _by_aspect(settings: Asking, aspect: Aspect | None) -> Asking:
    """The same with the aspect, if there is one, before its prompt."""
    if aspect is None:
        return settings
    return settings.model_copy(update={"prompt": prompt_of_aspect(settings.prompt, aspect)})

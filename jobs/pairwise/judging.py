"""The stages of a win rate after the answers: `judge`, and `win_rate` (verdicts and table).

Rows are joined by the example's id, or by a hash of it and the answer, never by position. Equal answers to one question
are not judged, so their scores cannot differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from raysift.config import CommonConfig
from raysift.errors import StageError
from raysift.jobs.pairwise.sides import drawn_examples, read_row_dicts, write_table
from raysift.jobs.runs.models import find_model, without_models
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
from raysift.pairwise.settings import WinRateSettings
from raysift.pairwise.verdicts import RESULT, decide, result_record, win_line, win_table
from raysift.records import ERROR, ID
from raysift.scoring.columns import SCORE_COLUMN
from raysift.storage import Location

RESULT_FILE = "win_rate.parquet"
MOST_LISTED = 100  # failed questions listed in the manifest; the table of questions lists all


def judge(
    run: Run,
    config: CommonConfig,
    settings: WinRateSettings,
    questions: Sequence[Question],
    inputs: Mapping[str, Any],
) -> Manifest:
    """Scores of the answers, or weights of the verdicts."""
    from raysift.jobs.cluster.machines import spread
    from raysift.jobs.pairwise.comparing import compare_answers
    from raysift.jobs.scoring.quality import score_answers

    compares = settings.by == "comparison"
    asking = settings.judge.model_copy(update={"model": find_model(run, config, settings.judge_model).name})

    def body(folder: Location) -> StageResult:
        rows = rows_to_compare(questions) if compares else rows_to_score(questions)
        if not len(rows):  # all answers are missing or equal
            return StageResult(
                files={"answers": []}, counts=dict.fromkeys(("rows_in", "kept", "failed", "truncated"), 0)
            )
        named = settings.model_copy(update={"judge": asking})
        here = config.model_copy(update={"resources": spread(config.resources, len(rows))})
        if compares:
            return compare_answers("judge", run, here, named, rows, folder)
        files = [write_table(rows, folder / "questions.parquet")]
        return score_answers("judge", run, here, asking, files, len(rows), folder)

    asked: dict[str, Any] = {"by": settings.by, "judge": without_models(settings.judge)}
    asked |= {"comparison": settings.comparison} if compares else {}
    return run.stage("judge", asked | drawn_examples(config, settings), inputs, body)


def count(
    run: Run,
    settings: WinRateSettings,
    questions: Sequence[Question],
    judged: Manifest,
    titles: Mapping[str, str],
) -> Manifest:
    """Count the verdicts of all questions, and write the table."""

    def body(folder: Location) -> StageResult:
        table = {row[ID]: row for row in read_row_dicts(run.files(judged, "answers"))}
        records, outcomes = [], []
        for question in questions:
            readings = _readings(question, settings, table) if question.needs_judge else []
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
        parted = {"sets": sets, "subsets": subsets if len(subsets) > len(sets) else []}
        return StageResult(
            files={"verdicts": [RESULT_FILE]},
            counts={"rows_in": len(records), "kept": total.n, "failed": total.failed},
            values={name: [vars(line) for line in lines] for name, lines in parted.items()}
            | {"total": vars(total), "failed": failed[:MOST_LISTED], **titles},
            rows=len(records),
        )

    decides = {"margin": settings.margin, "confidence": settings.confidence}
    manifest = run.stage("win_rate", decides, {"judge": judged.fingerprint}, body)
    publish(run.files(manifest, "verdicts")[0], run.folder / RESULT_FILE)
    return manifest


def _readings(
    question: Question, settings: WinRateSettings, judged: Mapping[int, Mapping[str, Any]]
) -> list[Reading] | str:
    """All readings of a question, or why there are none."""
    if settings.by == "comparison":
        return readings_of_comparison(question, judged)
    return readings_of_scores(question, judged, SCORE_COLUMN[settings.judge.kind])

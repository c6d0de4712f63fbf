"""The quality of rows: every row's own answer scored on a pool of actors, and the rows strictly beyond a bar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from raysift.actors.contract import RowActor
from raysift.actors.ifd import Ifd
from raysift.actors.judge import Judge
from raysift.actors.reward import Reward
from raysift.actors.vllm_judge import VllmJudge
from raysift.actors.vllm_reward import VllmReward
from raysift.config import CommonConfig
from raysift.jobs.generation import require_vllm
from raysift.jobs.run import Run, StageResult
from raysift.jobs.selection import write_rows
from raysift.jobs.stages import model_fingerprint
from raysift.jobs.tables import count_answers, count_true, read_chunks, relative
from raysift.manifest import Manifest
from raysift.records import ID
from raysift.scoring.columns import SCORE_COLUMN, TRUNCATED
from raysift.scoring.settings import QualitySettings, Threshold
from raysift.scoring.thresholds import Cut, cut_above, cut_below, describe_cut, describe_scale, gather_scores, histogram
from raysift.storage import Location

SCORERS: dict[tuple[str, str], type[RowActor]] = {
    ("reward", "transformers"): Reward,
    ("reward", "vllm"): VllmReward,
    ("judge", "transformers"): Judge,
    ("judge", "vllm"): VllmJudge,
    ("ifd", "transformers"): Ifd,
}


def judge(run: Run, config: CommonConfig, settings: QualitySettings, rows: Manifest) -> Manifest:
    """Score every row's own answer, on a pool of actors."""

    def body(folder: Location) -> StageResult:
        return score_answers("quality", run, config, settings, run.files(rows, "rows"), rows.counts["kept"], folder)

    inputs = {"rows": rows.fingerprint, "scorer": model_fingerprint(settings.scorer)}
    return run.stage("quality", {"scorer": settings}, inputs, body)


def keep(
    run: Run, name: str, threshold: Threshold, side: str, rows: Manifest, scored: Manifest, column: str
) -> Manifest:
    """The rows strictly beyond a bar, as files of their own; the bar, and how scores lie, are in the manifest."""

    def body(folder: Location) -> StageResult:
        files = run.files(scored, "answers")
        scores, unscored = gather_scores(chunk[column] for chunk in read_chunks(files, [column]))
        cut = (cut_above if side == "above" else cut_below)(scores, threshold, unscored)
        for warning in [*describe_scale(name, scores), *describe_cut(name, cut, threshold)]:
            run.console.note(warning)
        passing = _passing_ids(files, column, cut)
        names = write_rows(run.files(rows, "rows"), passing, folder)
        counts = {"rows_in": cut.passed + cut.failed + unscored, "kept": cut.passed, "failed": unscored}
        return StageResult(
            files={"rows": names},
            counts=counts | {"rejected": {f"not {side} the threshold": cut.failed}},
            values={"cut": cut.as_dict(), "histogram": [vars(bin) for bin in histogram(scores)]},
            rows=counts["rows_in"],
        )

    inputs = {"rows": rows.fingerprint, "scores": scored.fingerprint}
    return run.stage(name, {"threshold": threshold, "side": side, "column": column}, inputs, body)


def score_column(settings: Any) -> str:
    """The column of the scorer's answers that counts."""
    return SCORE_COLUMN[settings.scorer.kind]


def score_answers(
    stage: str,
    run: Run,
    config: CommonConfig,
    settings: QualitySettings,
    files: Sequence[Location],
    expected: int,
    folder: Location,
) -> StageResult:
    """Every row of the files, scored by the actor of that kind."""
    from raysift.jobs.raydata import map_rows

    arguments: dict[str, Any] = {"model": settings.scorer, "max_length": settings.max_length}
    if settings.backend == "vllm":
        require_vllm(stage)
        arguments |= {"gpus": config.resources.gpus_per_worker, "trust_remote_code": config.trust_remote_code}
    else:
        arguments |= loading(config)
    part: Any = settings if settings.kind == "reward" else getattr(settings, settings.kind)
    answers = map_rows(
        files,
        SCORERS[settings.kind, settings.backend],
        arguments | {"settings": part},
        folder,
        config.resources,
        progress=run.console.shows_progress,
    )
    counts = count_answers(stage, answers, expected) | {"truncated": count_true(answers, TRUNCATED)}
    if counts["truncated"]:
        run.console.note(
            f"{stage}: {counts['truncated']} of {expected} rows were longer than the scorer reads, and cut"
        )
    return StageResult(files={"answers": relative(answers, folder)}, counts=counts, rows=expected)


def loading(config: CommonConfig) -> dict[str, Any]:
    """Where an actor loads its model, and whether code that ships with it may run."""
    resources = config.resources
    return {
        "device": resources.device,
        "threads": resources.threads,
        "trust_remote_code": config.trust_remote_code,
    }


def _passing_ids(files: Sequence[Location], column: str, cut: Cut) -> np.ndarray:
    """Ids whose score is beyond the bar, in rising order."""
    found = [np.empty(0, np.int64)]
    for chunk in read_chunks(files, [ID, column]):
        scored = chunk.filter(chunk[column].is_valid())
        found.append(scored[ID].to_numpy()[cut.passes(scored[column].to_numpy())])
    return np.sort(np.concatenate(found))

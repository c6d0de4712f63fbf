"""The quality of rows: every row's own answer scored on a pool of actors, and the rows strictly beyond a bar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ray.data import Dataset

from raysift.actors.contract import RowActor
from raysift.actors.ifd import Ifd
from raysift.actors.judge import Judge, flatten, load_rater
from raysift.actors.responder import LOGPROBS
from raysift.actors.reward import Reward
from raysift.actors.vllm_judge import JudgeAsker, JudgeReader
from raysift.actors.vllm_reward import VllmReward
from raysift.config import CommonConfig
from raysift.errors import DataError
from raysift.jobs.on_ray.fitting import need_to_answer, with_room
from raysift.jobs.on_ray.generation import require_vllm
from raysift.jobs.on_ray.lives import Watch
from raysift.jobs.on_ray.raydata import answer_rows, map_rows
from raysift.jobs.on_ray.vllm_stage import Request, answer_through_engine, build_engine, explained, logprobs_of
from raysift.jobs.runs.chosen_rows import write_rows
from raysift.jobs.runs.models import computing, find_model, number_type, without_models
from raysift.jobs.runs.run import Run, StageResult
from raysift.jobs.runs.tables import Tally, count_answers, read_chunks, relative
from raysift.jobs.stages import loading, require_answers
from raysift.manifest import Manifest
from raysift.records import ERROR, ID
from raysift.scoring.columns import INPUT_TOKENS, SCORE_COLUMN, TRUNCATED
from raysift.scoring.settings import QualitySettings, Threshold
from raysift.scoring.thresholds import Cut, cut_above, cut_below, describe_cut, describe_scale, gather_scores, histogram
from raysift.storage import Location

UNPARSABLE = "unparsable:"  # prefix of the message for a reply that is no rating (raysift.scoring.judging)

# Actors that score by themselves; a judge on vLLM does not, see `_judge_through_vllm`.
SCORERS: dict[tuple[str, str], type[RowActor]] = {
    ("reward", "transformers"): Reward,
    ("reward", "vllm"): VllmReward,
    ("judge", "transformers"): Judge,
    ("ifd", "transformers"): Ifd,
}


def judge(run: Run, config: CommonConfig, settings: QualitySettings, rows: Manifest) -> Manifest:
    """Score every row's own answer, on a pool of actors."""
    model = find_model(run, config, settings.scorer)

    def body(folder: Location) -> StageResult:
        found = settings.model_copy(update={"model": model.name})
        return score_answers("quality", run, config, found, run.files(rows, "rows"), rows.counts["kept"], folder)

    inputs = {"rows": rows.fingerprint, "scorer": computing(config, model)}
    return run.stage("quality", {"scorer": without_models(settings)}, inputs, body)


def keep(
    run: Run,
    name: str,
    threshold: Threshold,
    side: str,
    rows: Manifest,
    scored: Manifest,
    column: str,
    needed_by: str | None = None,
) -> Manifest:
    """The rows strictly beyond a bar, as files of their own; the manifest holds the bar and the distribution of scores.

    `needed_by` names the setting of the bar if a run cannot go on without a row beyond it.
    """

    def body(folder: Location) -> StageResult:
        files = run.files(scored, "answers")
        held = _Held(column)
        for chunk in read_chunks(files, [ID, column]):
            held(chunk)
        (scores, unscored), ids = held.scores, held.ids
        cut = (cut_above if side == "above" else cut_below)(scores, threshold, unscored)
        if needed_by and len(scores) and not cut.passed:
            raise _nothing_beyond(name, needed_by, threshold, cut, scores)
        for warning in describe_cut(name, cut, threshold):
            run.console.note(warning)
        names = write_rows(run.files(rows, "rows"), np.sort(ids[cut.passes(scores)]), folder)
        counts = {"rows_in": cut.passed + cut.failed + unscored, "kept": cut.passed, "failed": unscored}
        return StageResult(
            files={"rows": names},
            counts=counts | {"rejected": {f"not {side} the threshold": cut.failed}},
            values={"cut": cut.as_dict(), "histogram": _bins(scores)},
            rows=counts["rows_in"],
        )

    inputs = {"rows": rows.fingerprint, "scores": scored.fingerprint}
    return run.stage(name, {"threshold": threshold, "side": side, "column": column}, inputs, body)


def score_column(settings: Any) -> str:
    """The column of the scorer's answers that holds the score."""
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
    """Every row of the files, scored by the scorer for the settings' kind and backend."""
    if settings.backend == "vllm":
        require_vllm(stage, config.resources)
    score = _judge_through_vllm if (settings.kind, settings.backend) == ("judge", "vllm") else _score_on_actors
    need = None if settings.backend == "vllm" else need_to_answer(config, settings.scorer)

    def work(own: CommonConfig) -> list[Location]:
        return score(stage, run, own, settings, files, expected, folder)

    answers = with_room(run, stage, config, need, work, "score", settings.scorer)
    column, cut = SCORE_COLUMN[settings.kind], Tally(TRUNCATED)
    held, unparsable = _Held(column), Unparsable()

    def look_at(chunk: pa.Table) -> None:
        for each in (held, cut, unparsable):
            each(chunk)

    counts = count_answers(stage, answers, expected, [TRUNCATED, column], look_at) | {
        "truncated": cut.counts[TRUNCATED]
    }
    if counts["truncated"]:
        run.console.note(
            f"{stage}: {counts['truncated']} of {expected} rows were longer than the scorer reads, and cut"
        )
    require_answers(stage, run, answers, counts, folder)
    if settings.kind == "judge":
        counts["unparsable"] = unparsable.count
    if counts.get("unparsable"):
        run.console.note(
            f"{stage}: {counts['unparsable']} of {expected} replies of the judge were no rating, and these rows have no score"
        )
    scores, _ = held.scores
    for warning in describe_scale(stage, scores):
        run.console.note(warning)
    return StageResult(
        files={"answers": relative(answers, folder)},
        counts=counts,
        values={"histogram": _bins(scores)},
        rows=expected,
    )


class Unparsable:
    """Counts rows that failed because the judge's reply was none of those it was asked for, for `count_answers`."""

    count = 0

    def __call__(self, chunk: pa.Table) -> None:
        self.count += pc.sum(pc.starts_with(chunk[ERROR], UNPARSABLE)).as_py() or 0


class _Held:
    """Ids and scores of the rows that have a score, 16 bytes each: a quantile needs all of them."""

    def __init__(self, column: str) -> None:
        self.column, self._missing = column, 0
        self._ids: list[np.ndarray] = [np.empty(0, np.int64)]
        self._scores: list[np.ndarray] = [np.empty(0)]

    def __call__(self, chunk: pa.Table) -> None:
        scored = chunk.filter(chunk[self.column].is_valid())
        self._missing += len(chunk) - len(scored)
        self._ids.append(scored[ID].to_numpy())
        self._scores.append(scored[self.column].cast(pa.float64()).to_numpy())

    @property
    def ids(self) -> np.ndarray:
        return np.concatenate(self._ids)

    @property
    def scores(self) -> tuple[np.ndarray, int]:
        """The scores, none of which is NaN, and the number of rows without one."""
        return gather_scores(self._scores)[0], self._missing


def _score_on_actors(
    stage: str,
    run: Run,
    config: CommonConfig,
    settings: QualitySettings,
    files: Sequence[Location],
    expected: int,
    folder: Location,
) -> list[Location]:
    part: Any = settings if settings.kind == "reward" else getattr(settings, settings.kind)
    arguments = {"model": settings.scorer, "max_length": settings.max_length, "settings": part}
    resources, placed = config.resources, loading(config, settings.scorer)
    if settings.backend == "vllm":
        placed = {
            "gpus": resources.gpus_per_worker,
            "engine": resources.engine,
            "trust_remote_code": config.trust_remote_code,
            "dtype": placed["dtype"],
        }
    actor = SCORERS[settings.kind, settings.backend]
    return map_rows(files, actor, arguments | placed, folder, resources, rows=expected, progress=run.progress)


def _judge_through_vllm(
    stage: str,
    run: Run,
    config: CommonConfig,
    settings: QualitySettings,
    files: Sequence[Location],
    expected: int,
    folder: Location,
) -> list[Location]:
    arguments = judge_arguments(config, settings.scorer, settings.max_length, settings.judge)
    return judge_through_vllm(
        *(
            stage,
            run,
            config,
            files,
            expected,
            folder,
            JudgeAsker,
            JudgeReader,
            arguments,
            load_rater(**arguments).spellings,
        ),
        beside={INPUT_TOKENS: 0, TRUNCATED: False},
    )


def judge_arguments(config: CommonConfig, model: str, max_length: int | None, settings: Any) -> dict[str, Any]:
    """Arguments of a judge's asking and reading actors when an engine holds its weights."""
    return {
        "model": model,
        "settings": settings,
        "max_length": max_length,
        "trust_remote_code": config.trust_remote_code,
    }


def judge_through_vllm(
    stage: str,
    run: Run,
    config: CommonConfig,
    files: Sequence[Location],
    expected: int,
    folder: Location,
    asker: type[RowActor],
    reader: type[RowActor],
    arguments: dict[str, Any],
    spellings: Mapping[str, Sequence[int]],
    beside: Mapping[str, Any],
) -> list[Location]:
    """Files of rows judged by the probabilities of the reply's first token's spellings; `beside` as in `Request`."""
    model, limit, trusted = (arguments[name] for name in ("model", "max_length", "trust_remote_code"))
    request = Request(logprobs_of([number for _, number in flatten(spellings)]), LOGPROBS, beside=beside)

    dtype = number_type(config, model)

    def answer(dataset: Dataset, watch: Watch) -> Dataset:
        engine = build_engine(model, None, request, config.resources, limit, trusted, dtype)
        return answer_through_engine(dataset, asker, engine, reader, arguments, config.resources, watch)

    columns = [ID, *asker.inputs]
    with explained(stage):
        return answer_rows(files, columns, answer, folder, config.resources, rows=expected, progress=run.progress)


def _bins(scores: np.ndarray) -> list[dict[str, Any]]:
    return [vars(one) for one in histogram(scores)]


def _nothing_beyond(name: str, setting: str, threshold: Threshold, cut: Cut, scores: np.ndarray) -> DataError:
    """The error that no row is left to go on with, and what would leave some."""
    low, high = float(scores.min()), float(scores.max())
    if threshold.quantile is None:
        bar, remedy = f"{setting}.value={cut.value:g}", f"Set {setting}.value below {high:.6g}"
    else:
        bar, remedy = f"{setting}.quantile={threshold.quantile:g}, here {cut.value:g}", f"Lower {setting}.quantile"
    return DataError(
        f"{name}: none of {len(scores)} scores, from {low:.6g} to {high:.6g}, is {cut.side} the bar ({bar}), so no row is "
        f"left. {remedy}; {setting}.quantile=0 keeps all rows that have a score."
    )

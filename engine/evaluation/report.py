"""From examples to rows for the models, and from the models' answers to a table of scores.

Pure functions around three passes over a model: `generate` answers, `choose` weighs given choices, `loss` measures how
probable the reference answers are. Every example ends as scored, failed (with a message) or not scored (its metric is
not judged here); the counts add up to the examples that went in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from raysift.errors import DataError, StageError
from raysift.evaluation.examples import example_key, reference_answer, require_answerable, sample_examples
from raysift.evaluation.intervals import Interval, mean_interval, ratio_interval, wilson_interval
from raysift.evaluation.metrics import (
    CHOICE_METRICS,
    GRADED,
    LETTERS,
    METRICS,
    EvalConfig,
    choice_order,
    is_scored,
    normalised_scores,
    pick_choice,
    score_choice,
)
from raysift.pool.given_input import input_meta
from raysift.records import ERROR, ID, MESSAGE, MESSAGES, META, Example, Message

GENERATE, CHOOSE, LOSS = "generate", "choose", "loss"

SCORED, FAILED, NOT_SCORED = "scored", "failed", "not scored"

ANSWERS = pa.schema(
    [
        pa.field(ID, pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("subset", pa.string()),
        pa.field("split", pa.string()),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("answer", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("finished", pa.bool_()),
        pa.field("answer_loss", pa.float64()),
        pa.field("answer_tokens", pa.int64()),
        pa.field("answer_truncated", pa.bool_()),
        pa.field("answer_loss_error", pa.string()),
        pa.field(ERROR, pa.string()),
    ]
)

_ROWS = pa.schema(
    [(ID, pa.int64()), (MESSAGES, pa.list_(MESSAGE)), (META, pa.string()), ("choices", pa.list_(pa.string()))]
)

Record = Mapping[str, Any]


@dataclass(frozen=True)
class TaskScore:
    """A line of the table; `mean`, `low` and `high` are None where nothing could be scored."""

    task: str
    metric: str
    n: int
    mean: float | None
    low: float | None
    high: float | None
    failed: int = 0
    cut_off: int = 0
    """Answers that reached max_new_tokens (many of them mean that the limit decides the score); in a line of losses,
    reference answers that were cut at max_length."""


@dataclass(frozen=True)
class EvalReport:
    """What an evaluation found."""

    tasks: list[TaskScore]
    subsets: list[TaskScore]
    """The same by `task/subset`, for tasks that have several."""
    losses: list[TaskScore]
    """Mean loss over the tokens of the reference answers, in nats; n counts examples."""
    overall: TaskScore
    """The unweighted mean over the lines of `tasks`."""
    not_scored: dict[str, int]
    """`task: metric` and how many examples have that metric."""
    counts: dict[str, Any]
    answers: pa.Table = field(repr=False)
    """One row per example, in their order; see ANSWERS."""
    seconds: float = 0.0
    files: tuple[str, ...] = ()
    """What was written, relative to the folder."""

    @property
    def values(self) -> dict[str, Any]:
        """The numbers as plain JSON types."""
        return {
            "tasks": [vars(line) for line in self.tasks],
            "subsets": [vars(line) for line in self.subsets],
            "losses": [vars(line) for line in self.losses],
            "overall": vars(self.overall),
            "not_scored": self.not_scored,
            "counts": self.counts,
            "seconds": round(self.seconds, 3),
        }

    def scores(self) -> dict[str, float]:
        """Score by example id, for paired comparisons; only the scored ones."""
        columns = (self.answers[name].to_pylist() for name in (ID, "score"))
        return {name: score for name, score in zip(*columns, strict=True) if score is not None}


# --- before the model ------------------------------------------------------------------------------------------------


def choose_examples(examples: Iterable[Example], config: EvalConfig) -> list[Example]:
    """The examples that `config` asks for, checked: ids once, and all that each metric compares with."""
    wanted = [e for e in examples if config.split is None or e.split == config.split]
    kept = sample_examples(wanted, config.limit, config.seed)
    if not kept:
        of = f" of split '{config.split}'" if config.split else ""
        raise DataError(f"evaluate: there are no examples{of}; name files that hold some, or another evaluate.split.")
    seen: set[str] = set()
    for example in kept:
        if example.id in seen:
            raise DataError(f"evaluate: two examples have the id '{example.id}'; ids must be unique over all files.")
        seen.add(example.id)
        require_answerable(example)
        if config.choice_style == "letter" and len(example.choices or ()) > len(LETTERS):
            raise DataError(
                f"evaluate: example '{example.id}' has {len(example.choices or ())} choices, more than there are "
                "letters. Set evaluate.choice_style=text."
            )
    return kept


def question_rows(examples: Sequence[Example], config: EvalConfig) -> dict[str, pa.Table]:
    """The rows of each pass over a model; a pass without rows is left out."""
    rows: dict[str, list[dict[str, Any]]] = {GENERATE: [], CHOOSE: [], LOSS: []}
    for example in examples:
        row = {ID: example_key(example.id), META: input_meta(example)}
        if example.metric in METRICS:
            rows[GENERATE].append({**row, MESSAGES: _plain(example.prompt)})
        elif example.metric in CHOICE_METRICS:
            rows[CHOOSE].append({**row, **_choice_question(example, config)})
        answer = reference_answer(example)
        if config.answer_loss and is_scored(example.metric) and answer:
            messages = (*example.prompt, Message("assistant", answer))
            rows[LOSS].append({**row, MESSAGES: _plain(messages)})
    return {name: pa.Table.from_pylist(found, schema=_ROWS) for name, found in rows.items() if found}


def _choice_question(example: Example, config: EvalConfig) -> dict[str, Any]:
    assert example.choices is not None
    shown = [example.choices[i] for i in choice_order(example)]
    if config.choice_style == "text":
        return {MESSAGES: _plain(example.prompt), "choices": shown}
    letters = LETTERS[: len(shown)]
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(letters, shown, strict=True))
    *before, last = example.prompt
    question = Message(last.role, f"{last.content}\n\n{listed}\n\nAnswer with the letter alone.")
    return {MESSAGES: _plain((*before, question)), "choices": list(letters)}


def _plain(messages: Iterable[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


# --- after the model -------------------------------------------------------------------------------------------------


def answers_by_id(name: str, rows: pa.Table, answers: pa.Table) -> dict[int, Record]:
    """Answers by row id, after checking that each row has exactly one."""
    found: dict[int, Record] = {row[ID]: row for row in answers.to_pylist()}
    asked = set(rows[ID].to_pylist())
    if len(found) != answers.num_rows or found.keys() != asked:
        raise StageError(
            f"evaluate: pass '{name}' gave {answers.num_rows} answers to {len(found)} ids, {len(asked)} were asked. "
            "Delete the evaluation's folder and run it again."
        )
    return found


def make_report(
    examples: Sequence[Example], passes: Mapping[str, Mapping[int, Record]], config: EvalConfig, seconds: float = 0.0
) -> EvalReport:
    """Score all answers and sum them up."""
    records = [_judge(example, passes, config) for example in examples]
    scored = [record for record in records if record["status"] == SCORED]
    failed = [record for record in records if record["status"] == FAILED]
    not_scored: dict[str, int] = {}
    for record in records:
        if record["status"] == NOT_SCORED:
            name = f"{record['task']}: {record['metric']}"
            not_scored[name] = not_scored.get(name, 0) + 1
    judged = [record for record in records if record["status"] != NOT_SCORED]
    tasks = [_line(*key, group, config) for key, group in _groups(judged, lambda r: r["task"])]
    subsets = [_line(*key, group, config) for key, group in _groups(judged, lambda r: f"{r['task']}/{r['subset']}")]
    asked = [record for record in records if example_key(record[ID]) in passes.get(LOSS, {})]
    losses = [_loss_line(*key, group, config) for key, group in _groups(asked, lambda r: r["task"], "answer loss")]
    return EvalReport(
        tasks=tasks,
        subsets=subsets if len(subsets) > len(tasks) else [],
        losses=losses,
        overall=_overall(tasks, config),
        not_scored=dict(sorted(not_scored.items())),
        counts={
            "rows_in": len(records),
            "kept": len(scored),
            "rejected": {f"not scored: {name}": count for name, count in sorted(not_scored.items())},
            "failed": len(failed),
        },
        answers=pa.Table.from_pylist(records, schema=ANSWERS),
        seconds=seconds,
    )


def _judge(example: Example, passes: Mapping[str, Mapping[int, Record]], config: EvalConfig) -> dict[str, Any]:
    key = example_key(example.id)
    record: dict[str, Any] = dict.fromkeys(ANSWERS.names) | {
        ID: example.id,
        "task": example.task,
        "subset": example.subset,
        "split": example.split,
        "metric": example.metric,
        "status": SCORED,
    }
    measured = passes.get(LOSS, {}).get(key)
    if measured:
        record |= {
            "answer_loss": measured["loss"],
            "answer_tokens": measured["n_label_tokens"],
            "answer_truncated": measured["truncated"],
            "answer_loss_error": measured[ERROR],
        }
    if not is_scored(example.metric):
        return record | {"status": NOT_SCORED}
    answer = passes[GENERATE if example.metric in METRICS else CHOOSE][key]
    if answer[ERROR] is not None:
        return record | {"status": FAILED, ERROR: answer[ERROR]}
    if example.metric in METRICS:
        score = METRICS[example.metric](answer["answer"], example)
        return record | {"answer": answer["answer"], "finished": answer["finished"], "score": score}
    picked = _picked(example, answer, config)
    assert example.choices is not None
    return record | {"answer": example.choices[picked], "score": score_choice(picked, example)}


def _picked(example: Example, answer: Record, config: EvalConfig) -> int:
    """Index of the most probable choice in the example's own order."""
    shown = normalised_scores(
        answer["choice_logprobs"], answer["choice_tokens"], answer["choice_bytes"], config.choice_normalisation
    )
    place = {choice: i for i, choice in enumerate(choice_order(example))}
    return pick_choice([shown[place[choice]] for choice in range(len(shown))], example)


def _groups(
    records: Iterable[Record], name: Callable[[Record], str], metric: str | None = None
) -> list[tuple[tuple[str, str], list[Record]]]:
    """Records by (name, metric), sorted, so that no table depends on the order of the examples."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((name(record), metric or record["metric"]), []).append(record)
    return sorted(groups.items())


def _line(task: str, metric: str, records: Sequence[Record], config: EvalConfig) -> TaskScore:
    scores = [record["score"] for record in records if record["status"] == SCORED]
    cut_off = sum(record["finished"] is False for record in records)
    failed = len(records) - len(scores)
    if not scores:
        return TaskScore(task, metric, 0, None, None, None, failed, cut_off)
    if metric in GRADED:
        interval = mean_interval(scores, config.confidence).within(0, 1)
    else:
        interval = wilson_interval(round(sum(scores)), len(scores), config.confidence)
    return TaskScore(task, metric, len(scores), *interval, failed, cut_off)


def _loss_line(task: str, metric: str, records: Sequence[Record], config: EvalConfig) -> TaskScore:
    sound = [record for record in records if record["answer_loss"] is not None]
    failed, cut_off = len(records) - len(sound), sum(bool(record["answer_truncated"]) for record in sound)
    if not sound:
        return TaskScore(task, metric, 0, None, None, None, failed, cut_off)
    tokens = [record["answer_tokens"] for record in sound]
    totals = [record["answer_loss"] * count for record, count in zip(sound, tokens, strict=True)]
    return TaskScore(task, metric, len(sound), *ratio_interval(totals, tokens, config.confidence), failed, cut_off)


def _overall(tasks: Sequence[TaskScore], config: EvalConfig) -> TaskScore:
    """Tasks count alike and are taken as given; the interval comes of their examples alone."""
    scored = [line for line in tasks if line.mean is not None]
    interval = Interval(0.0, None, None)
    if scored:
        mean = sum(line.mean for line in scored if line.mean is not None) / len(scored)
        interval = Interval(mean, None, None)
        halves = [(line.high - line.low) / 2 for line in scored if line.low is not None and line.high is not None]
        if len(halves) == len(scored):
            half = sum(h * h for h in halves) ** 0.5 / len(scored)
            interval = Interval(mean, mean - half, mean + half).within(0, 1)
    return TaskScore(
        "overall",
        "mean of tasks",
        sum(line.n for line in tasks),
        interval.mean if scored else None,
        interval.low,
        interval.high,
        sum(line.failed for line in tasks),
        sum(line.cut_off for line in tasks),
    )

"""Input and output rows of the models and judge of a win rate, keyed by example, or by example and answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import pyarrow as pa

from raysift.evaluation.examples import example_key
from raysift.pool.given_input import input_meta
from raysift.records import ERROR, ID, MESSAGE, MESSAGES, META, ChatMessage, Example

ORDERS = ("own_first", "against_first")
"""The two orders of the answers, for a judge that reads both."""

READING = pa.struct([*((name, pa.float64()) for name in ("own", "against", "tie")), ("order", pa.string())])


class Answer(NamedTuple):
    """A side's answer, or None with the reason."""

    text: str | None
    error: str | None = None


class Question(NamedTuple):
    """An example and both sides' answers."""

    example: Example
    own: Answer
    against: Answer

    @property
    def needs_judge(self) -> bool:
        """Whether both sides answered, with different texts."""
        return None not in (self.own.text, self.against.text) and self.own.text != self.against.text


class Reading(NamedTuple):
    """One reading of both answers by a judge: their scores, or, with `tie`, the probabilities that each is better or neither."""

    own: float
    against: float
    tie: float | None = None
    order: str | None = None


ASKED = pa.schema([(ID, pa.int64()), (MESSAGES, pa.list_(MESSAGE))])
COMPARED = pa.schema([*ASKED, ("own_answer", pa.string()), ("against_answer", pa.string())])
ORDER = "order"


def rows_to_answer(examples: Iterable[Example]) -> pa.Table:
    """The examples as conversations without an answer."""
    rows = [{ID: example_key(e.id), MESSAGES: _plain(e), META: input_meta(e)} for e in examples]
    return pa.Table.from_pylist(rows, schema=ASKED.append(pa.field(META, pa.string())))


def rows_to_score(questions: Iterable[Question]) -> pa.Table:
    """A conversation for each distinct answer to each question, sorted so that swapping the sides changes nothing."""
    rows = {}
    for question in filter(lambda q: q.needs_judge, questions):
        for text in (question.own.text, question.against.text):
            talk = [*_plain(question.example), {"role": "assistant", "content": text}]
            rows[answer_key(question.example, text)] = talk
    return pa.Table.from_pylist([{ID: key, MESSAGES: rows[key]} for key in sorted(rows)], schema=ASKED)


def rows_to_compare(questions: Iterable[Question]) -> pa.Table:
    """The questions that need a judge, each with both answers."""
    rows = [
        {ID: example_key(e.id), MESSAGES: _plain(e), "own_answer": own.text, "against_answer": against.text}
        for e, own, against in filter(lambda q: q.needs_judge, questions)
    ]
    return pa.Table.from_pylist(rows, schema=COMPARED)


def rows_by_order(rows: pa.Table) -> pa.Table:
    """One row per order from each row of `rows_to_compare`, for engines that take one prompt per row."""
    keys = [order_key(number, order) for order in ORDERS for number in rows[ID].to_pylist()]
    twice = pa.concat_tables(
        [rows.append_column(ORDER, pa.array([order] * len(rows), pa.string())) for order in ORDERS]
    )
    return twice.set_column(0, ID, pa.array(keys, pa.int64()))


def order_key(number: int, order: str) -> int:
    """The int64 id of a row to compare in one order."""
    return example_key(f"{number}\x00{order}")


def answer_key(example: Example, text: str | None) -> int:
    """The int64 id of an answer to an example, as actors see it."""
    return example_key(f"{example.id}\x00{text}")


def _plain(example: Example) -> list[ChatMessage]:
    """The prompt without a final assistant turn, which generation ignores too."""
    turns = [{"role": message.role, "content": message.content} for message in example.prompt]
    return turns[:-1] if turns[-1]["role"] == "assistant" else turns


def readings_of_scores(question: Question, scored: Mapping[int, Mapping[str, Any]], column: str) -> list[Reading] | str:
    """A single reading from the scores of both answers, or why there is none."""
    found = [scored[answer_key(question.example, a.text)] for a in (question.own, question.against)]
    for side, row in zip(("own", "against"), found, strict=True):
        if row[ERROR] is not None:
            return f"{row[ERROR]} ({side} answer)"
    return [Reading(found[0][column], found[1][column])]


def readings_of_comparison(question: Question, compared: Mapping[int, Mapping[str, Any]]) -> list[Reading] | str:
    """A reading for each order, or why there are none."""
    row = compared[example_key(question.example.id)]
    if row[ERROR] is not None:
        return str(row[ERROR])
    first, second, tie = ([row[f"p_{name}_{order}"] for order in ORDERS] for name in ("first", "second", "tie"))
    return [
        Reading(first[0], second[0], tie[0], ORDERS[0]),
        Reading(second[1], first[1], tie[1], ORDERS[1]),
    ]

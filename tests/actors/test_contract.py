"""What every actor keeps, shown on actors of a few lines."""

import logging

import pyarrow as pa
import pytest

from raysift.actors.contract import Failed, RowActor
from raysift.errors import StageError
from raysift.records import ERROR, ID


class Lengths(RowActor):
    """Length of `text`; a text of `bad` fails its row, one of `poison` raises for the whole batch."""

    inputs = ("text",)
    outputs = pa.schema([("n", pa.int64())])

    def __init__(self, breaker=200):
        self.max_failures_in_a_row = breaker
        self.batches = []

    def answer(self, rows):
        self.batches.append([row[ID] for row in rows])
        if any(row["text"] == "poison" for row in rows):
            raise ValueError("poisoned")
        return [Failed("bad row") if row["text"] == "bad" else {"n": len(row["text"])} for row in rows]


def batch(*texts):
    return pa.table({ID: pa.array(range(len(texts)), pa.int64()), "text": list(texts), "other": [0] * len(texts)})


def test_every_row_is_answered_once_in_order_with_the_declared_columns():
    answers = Lengths()(batch("a", "bad", "ccc"))
    assert answers.schema == Lengths.answer_schema()
    assert answers.to_pylist() == [
        {ID: 0, "n": 1, ERROR: None},
        {ID: 1, "n": None, ERROR: "bad row"},
        {ID: 2, "n": 3, ERROR: None},
    ]


def test_a_poisoned_batch_goes_row_by_row_and_only_the_poisoned_row_fails(caplog):
    actor = Lengths()
    with caplog.at_level(logging.WARNING):
        answers = actor(batch("a", "poison", "ccc")).to_pylist()
    assert [row["n"] for row in answers] == [1, None, 3]
    assert answers[1][ERROR] == "ValueError: poisoned"
    assert actor.batches == [[0, 1, 2], [0], [1], [2]]
    assert "Lengths: a batch of 3 rows failed" in caplog.text


def test_the_input_batch_is_left_as_it_was():
    given = batch("a", "bad", "poison")
    before = given.to_pydict()
    Lengths()(given)
    assert given.to_pydict() == before


def test_an_empty_batch_keeps_the_schema():
    answers = Lengths()(batch())
    assert (answers.num_rows, answers.schema) == (0, Lengths.answer_schema())


@pytest.mark.parametrize("text", ["bad", "poison"])
def test_breaker_raises_past_its_limit_and_over_batches(text):
    actor = Lengths(breaker=5)
    actor(batch(*[text] * 3))
    with pytest.raises(StageError, match="6 rows failed one after the other, the last with"):
        actor(batch(*[text] * 3))


def test_rows_at_fault_themselves_neither_trip_nor_reset_the_breaker():
    class Strict(Lengths):
        def answer(self, rows):
            return [Failed("no text", of_the_row=True) if row["text"] == "" else Failed("broken") for row in rows]

    actor = Strict(breaker=2)
    assert actor(batch(*[""] * 9))[ERROR].to_pylist() == ["no text"] * 9
    actor(batch("a", "", "b"))
    with pytest.raises(StageError, match="3 rows failed one after the other, the last with 'broken'"):
        actor(batch("", "c"))


def test_a_good_row_resets_the_breaker():
    actor = Lengths(breaker=2)
    for _ in range(5):
        actor(batch("bad", "bad", "fine"))


def test_missing_columns_are_named():
    with pytest.raises(StageError, match=r"Lengths: the batch lacks \['text'\] \(found: \['id'\]\)"):
        Lengths()(pa.table({ID: [1]}))


def test_an_actor_that_skips_rows_is_stopped():
    class Skipping(Lengths):
        def answer(self, rows):
            return [{"n": 1}]

    with pytest.raises(StageError, match="gave 1 answers for 2 rows"):
        Skipping()(batch("a", "b"))


def test_stage_errors_and_lack_of_memory_are_no_rows_fault():
    class Ending(Lengths):
        def __init__(self, error):
            super().__init__()
            self.error = error

        def answer(self, rows):
            raise self.error

    for error in (StageError("over"), MemoryError()):
        with pytest.raises(type(error)):
            Ending(error)(batch("a", "b"))

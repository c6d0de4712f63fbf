"""What a scorer reads of a conversation."""

import json

import pyarrow as pa
import pytest

from raysift.errors import DataError
from raysift.pool.given_input import conversation_of, join_input, mark_input
from raysift.records import MESSAGE, MESSAGES, META
from raysift.scoring.questions import (
    embedded_text,
    exchange_of,
    question_text,
    share_room,
    split_exchange,
    with_answers,
    without_oldest_turns,
)


def turns(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


SINGLE = turns(("user", "Add these.\n\n1 2"), ("assistant", "3"))
SEVERAL = turns(
    ("system", "Be brief."),
    ("user", "Hi"),
    ("assistant", "Hello"),
    ("user", "Sum?"),
    ("assistant", "Of what?"),
    ("user", "1 2"),
    ("assistant", "3"),
)


def test_last_answer_is_split_from_all_that_precedes_it():
    assert split_exchange(SEVERAL) == (SEVERAL[:-1], "3")
    assert split_exchange(SEVERAL).messages == SEVERAL


def test_another_answer_takes_the_place_of_the_rows_own():
    assert split_exchange(SINGLE, "4") == split_exchange(SINGLE[:1], "4") == (SINGLE[:1], "4")
    assert split_exchange(SINGLE, "").answer == ""


def test_many_answers_are_put_in_as_one_by_one():
    """Conversations of every shape, also as slices of a longer array."""
    turn = lambda role, content: {"role": role, "content": content}  # noqa: E731
    talks = [
        [turn("user", "a")],
        [turn("user", "a"), turn("assistant", "b")],
        [turn("system", "s"), turn("user", "é"), turn("assistant", "b"), turn("user", "c"), turn("assistant", "")],
        [turn("assistant", "first"), turn("user", "x")],
        [turn("user", "x"), turn("assistant", "call"), turn("tool", "result")],
        [turn("user", "x"), turn("assistant", "one"), turn("assistant", "two")],
    ]
    answers = [f"own {number}" for number in range(len(talks))]
    expected = [split_exchange(*each).messages for each in zip(talks, answers, strict=True)]
    own, given = pa.array(talks, pa.list_(MESSAGE)), pa.array(answers)
    assert with_answers(own, given).to_pylist() == expected
    assert with_answers(own[2:5], given[2:5]).to_pylist() == expected[2:5]
    assert with_answers(own[:0], given[:0]).to_pylist() == []
    for nothing in ([], [turn("assistant", "alone")]):
        with pytest.raises(DataError, match="nothing was asked"):
            with_answers(pa.array([talks[0], nothing], pa.list_(MESSAGE)), given[:2])


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (SINGLE[:1], "ends with a message of the user"),
        ([], "ends with nothing"),
        (SINGLE[1:], "nothing was asked"),
    ],
)
def test_what_is_no_exchange_is_refused(messages, said):
    with pytest.raises(DataError, match=said):
        split_exchange(messages)


def test_question_joins_as_mods_does():
    """Its quality stage: instruction, then a newline and the input where there is one. Necessity: always a newline."""
    with_input, without = SINGLE[:1], turns(("user", "Say hi."))
    assert question_text(with_input) == "Add these.\n\n1 2"
    assert question_text(with_input, "newline") == question_text(with_input, "newline", True) == "Add these.\n1 2"
    assert question_text(without, "newline") == "Say hi."
    assert question_text(without, "newline", True) == "Say hi.\n"


def test_an_input_that_a_row_tells_is_told_apart_to_the_letter():
    talk = turns(("system", "S"), ("user", "Two\n\nparts.\n\nAnd\n\ntwo more."), ("assistant", "a"))
    row = {MESSAGES: talk, META: '{"input":"And\\n\\ntwo more."}'}
    exchange = exchange_of(row, None)
    assert question_text(exchange.before, "newline", True) == "S\n\nTwo\n\nparts.\nAnd\n\ntwo more."
    assert question_text(exchange.before) == question_text(talk[:-1]) == "S\n\nTwo\n\nparts.\n\nAnd\n\ntwo more."
    assert embedded_text(conversation_of(row), "first_paragraph") == "Two\n\nparts."
    assert exchange_of({**row, "own": "b"}, "own").answer == "b"
    assert question_text(exchange_of({**row, "own": "b"}, "own").before, "newline") == question_text(
        exchange.before, "newline"
    )


@pytest.mark.parametrize(
    ("kept", "joined"),
    [("Two\n\nparts.\n\nAnd", "Two\n\nparts.\nAnd"), ("Two\n\npar", "Two\n\npar"), ("Two\n\nparts.\n", None)],
)
def test_a_question_that_is_cut_keeps_what_is_left_of_its_input_apart(kept, joined):
    talk = turns(("user", "Two\n\nparts.\n\nAnd\n\ntwo more."), ("assistant", "a"))
    exchange = exchange_of({MESSAGES: talk, META: '{"input":"And\\n\\ntwo more."}'}, None)
    assert question_text(exchange.with_texts(kept, "a").before, "newline") == (joined or kept)


def test_told_inputs_leave_only_rows_without_one_to_be_guessed(shared_data):
    """Of the 52,002 Alpaca rows 350 have no input, and a blank line in their instruction."""
    records = json.loads((shared_data / "formats/alpaca_data.json").read_text())
    wrong = []
    for record in records:
        instruction, given = record["instruction"], record["input"]
        asked = mark_input(turns(("user", join_input(instruction, given))), given)
        right = question_text(asked, "newline") == instruction + ("\n" + given if given else "")
        assert right == (embedded_text(asked, "first_paragraph") == instruction)
        wrong += [] if right else [given]
    assert wrong == [""] * 350


def test_newline_join_is_that_of_mods_on_real_rows(shared_data):
    """Rows whose instruction holds a blank line of its own differ: 426 of 52,002."""
    records = json.loads((shared_data / "formats/alpaca_data.json").read_text())
    same = both = 0
    for record in records:
        instruction, given = record["instruction"], record["input"]
        asked = turns(("user", join_input(instruction, given)))
        same += question_text(asked, "newline") == instruction + ("\n" + given if given else "")
        both += question_text(asked, "newline", True) == instruction + "\n" + given
    assert (len(records), same, both) == (52002, 51576, 51576)


def test_a_dialogue_marks_its_turns():
    assert question_text(SEVERAL[:-1]) == (
        "Be brief.\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Sum?\n\nAssistant: Of what?\n\nHuman: 1 2"
    )


def test_oldest_turns_go_first_and_the_system_message_stays():
    shorter = without_oldest_turns(SEVERAL[:-1])
    assert shorter == [SEVERAL[0], *SEVERAL[3:6]]
    shortest = without_oldest_turns(shorter)
    assert shortest == [SEVERAL[0], SEVERAL[5]]
    assert without_oldest_turns(shortest) is None


def test_room_is_shared_by_cutting_the_longer_side():
    for room in range(0, 30):
        for question in range(0, 20):
            for answer in range(0, 20):
                kept = share_room(room, question, answer)
                assert sum(kept) == min(room, question + answer)
                assert 0 <= kept[0] <= question and 0 <= kept[1] <= answer
                if kept != (question, answer):  # what was cut is no shorter than what was not
                    assert all(k == n or k >= max(kept) - 1 for k, n in zip(kept, (question, answer), strict=True))


def test_embedded_parts():
    assert embedded_text(SINGLE, "instruction") == "Add these.\n\n1 2"
    assert embedded_text(SINGLE, "first_paragraph") == "Add these."
    assert embedded_text(SINGLE, "conversation") == "Add these.\n\n1 2\n\n3"
    assert embedded_text(SEVERAL, "instruction") == "Hi\n\nSum?\n\n1 2"
    assert embedded_text(SINGLE[1:], "instruction") == embedded_text(SINGLE[1:], "first_paragraph") == ""

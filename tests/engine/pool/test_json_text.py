"""JSON text that can always be read again."""

import math

import orjson
import pytest

from raysift.pool.json_text import dump

HUGE = 2**70


@pytest.mark.parametrize("beside", [0, HUGE], ids=["within 64 bits", "beyond"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_are_null_whatever_stands_beside_them(value, beside):
    assert orjson.loads(dump({"a": [value, 1.5, "b"], "n": beside})) == {"a": [None, 1.5, "b"], "n": beside}


def test_integers_keep_their_digits_and_those_beyond_any_float_are_text():
    assert dump({"n": HUGE, "m": 2**63}) == b'{"n": %d, "m": %d}' % (HUGE, 2**63)
    assert orjson.loads(dump([10**400, -(10**400), True, None])) == [str(10**400), str(-(10**400)), True, None]


def test_types_that_json_lacks_are_text():
    for beside in (0, HUGE):
        assert orjson.loads(dump([b"\x00\xff", 1 + 2j, (1, 2), beside])) == ["AP8=", "(1+2j)", [1, 2], beside]


def test_depth_is_no_obstacle():
    deep = orjson.loads("[" * 800 + "7" + "]" * 800)
    assert orjson.loads(dump(deep)) == deep


def test_an_ingested_record_of_such_numbers_has_a_meta_that_is_read_again(tmp_path):
    from raysift.pool.given_input import conversation_of, split_input

    from .test_formats import _normalise

    numbers = f'"score": NaN, "key": {HUGE}, "large": {10**400}'
    text = '{"instruction": "q", "input": "i", "output": "a", ' + numbers + "}"
    (tmp_path / "pool.jsonl").write_text(text + "\n")
    (row,), problems = _normalise(tmp_path / "pool.jsonl")
    assert not problems and row["raw"] == text
    assert orjson.loads(row["meta"]) == {"input": "i", "score": None, "key": float(HUGE), "large": str(10**400)}
    assert split_input(conversation_of(row)[0]) == ("q", "i")

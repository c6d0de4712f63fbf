"""Right answers of targets of either kind."""

import orjson

from raysift.evaluation.target_answers import MOST_ANSWERS, target_conversations
from raysift.nano.world import examples, preference_pairs


def write(path, rows):
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return str(path)


def test_examples_give_their_reference_and_pairs_their_chosen_answer(tmp_path):
    asked, pairs = list(examples(5, 0, ["last_letters"])), list(preference_pairs(6, 0, ["last_letters"]))
    files = [write(tmp_path / "examples.jsonl", asked), write(tmp_path / "pairs.jsonl", pairs)]
    found = target_conversations(files)["messages"].to_pylist()
    answers = sorted(row[-1]["content"] for row in found)
    assert answers == sorted([one["reference"] for one in asked] + [one["chosen"] for one in pairs])
    assert all(row[0]["role"] == "user" and row[-1]["role"] == "assistant" for row in found)


def test_many_answers_are_drawn_by_content_whatever_their_order(tmp_path):
    asked = list(examples(MOST_ANSWERS + 40, 0, ["reverse", "last_letters"]))
    one = target_conversations([write(tmp_path / "a.jsonl", asked)])
    other = target_conversations([write(tmp_path / "b.jsonl", asked[::-1])])
    assert len(one) == MOST_ANSWERS
    assert one.equals(other)

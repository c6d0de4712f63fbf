"""The nano world knows its own texts, spoilt ones included, and no other language."""

import pytest

from raysift.nano.language import OWN_SHARE, known_share
from raysift.nano.world import examples, generate_pool, preference_pairs

SKILLS = ["add", "sort_words", "last_letters"]


def test_nano_texts_of_every_kind_are_its_own():
    pool = ["\n".join(m["content"] for m in row["messages"]) for row in generate_pool(600, 3)]
    asked = [example["prompt"] for example in examples(60, 1, SKILLS)]
    pairs = [pair["prompt"][-1]["content"] for pair in preference_pairs(60, 1, SKILLS, "correctness")]
    assert min(map(known_share, (pool, asked, pairs))) > 0.9


@pytest.mark.parametrize(
    "text",
    [
        "Give three tips for staying healthy.\nEat a balanced diet, exercise regularly and get enough sleep.",
        "Write a Python function that checks whether a number is prime.\ndef is_prime(n): return n > 1",
        "Explique la différence entre météo et climat.",
        "请给出三个保持健康的建议。",
    ],
)
def test_real_text_is_not(text):
    assert known_share([text]) < OWN_SHARE


def test_texts_without_words_say_nothing():
    assert known_share([]) is None and known_share(["2 + 2 = 4"]) is None


def test_real_sources_are_far_from_nano(shared_data):
    import pyarrow.parquet as pq

    found = pq.read_table(shared_data / "pool/pool_public_smoke5k.parquet", columns=["source", "messages"]).to_pylist()
    by_source = {}
    for row in found:
        by_source.setdefault(row["source"], []).append("\n".join(m["content"] for m in row["messages"]))
    assert len(by_source) > 10 and max(map(known_share, by_source.values())) < 0.6

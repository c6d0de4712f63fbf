"""No conversation has more tokens than its bytes allow, whatever the tokenizer and the template."""

import numpy as np
import pyarrow as pa
import pytest

from raysift.nano.world import generate_pool
from raysift.pool.longest import most_tokens, most_tokens_of
from raysift.records import MESSAGE, Example, Message, Pair
from raysift.templates import encode_conversation

SCRIPTS = ["plain words", "Größenwahn", "漢字かな交じり文", "🙂🙃👩‍👩‍👧", "مرحبا بالعالم", "\u0000\ufffd", ""]


def column(conversations):
    return pa.array([[{"role": r, "content": c} for r, c in turns] for turns in conversations], pa.list_(MESSAGE))


@pytest.fixture(scope="module")
def tokenizer():
    from raysift.actors.language_model import load_tokenizer

    return load_tokenizer("nano")


@pytest.mark.parametrize("template", ["auto", "tulu", "alpaca"])
def test_the_bound_is_never_below_what_a_tokenizer_makes(tokenizer, template):
    rows = [row["messages"] for row in generate_pool(40, 0)]
    rows += [
        [{"role": "user", "content": text * times}, {"role": "assistant", "content": text}] * turns
        for text in SCRIPTS
        for times, turns in ((1, 1), (50, 3))
    ]
    for row in rows:
        bound = most_tokens(column([[(m["role"], m["content"]) for m in row]]))
        assert len(encode_conversation(tokenizer, row, 10**9, template).input_ids) <= bound


def test_the_longest_of_many_decides_however_the_column_is_cut():
    rng = np.random.default_rng(0)
    rows = [[("user", "ä" * int(n)), ("assistant", "x" * int(n // 3))] for n in rng.integers(0, 400, 50)]
    rows.insert(20, [])
    whole = column(rows)
    each = max(most_tokens(column([row])) for row in rows)
    assert most_tokens(whole) == most_tokens(pa.chunked_array([whole[:7], whole[7:7], whole[7:]])) == each
    assert most_tokens(whole.slice(3, 5)) == max(most_tokens(column([row])) for row in rows[3:8])
    assert most_tokens(whole[:0]) == 0


def test_targets_count_their_longest_answer():
    prompt = (Message("user", "q" * 100),)
    pair = Pair(prompt, "a" * 300, "b" * 7)
    example = Example("x", "t", prompt, "exact", reference="a" * 300, choices=("b", "c" * 20))
    as_row = most_tokens(column([[("user", "q" * 100), ("assistant", "a" * 300)]]))
    assert most_tokens_of(pair) == most_tokens_of(example) == as_row

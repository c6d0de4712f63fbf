"""States of RDS+ against one plain pass per conversation, on a tiny random Llama, and the choice against a slow loop."""

import numpy as np
import pyarrow as pa
import pytest

from raysift.actors.loaded import LoadedModel, load
from raysift.actors.state_match import StateMatch
from raysift.methods.rds import Rds, RdsConfig
from raysift.records import ERROR, ID, MESSAGE, MESSAGES
from raysift.settings.budget import parse_budget
from raysift.templates import encode_conversation

from ..tiny_models import tiny_llama  # noqa: TID252


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> LoadedModel:
    return load(tiny_llama(tmp_path_factory.mktemp("model"), initializer_range=0.2), threads=1)


def talk(*contents):
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 4, contents, strict=False)]


TARGETS = [talk("2 + 3?", "5"), talk("Sky? " * 9, "blue")]
ROWS = [talk("a" * n, "b" * (n % 7 + 1), *(("more", "again") * (n % 2))) for n in range(1, 30)]


def table(rows):
    records = [{ID: i, MESSAGES: messages} for i, messages in enumerate(rows)]
    return pa.Table.from_pylist(records, schema=pa.schema([(ID, pa.int64()), (MESSAGES, pa.list_(MESSAGE))]))


def cosines(actor, rows):
    answers = actor(table(rows))
    assert answers[ERROR].null_count == len(rows)
    return np.array([row[0] for row in answers["matches"].to_pylist()])


def slow_vector(loaded, messages):
    import torch

    ids = encode_conversation(loaded.tokenizer, messages, 10_000, "auto").input_ids
    with torch.inference_mode():
        states = loaded.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0].double().numpy()
    vector = sum(i * state for i, state in enumerate(states, 1)) / sum(range(1, len(ids) + 1))
    return vector / np.linalg.norm(vector)


def test_cosines_are_those_of_a_plain_pass_over_each_conversation(loaded):
    expected = [[slow_vector(loaded, row) @ slow_vector(loaded, target) for target in TARGETS] for row in ROWS]
    assert cosines(StateMatch(loaded, TARGETS), ROWS) == pytest.approx(np.array(expected), abs=1e-5)


def test_neither_the_batch_nor_the_order_of_the_rows_changes_a_cosine(loaded):
    usual = cosines(StateMatch(loaded, TARGETS), ROWS)
    assert cosines(StateMatch(loaded, TARGETS, batch_tokens=1), ROWS) == pytest.approx(usual, abs=1e-5)
    assert cosines(StateMatch(loaded, TARGETS), ROWS[::-1])[::-1] == pytest.approx(usual, abs=1e-5)


def slow_choice(ids, by_example, count):
    left, taken = set(ids), []
    while len(taken) < count:
        example = len(taken) % by_example.shape[1]
        best = min(left, key=lambda i: (-by_example[ids.index(i), example], i))
        left.remove(best)
        taken.append(best)
    return taken


def test_examples_pick_in_turn_whatever_the_order_of_the_rows():
    rng = np.random.default_rng(0)
    by_example = rng.integers(0, 5, (40, 3)) / 4  # many ties
    ids = rng.permutation(1000)[:40].tolist()
    expected = slow_choice(ids, by_example, 11)
    for order in (np.arange(40), rng.permutation(40)):
        columns = {"score": by_example.max(1)[order], "by_subtask": list(by_example[order])}
        scores = pa.table({ID: np.array(ids)[order], **columns})
        chosen, _ = Rds(RdsConfig(), 0).choose([scores.slice(0, 13), scores.slice(13)], parse_budget("11"), 40)
        assert sorted(chosen.tolist()) == sorted(expected)

"""The two ends of a comparing judge whose model is in an engine, around the comparer's own pass in the engine's place."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysift.actors.comparer import Comparer
from raysift.actors.judge import flatten
from raysift.actors.loaded import LoadedModel, load
from raysift.actors.responder import ENGINE_ERROR, LOGPROBS, NOT_ASKED, PROMPT
from raysift.actors.vllm_comparer import ComparisonAsker, ComparisonReader
from raysift.jobs.pairwise.comparing import _joined
from raysift.pairwise.rows import ORDER, ORDERS, order_key, rows_by_order
from raysift.records import ERROR, ID
from raysift.storage import open_location

from ..tiny_models import tiny_llama  # noqa: TID252
from .test_comparer import ROWS, SETTINGS, ask, table


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return tiny_llama(tmp_path_factory.mktemp("model"), initializer_range=0.2)


@pytest.fixture(scope="module")
def loaded(folder) -> LoadedModel:
    return load(folder, threads=1)


POISONED = [
    (ask("q" * 400), "a" * 400, "b" * 200),
    (ask("?"), "a", None),
    ([{"role": "assistant", "content": "nobody asked"}], "a", "b"),
]


def through_an_engine(folder, loaded, rows, settings, batch):
    """Answers of the two ends, with the comparer's own pass between them."""
    asker, comparer = ComparisonAsker(folder, settings=settings), Comparer(loaded, settings=settings, batch_tokens=1)
    twice = rows_by_order(rows)
    asked = pa.concat_tables([asker(twice[i : i + batch]) for i in range(0, len(twice), batch)])
    replies = []
    for row in asked.to_pylist():
        reply = {
            **row,
            LOGPROBS: [],
            ENGINE_ERROR: NOT_ASKED + row[ERROR] if row[ERROR] else "",
            ORDER: row[ORDER] or "",
        }
        if row[PROMPT]:
            (found,) = comparer.next_logprobs([row[PROMPT]])
            reply[LOGPROBS] = [logprob for _, logprob in found]
        replies.append(reply)
    return ComparisonReader(folder, settings=settings)(pa.Table.from_pylist(replies))


def between_two_orders(loaded):
    """A bar that a pair passes in its first order alone."""
    found = Comparer(loaded, settings=SETTINGS, batch_tokens=1)(table(ROWS)).to_pylist()
    masses = [[row[f"mass_{order}"] for order in ORDERS] for row in found]
    return sum(max(masses, key=lambda two: two[0] - two[1])) / 2


@pytest.mark.parametrize(("batch", "bar"), [(1, "none"), (14, "none"), (14, "between"), (14, "all")])
def test_asker_engine_reader_joined_give_what_a_comparer_gives(folder, loaded, tmp_path, batch, bar):
    min_mass = {"none": lambda: 0, "between": lambda: between_two_orders(loaded), "all": lambda: 0.9}[bar]()
    settings = SETTINGS.model_copy(update={"min_mass": min_mass})
    rows = table(ROWS + POISONED)
    expected = Comparer(loaded, settings=settings, batch_tokens=1)(rows)
    answers = through_an_engine(folder, loaded, rows, settings, batch)
    pq.write_table(answers.sort_by(ID), tmp_path / "answers.parquet")
    assert _joined(rows, [open_location(tmp_path / "answers.parquet")]).equals(expected)
    errors = expected[ERROR].to_pylist()
    assert all(errors[5:])
    if bar == "none":
        assert errors[:5] == [None] * 5 and expected["truncated"].to_pylist()[:5] == [False] * 4 + [True]
    if bar == "between":
        assert any("(against first)" in error for error in errors[:5] if error)


def test_rows_by_order_are_two_of_each_with_ids_of_their_own():
    rows = table(ROWS)
    twice = rows_by_order(rows)
    assert len(set(twice[ID].to_pylist())) == 2 * len(rows)
    assert twice[ORDER].to_pylist() == [order for order in ORDERS for _ in ROWS]
    assert twice[ID].to_pylist() == [order_key(i, order) for order in ORDERS for i in range(len(ROWS))]
    assert twice["own_answer"].to_pylist() == rows["own_answer"].to_pylist() * 2


def test_errors_of_the_engine_stay_with_their_rows_and_what_is_no_number_is_no_verdict(folder):
    reader = ComparisonReader(folder, settings=SETTINGS.model_copy(update={"min_mass": 0.01}))
    tokens = len(flatten(reader.weigher.spellings))
    beside = {"n_tokens": 9, "truncated": False, ORDER: ORDERS[1]}
    replies = [
        {ID: 0, LOGPROBS: [-2.0] * tokens, ENGINE_ERROR: "", **beside},
        {ID: 1, LOGPROBS: [], ENGINE_ERROR: "ValueError: too long", **beside},
        {ID: 2, LOGPROBS: [None] * tokens, ENGINE_ERROR: "", **beside},
        {ID: 3, LOGPROBS: [-9.0] * tokens, ENGINE_ERROR: "", **beside},
        {ID: 4, LOGPROBS: [], ENGINE_ERROR: "", **beside},
    ]
    rows = reader(pa.Table.from_pylist(replies)).to_pylist()
    assert [rows[0][f"p_{name}"] for name in ("first", "second", "tie")] == pytest.approx([1 / 3] * 3)
    assert rows[1][ERROR] == "ValueError: too long"
    assert rows[2][ERROR] == "the judge gave no finite probabilities (against first)"
    assert rows[3][ERROR].startswith("unparsable: the verdicts A, B and C together have probability 0.000")
    assert rows[4][ERROR].startswith("ValueError"), "a reply without numbers was weighed"


def test_a_token_that_the_model_does_not_know_fails_its_row(tmp_path):
    folder = tiny_llama(tmp_path)
    tokenizer = load(folder).tokenizer
    tokenizer.add_tokens([f"unused{i}" for i in range(40)])
    tokenizer.save_pretrained(folder)
    rows = table([(ask("unused39"), "a", "b"), (ask("hi"), "a", "b")])
    bad, good = Comparer(folder, settings=SETTINGS)(rows).to_pylist()
    assert "the model knows those below 272" in bad[ERROR] and good[ERROR] is None
    asked = ComparisonAsker(folder, settings=SETTINGS)(rows_by_order(rows)).to_pylist()
    assert [row[ERROR] is None for row in asked] == [False, True] * 2

"""The question of a conversation, the nucleus, and the two ends of an engine against the model that answers by itself."""

import pyarrow as pa
import pytest

from raysift.actors.contract import Failed
from raysift.actors.generator import Generator
from raysift.actors.loaded import LoadedModel, end_tokens, load, longest_input
from raysift.actors.prompts import load_card, load_prompts, question_of, row_seed
from raysift.actors.responder import ENGINE_ERROR, GENERATED, NOT_ASKED, PROMPT, Asker, Reader, Responder, nucleus
from raysift.errors import DataError
from raysift.records import ERROR, ID, MESSAGE, MESSAGES

from ..tiny_models import tiny_llama  # noqa: TID252

SHORT = {"max_new_tokens": 12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return tiny_llama(tmp_path_factory.mktemp("model"), initializer_range=0.2)


@pytest.fixture(scope="module")
def loaded(folder) -> LoadedModel:
    return load(folder, threads=1)


def turns(*contents, roles=("user", "assistant")):
    return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


def table(conversations):
    rows = [{ID: i, MESSAGES: messages} for i, messages in enumerate(conversations)]
    return pa.Table.from_pylist(rows, schema=pa.schema([(ID, pa.int64()), (MESSAGES, pa.list_(MESSAGE))]))


CONVERSATIONS = [
    turns("What is 2 + 3?", "5"),
    turns("hi"),
    turns("a", "b", "c", "d"),
    turns("a", "b", "c"),
    turns("y" * 600, "too long"),
    [{"role": "assistant", "content": "nobody asked"}],
    [],
]


def test_question_is_what_precedes_the_last_answer():
    assert question_of(turns("a", "b", "c", "d")) == turns("a", "b", "c")
    assert question_of(turns("a", "b", "c")) == turns("a", "b", "c")
    for nothing in ([{"role": "assistant", "content": "x"}], []):
        with pytest.raises(DataError, match="nothing was asked"):
            question_of(nothing)


def test_reference_answers_do_not_change_what_the_model_says(loaded):
    asked = Generator(loaded, **SHORT)(table([question_of(c) for c in CONVERSATIONS[:4]]))
    assert Responder(loaded, **SHORT)(table(CONVERSATIONS[:4])).equals(asked)
    others = [c[:-1] + turns("", "another reference")[1:] if len(c) % 2 == 0 else c for c in CONVERSATIONS[:4]]
    assert Responder(loaded, **SHORT)(table(others)).equals(asked)


def test_a_token_that_the_model_does_not_know_fails_its_row(tmp_path):
    """Fed to a model on a GPU it would end the process."""
    folder = tiny_llama(tmp_path)
    tokenizer = load(folder).tokenizer
    tokenizer.add_tokens([f"unused{i}" for i in range(40)])
    tokenizer.save_pretrained(folder)
    known = load_prompts(folder, "auto", 12).vocabulary
    assert known == 272 < len(tokenizer)
    asked = Asker(folder, template="auto", **SHORT)(table([turns("unused39"), turns("hi")])).to_pylist()
    assert asked[0][ERROR] == f"the prompt has token {len(tokenizer) - 1}; the model knows those below 272"
    assert asked[1][ERROR] is None


def test_what_cannot_be_asked_fails_alone(loaded):
    answers = Responder(loaded, **SHORT)(table(CONVERSATIONS)).to_pylist()
    assert [row[ERROR] is None for row in answers] == [True] * 4 + [False] * 3
    assert "room for 500" in answers[4][ERROR]
    assert answers[5][ERROR] == answers[6][ERROR] == "nothing was asked before the last answer"
    assert all(row["answer"] is None and row["finished"] is None for row in answers[4:])


def test_prompts_without_the_weights_know_what_the_model_knows(folder, loaded):
    prompts = load_prompts(folder, "auto", 12, 100)
    assert prompts.ends == end_tokens(loaded, "auto")
    assert prompts.longest_prompt == longest_input(loaded.model, 100) - 12
    assert load_prompts(folder, "auto", 12).longest_prompt == 500
    # A checkpoint may name further ends, and may come without the file that does.
    loaded.model.generation_config.save_pretrained(folder)
    assert load_card(folder).generation_config.eos_token_id == loaded.model.generation_config.eos_token_id


@pytest.mark.parametrize("batch", [1, 7])
def test_asker_engine_reader_give_what_a_responder_gives(folder, loaded, batch):
    """The engine is the plain loop of the generator, told nothing but tokens."""
    responder = Responder(loaded, **SHORT)
    rows = table(CONVERSATIONS * 2).set_column(0, ID, pa.array(range(14)))
    expected = responder(rows)
    asked = pa.concat_tables(
        [Asker(folder, template="auto", **SHORT)(rows[i : i + batch]) for i in range(0, 14, batch)]
    )
    ends = sorted(responder.ends)
    replies = []
    for row in asked.to_pylist():
        reply = {ID: row[ID], GENERATED: [], ENGINE_ERROR: NOT_ASKED + row[ERROR] if row[ERROR] else ""}
        if row[PROMPT]:
            (answer,) = responder.complete([row[PROMPT]], [row[ID]])
            reply[GENERATED] = answer.tokens + ends[:1] * answer.finished
        replies.append(reply)
    assert Reader(folder, template="auto", **SHORT)(pa.Table.from_pylist(replies)).equals(expected)


def test_seeds_of_rows_differ():
    seeds = {row_seed(seed, row) for seed in range(4) for row in (-(2**63), -1, 0, 1, 2**63 - 1)}
    assert len(seeds) == 20
    assert all(-(2**63) <= seed < 2**63 for seed in seeds)


def test_errors_of_the_engine_stay_with_their_rows(folder):
    reader = Reader(folder, template="auto", **SHORT)
    replies = [
        {ID: 0, GENERATED: [70], ENGINE_ERROR: ""},
        {ID: 1, GENERATED: None, ENGINE_ERROR: "ValueError: token 999 is out of vocabulary"},
    ]
    assert reader.answer(replies)[1] == Failed("ValueError: token 999 is out of vocabulary")
    assert reader(pa.Table.from_pylist(replies))[ERROR].to_pylist() == [None, replies[1][ENGINE_ERROR]]


def test_nucleus_keeps_the_fewest_tokens_that_reach_the_probability():
    import torch

    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.05, 0.15, 0.3, 0.5]]).log()

    def kept(top_p, temperature=1.0):
        return nucleus(logits, temperature, top_p).isfinite().tolist()

    assert kept(0.4) == [[True, False, False, False], [False, False, False, True]]
    assert kept(0.79) == [[True, True, False, False], [False, False, True, True]]
    assert kept(0.81)[0] == [True, True, True, False]
    assert kept(1e-9)[0] == [True, False, False, False]
    # A high temperature flattens: more tokens are needed for the same probability.
    assert sum(kept(0.7, temperature=10.0)[0]) == 3


def test_nucleus_of_transformers_is_the_same():
    import torch
    from transformers import TopPLogitsWarper

    logits = torch.randn(50, 40, generator=torch.Generator().manual_seed(0)) * 3
    for top_p in (0.1, 0.5, 0.9, 0.99):
        theirs = TopPLogitsWarper(top_p)(None, logits)
        assert torch.equal(nucleus(logits, 1.0, top_p).isfinite(), theirs.isfinite())


def test_a_small_nucleus_is_greedy_and_samples_follow_the_row(loaded):
    rows = table(CONVERSATIONS[:4])
    greedy = Responder(loaded, **SHORT)(rows)
    assert Responder(loaded, temperature=1.0, top_p=1e-6, **SHORT)(rows).equals(greedy)
    sampled = Responder(loaded, temperature=1.0, top_p=0.9, **SHORT)(rows)
    assert sampled.equals(Responder(loaded, temperature=1.0, top_p=0.9, batch_tokens=1, **SHORT)(rows))
    assert not sampled.equals(greedy)

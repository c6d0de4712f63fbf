"""Generation against transformers' own, and its independence of batch mates, on a tiny random Llama."""

import pyarrow as pa
import pytest

from raysift.actors.contract import Failed
from raysift.actors.generator import Generator
from raysift.actors.loaded import LoadedModel, load
from raysift.errors import ConfigError
from raysift.records import ERROR, ID, MESSAGE, MESSAGES
from raysift.templates import encode_prompt

from ..tiny_models import tiny_llama  # noqa: TID252

WORDS = ["What is 2 + 3?", "hi", "Sort: pear apple", "A much longer question about nothing in particular. " * 3]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> LoadedModel:
    loaded = load(tiny_llama(tmp_path_factory.mktemp("model"), initializer_range=0.2), threads=1)
    # Random weights hardly ever end an answer; four more end tokens make lengths differ.
    loaded.model.generation_config.eos_token_id = [loaded.tokenizer.eos_token_id, 60, 61, 62, 63]
    return loaded


def table(texts, ids=None):
    rows = [
        {ID: i, MESSAGES: [{"role": "user", "content": text}]}
        for i, text in zip(ids or range(len(texts)), texts, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=pa.schema([(ID, pa.int64()), (MESSAGES, pa.list_(MESSAGE))]))


def prompts(count=40):
    return [WORDS[i % 4] + " x" * (i % 7) + str(i) for i in range(count)]


def by_id(answers):
    return {row[ID]: row for row in answers.to_pylist()}


def test_greedy_answers_are_those_of_transformers_generate(loaded):
    import torch
    from transformers import GenerationConfig

    answers = by_id(Generator(loaded, max_new_tokens=24)(table(prompts())))
    ends = loaded.model.generation_config.eos_token_id
    settings = GenerationConfig(max_new_tokens=24, do_sample=False, eos_token_id=ends, pad_token_id=0)
    for i, text in enumerate(prompts()):
        ids = torch.tensor([encode_prompt(loaded.tokenizer, [{"role": "user", "content": text}])])
        expected = loaded.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)[
            0, ids.shape[1] :
        ].tolist()
        finished = expected[-1] in ends
        assert answers[i]["finished"] == finished
        assert answers[i]["n_new_tokens"] == len(expected)
        words = expected[:-1] if finished else expected
        assert answers[i]["answer"] == loaded.tokenizer.decode(words, skip_special_tokens=True).strip()
    lengths = {row["n_new_tokens"] for row in answers.values()}
    assert len(lengths) > 3, "all answers are of one length: the test does not see rows that leave the batch"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_do_not_depend_on_batch_mates_or_their_order(loaded, temperature):
    settings = {"max_new_tokens": 24, "temperature": temperature, "seed": 3}
    alone = by_id(Generator(loaded, batch_tokens=1, **settings)(table(prompts())))
    together = by_id(Generator(loaded, batch_tokens=16 * 400, **settings)(table(prompts())))
    backwards = by_id(Generator(loaded, **settings)(table(prompts()[::-1], list(range(40))[::-1])))
    assert alone == together == backwards


def test_samples_follow_seed_and_row_and_differ_from_greedy(loaded):
    def answers(ids, **settings):
        return [
            r["answer"] for r in Generator(loaded, max_new_tokens=12, **settings)(table(["same"] * 6, ids)).to_pylist()
        ]

    ids = list(range(6))
    sampled = answers(ids, temperature=1.0)
    assert sampled == answers(ids, temperature=1.0)
    assert len(set(sampled)) > 3
    assert sampled != answers(ids, temperature=1.0, seed=1)
    assert answers(ids[::-1], temperature=1.0) == sampled[::-1]
    assert len(set(answers(ids))) == 1


def test_sampled_tokens_have_the_models_probabilities(loaded):
    import torch

    temperature = 1.5
    generator = Generator(loaded, max_new_tokens=1, temperature=temperature)
    prompt = encode_prompt(loaded.tokenizer, [{"role": "user", "content": "hi"}])
    answers = generator.complete([prompt] * 4000, range(4000))
    ended = sum(answer.finished for answer in answers) / 4000
    counts = torch.bincount(torch.tensor([a.tokens[0] for a in answers if a.tokens]), minlength=272) / 4000
    with torch.inference_mode():
        wanted = (loaded.model(torch.tensor([prompt])).logits[0, -1] / temperature).softmax(-1)
    wanted = wanted.clone()
    ends = list(generator.ends)
    assert ended == pytest.approx(wanted[ends].sum().item(), abs=0.03)
    wanted[ends] = 0
    assert (counts - wanted).abs().max() < 0.03
    assert (counts - wanted).abs().sum() < 0.25


def test_too_long_prompt_fails_with_its_length_and_without_its_text(loaded):
    generator = Generator(loaded, max_new_tokens=8, max_length=64)
    short, long = generator(table(["hi", "secret " * 40])).to_pylist()
    assert short[ERROR] is None
    assert "283 tokens; with max_new_tokens=8 there is room for 56" in long[ERROR]
    assert "secret" not in long[ERROR]


def test_the_models_own_length_is_a_limit(loaded):
    (row,) = Generator(loaded, max_new_tokens=8)(table(["x" * 600])).to_pylist()
    assert "room for 504" in row[ERROR]


def test_a_model_without_finite_logits_fails_its_rows(tmp_path):
    broken = load(tiny_llama(tmp_path))
    broken.model.model.norm.weight.data.fill_(float("nan"))
    generator = Generator(broken, max_new_tokens=8)
    assert all("no finite logits" in row[ERROR] for row in generator(table(["a", "b"])).to_pylist())


def test_a_repetition_penalty_of_the_model_does_not_change_greedy(loaded):
    before = Generator(loaded, max_new_tokens=16)(table(prompts(8)))
    loaded.model.generation_config.repetition_penalty = 5.0
    try:
        assert Generator(loaded, max_new_tokens=16)(table(prompts(8))).equals(before)
    finally:
        loaded.model.generation_config.repetition_penalty = None


def test_unknown_template_is_refused_before_any_row(loaded):
    with pytest.raises(ConfigError, match="unknown name 'vicuna'"):
        Generator(loaded, template="vicuna")


def test_end_of_a_turn_is_an_end_though_the_tokenizer_names_another(loaded):
    """chatml ends a turn with the end of sequence where the vocabulary has no <|im_end|>."""
    assert loaded.tokenizer.eos_token_id in Generator(loaded, template="chatml").ends
    tokenizer = load_tokenizer_with_im_end()
    assert (
        tokenizer.convert_tokens_to_ids("<|im_end|>")
        in Generator(LoadedModel(loaded.model, tokenizer), template="chatml").ends
    )
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in Generator(LoadedModel(loaded.model, tokenizer)).ends


def load_tokenizer_with_im_end():
    from ..tiny_models import SPECIALS, byte_tokenizer  # noqa: TID252

    return byte_tokenizer(specials=(*SPECIALS, "<|im_end|>"))


def test_failed_rows_keep_their_place(loaded):
    generator = Generator(loaded, max_new_tokens=4, max_length=64)
    rows = [{ID: i, MESSAGES: [{"role": "user", "content": "y" * (100 if i % 2 else 3)}]} for i in range(6)]
    assert [isinstance(answer, Failed) for answer in generator.answer(rows)] == [False, True] * 3

"""Beam search against transformers' own and against every answer there is; its independence of batch mates."""

from itertools import product

import pytest

from raysift.actors.beams import AnswerTokens, BeamSearch, candidates
from raysift.actors.contract import Failed
from raysift.actors.generator import Generator
from raysift.actors.loaded import LoadedModel, load
from raysift.actors.responder import Responder
from raysift.errors import ConfigError
from raysift.records import ERROR
from raysift.templates import encode_prompt

from ..tiny_models import tiny_llama  # noqa: TID252
from .test_generator import by_id, prompts, table


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> LoadedModel:
    """Random weights hardly ever end an answer; more end tokens make answers that end, at different lengths."""
    loaded = load(tiny_llama(tmp_path_factory.mktemp("model"), initializer_range=0.2), threads=1)
    loaded.model.generation_config.eos_token_id = [loaded.tokenizer.eos_token_id, *range(60, 72)]
    return loaded


def of_transformers(loaded, text, **settings):
    """Tokens of the answer that `generate` gives to one prompt alone."""
    import torch
    from transformers import GenerationConfig

    ids = torch.tensor([encode_prompt(loaded.tokenizer, [{"role": "user", "content": text}])])
    ends = loaded.model.generation_config.eos_token_id
    config = GenerationConfig(do_sample=False, eos_token_id=ends, pad_token_id=0, **settings)
    found = loaded.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return found[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize(("beams", "longest"), [(2, 24), (4, 24), (4, 3), (7, 12), (4, 1)])
def test_answers_are_those_of_transformers_generate(loaded, beams, longest):
    answers = by_id(Generator(loaded, max_new_tokens=longest, beams=beams)(table(prompts(24))))
    ends = loaded.model.generation_config.eos_token_id
    for i, text in enumerate(prompts(24)):
        expected = of_transformers(loaded, text, max_new_tokens=longest, num_beams=beams)
        while len(expected) > 1 and expected[-1] == 0:  # transformers pads answers that are over
            expected.pop()
        finished = expected[-1] in ends
        assert (answers[i]["finished"], answers[i]["n_new_tokens"]) == (finished, len(expected))
        words = expected[:-1] if finished else expected
        assert answers[i]["answer"] == loaded.tokenizer.decode(words, skip_special_tokens=True).strip()
    if longest == 24:
        greedy = by_id(Generator(loaded, max_new_tokens=longest)(table(prompts(24))))
        assert sum(answers[i]["answer"] != greedy[i]["answer"] for i in greedy) > 6
        assert len({row["n_new_tokens"] for row in answers.values()}) > 3, "no row leaves the batch before the others"


def test_answers_do_not_depend_on_batch_mates_padding_or_order(loaded):
    settings = {"max_new_tokens": 16, "beams": 4}
    alone = by_id(Generator(loaded, batch_tokens=1, **settings)(table(prompts())))
    together = by_id(Generator(loaded, batch_tokens=2**20, **settings)(table(prompts())))
    backwards = by_id(Generator(loaded, **settings)(table(prompts()[::-1], list(range(40))[::-1])))
    assert alone == together == backwards
    assert by_id(Responder(loaded, **settings)(table(prompts()))) == alone


def test_a_batch_holds_no_more_tokens_than_without_beams(loaded, monkeypatch):
    sizes = {1: [], 4: []}
    complete = Generator.complete

    def measured(self, asked, ids):
        sizes[self.beams].append(len(asked) * self.beams * (len(asked[0]) + 2))
        return complete(self, asked, ids)

    monkeypatch.setattr(Generator, "complete", measured)
    for beams in sizes:
        Generator(loaded, max_new_tokens=2, beams=beams, batch_tokens=512)(table(["hi"] * 64))
    assert max(sizes[1]) <= 512 and max(sizes[4]) <= 512 and len(sizes[4]) >= 3 * len(sizes[1])


def test_with_a_beam_for_every_answer_the_most_probable_one_wins():
    """Three tokens of which one ends answers, and as many beams as there are answers, against all of them counted out."""
    import torch

    end, longest = 2, 4
    draws = torch.Generator().manual_seed(0)

    for _ in range(20):
        table_of: dict[tuple[int, ...], list[float]] = {}

        def after(words, table_of=table_of):
            if words not in table_of:
                table_of[words] = torch.randn(3, generator=draws).log_softmax(-1).tolist()
            return table_of[words]

        def total(words, after=after):
            return sum(after(words[:i])[word] for i, word in enumerate(words))

        every = [words for n in range(1, longest + 1) for words in product(range(3), repeat=n)]
        whole = [w for w in every if end not in w[:-1] and (w[-1] == end or len(w) == longest)]
        wanted = max(whole, key=lambda words: total(words) / len(words))

        beams = len(whole)
        search, scores = BeamSearch(beams, frozenset({end}), longest), [0.0]
        going = True
        while going:
            offers = [
                (score + logprob, parent, token)
                for parent, (score, words) in enumerate(zip(scores, search.running, strict=True))
                for token, logprob in enumerate(after(tuple(words)))
            ]
            best = sorted(offers, key=lambda offer: -offer[0])[: candidates(beams, 1)]
            going = search.step(*zip(*best, strict=True))
            scores = [best[place][0] for place in going]
        finished = wanted[-1] == end
        assert search.best() == AnswerTokens(list(wanted[:-1] if finished else wanted), finished)


def test_a_model_without_finite_logits_fails_its_rows(tmp_path):
    broken = load(tiny_llama(tmp_path))
    broken.model.model.norm.weight.data.fill_(float("nan"))
    rows = Generator(broken, max_new_tokens=8, beams=3)(table(["a", "b"])).to_pylist()
    assert [row[ERROR] for row in rows] == ["the model gave no finite logits after 0 tokens"] * 2


def test_one_row_whose_logits_go_bad_fails_alone(loaded):
    generator = Generator(loaded, max_new_tokens=6, beams=3)
    asked = [[1, 70 + i] for i in range(3)]
    plain = generator.complete(asked, range(3))
    logits, steps = generator._logits, []

    def poisoned(state):
        found = logits(state).clone()
        steps.append(len(found))
        if len(steps) == 3:
            found[4] = float("nan")  # the second beam of the second row
        return found

    generator._logits = poisoned
    first, second, third = generator.complete(asked, range(3))
    assert steps[:3] == [3, 9, 9]
    assert (first, third) == (plain[0], plain[2])
    assert second == Failed("the model gave no finite logits after 2 tokens")


def test_a_repetition_penalty_of_the_model_changes_nothing(loaded):
    before = Generator(loaded, max_new_tokens=8, beams=3)(table(prompts(4)))
    loaded.model.generation_config.repetition_penalty = 5.0
    try:
        assert Generator(loaded, max_new_tokens=8, beams=3)(table(prompts(4))).equals(before)
    finally:
        loaded.model.generation_config.repetition_penalty = None


def test_more_beams_than_words_are_refused(loaded):
    with pytest.raises(ConfigError, match=r"beams=272, and the model has 272 tokens, 1\d of which end"):
        Generator(loaded, beams=272)

"""Lengths and log-probabilities against plain passes over one row at a time."""

import pyarrow as pa
import pytest

from raysift.actors import likelihood
from raysift.actors.difficulty import Difficulty
from raysift.actors.ifd import Ifd
from raysift.actors.loaded import LoadedModel, load
from raysift.errors import ModelError
from raysift.gradients import loss
from raysift.nano.world import WorldConfig, generate_pool
from raysift.records import ERROR, ID, MESSAGE, MESSAGES

from ..tiny_models import CHAT_TEMPLATE, tiny_llama  # noqa: TID252


@pytest.fixture(scope="module")
def nano() -> LoadedModel:
    return load("nano", threads=1)


def turns(*contents):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def table(conversations):
    records = [{ID: i, MESSAGES: messages} for i, messages in enumerate(conversations)]
    return pa.Table.from_pylist(records, schema=pa.schema([(ID, pa.int64()), (MESSAGES, pa.list_(MESSAGE))]))


def by_hand(loaded, messages, alone=False):
    """Tokens before the answer, tokens of the answer, and its log-probability, by one pass over this row."""
    import torch

    question = [{"role": "user", "content": ""}] if alone else messages[:-1]
    render = loaded.tokenizer.apply_chat_template
    before = render(question, add_generation_prompt=True, return_dict=False)
    whole = render(messages, return_dict=False)
    start = len(render(messages[:-1], add_generation_prompt=True, return_dict=False))
    spoken = whole[start:]
    while spoken and spoken[-1] in loaded.tokenizer.all_special_ids:
        spoken = spoken[:-1]
    with torch.inference_mode():
        logprobs = loaded.model(torch.tensor([before + spoken])).logits[0].double().log_softmax(-1)
    places = range(len(before) - 1, len(before) + len(spoken) - 1)
    return (
        len(before),
        len(spoken),
        sum(logprobs[i, token].item() for i, token in zip(places, spoken, strict=True)),
    )


def test_both_log_probabilities_are_those_of_plain_passes(nano):
    rows = [row["messages"] for row in generate_pool(12, 5, WorldConfig(noise_rate=0))]
    found = Difficulty(nano)(table(rows)).to_pylist()
    for messages, row in zip(rows, found, strict=True):
        before, spoken, given = by_hand(nano, messages)
        _, _, alone = by_hand(nano, messages, alone=True)
        assert row[ERROR] is None and row["truncated"] is False
        assert (row["prompt_tokens"], row["answer_tokens"]) == (before, spoken)
        assert row["logprob_given"] == pytest.approx(given, abs=1e-4)
        assert row["logprob_alone"] == pytest.approx(alone, abs=1e-4)


def test_ifd_is_the_ratio_of_the_two(nano):
    rows = table([row["messages"] for row in generate_pool(10, 6, WorldConfig(noise_rate=0))])
    for one, other in zip(Difficulty(nano)(rows).to_pylist(), Ifd(nano)(rows).to_pylist(), strict=True):
        assert one["logprob_given"] / one["logprob_alone"] == pytest.approx(other["ifd"], rel=1e-6)
        assert one["answer_tokens"] == other["n_label_tokens"]


def test_batch_mates_change_nothing(nano):
    rows = table([row["messages"] for row in generate_pool(10, 7, WorldConfig(noise_rate=0))])
    for one, other in zip(
        Difficulty(nano)(rows).to_pylist(), Difficulty(nano, batch_tokens=1)(rows).to_pylist(), strict=True
    ):
        assert one["logprob_given"] == pytest.approx(other["logprob_given"], abs=1e-4)
        assert one["logprob_alone"] == pytest.approx(other["logprob_alone"], abs=1e-4)


def test_a_wide_vocabulary_bounds_the_labels_of_a_pass_and_not_its_tokens(nano, monkeypatch):
    """With 128,000 words 2^29 logits are those of 4,194 positions, a quarter of the usual pass."""
    rows = table([row["messages"] for row in generate_pool(24, 7, WorldConfig(noise_rate=0))])
    expected, passes = Difficulty(nano)(rows).to_pylist(), []
    vocabulary = nano.model.get_output_embeddings().weight.shape[0]
    monkeypatch.setattr(likelihood, "MAX_LOGITS", 120 * vocabulary)
    usual = loss.label_logits

    def noted(model, batch, head):
        logits = usual(model, batch, head)
        passes.append((batch.input_ids.numel(), len(batch.input_ids), len(logits)))
        return logits

    monkeypatch.setattr(loss, "label_logits", noted)
    scorer = Difficulty(nano)
    assert scorer.batch_tokens == 2048, "the tokens of a pass are those of any model"
    found = scorer(rows).to_pylist()
    assert all(labels <= 120 or of == 1 for _, of, labels in passes) and max(size for size, _, _ in passes) > 120
    for one, other in zip(found, expected, strict=True):
        assert one["logprob_given"] == pytest.approx(other["logprob_given"], abs=1e-4)


def test_cut_answers_are_marked_and_rows_without_an_answer_fail(tmp_path):
    model = load(tiny_llama(tmp_path), threads=1)
    rows = [turns("q" * 20, "a" * 60), turns("q", ""), turns("q" * 90, "a"), turns("q"), turns("q", "fine")]
    cut, empty, long, unanswered, fine = Difficulty(model, max_length=40)(table(rows)).to_pylist()
    assert (cut["truncated"], cut["prompt_tokens"], cut["answer_tokens"]) == (True, 23, 17)
    assert empty[ERROR] == "the answer has no tokens"
    assert "the prompt has 93 tokens" in long[ERROR]
    assert "ends with a message of the user" in unanswered[ERROR]
    assert fine[ERROR] is None and [row["logprob_given"] for row in (empty, long, unanswered)] == [None] * 3
    model.model.model.norm.weight.data.fill_(float("nan"))
    (row,) = Difficulty(model)(table([turns("a", "b")])).to_pylist()
    assert row[ERROR] == "the model gave no finite log-probability"


def test_a_template_that_refuses_an_empty_question_says_what_to_do(tmp_path):
    model = load(tiny_llama(tmp_path), threads=1)
    refusal = "{% if not messages[0]['content'] %}{{ raise_exception('empty') }}{% endif %}"
    model.tokenizer.chat_template = refusal + CHAT_TEMPLATE
    with pytest.raises(ModelError, match=r"difficulty: .* use another auxiliary model or another template"):
        Difficulty(model)

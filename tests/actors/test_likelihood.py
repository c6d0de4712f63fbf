"""Log-probabilities against one plain forward pass, on a tiny random Llama."""

import pyarrow as pa
import pytest

from raysift.actors.likelihood import AnswerLoss, Likelihood
from raysift.actors.loaded import LoadedModel, load
from raysift.records import ERROR, ID, MESSAGE, MESSAGES

from ..tiny_models import tiny_llama  # noqa: TID252


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> LoadedModel:
    return load(tiny_llama(tmp_path_factory.mktemp("model"), initializer_range=0.2), threads=1)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def choice_table(rows):
    records = [{ID: i, MESSAGES: messages, "choices": choices} for i, (messages, choices) in enumerate(rows)]
    schema = pa.schema([(ID, pa.int64()), (MESSAGES, pa.list_(MESSAGE)), ("choices", pa.list_(pa.string()))])
    return pa.Table.from_pylist(records, schema=schema)


def conversation_table(conversations):
    records = [{ID: i, MESSAGES: messages} for i, messages in enumerate(conversations)]
    return pa.Table.from_pylist(records, schema=pa.schema([(ID, pa.int64()), (MESSAGES, pa.list_(MESSAGE))]))


def plain_logprobs(loaded, before, spoken):
    """Log-probability of each token of `spoken` after `before`, by one pass over this row alone."""
    import torch

    first, rest = (loaded.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, spoken))
    ids = torch.tensor([first + rest])
    with torch.inference_mode():
        logprobs = loaded.model(ids).logits[0].double().log_softmax(-1)
    return [logprobs[len(first) + k - 1, token].item() for k, token in enumerate(rest)]


QUESTIONS = [
    ([user("2 + 3?")], ["5", "55", "a long wrong choice"]),
    ([user("Sky? " * 20)], ["blue", "red"]),
    ([user("Ünï")], ["é", "ee"]),
] * 5


def test_choice_is_weighed_as_a_plain_pass_weighs_it(loaded):
    answers = Likelihood(loaded)(choice_table(QUESTIONS)).to_pylist()
    for (messages, choices), answer in zip(QUESTIONS, answers, strict=True):
        for choice, logprob, tokens in zip(choices, answer["choice_logprobs"], answer["choice_tokens"], strict=True):
            before = f"<|begin|><|user|>{messages[0]['content']}<|assistant|>"
            expected = plain_logprobs(loaded, before, choice + "<|end|>")
            assert logprob == pytest.approx(sum(expected), abs=1e-4)
            assert tokens == len(expected)
        assert answer["choice_bytes"] == [len(choice.encode()) for choice in choices]


def test_likelihood_does_not_depend_on_batch_mates(loaded):
    alone = Likelihood(loaded, batch_tokens=1)(choice_table(QUESTIONS)).to_pylist()
    together = Likelihood(loaded)(choice_table(QUESTIONS)).to_pylist()
    for one, other in zip(alone, together, strict=True):
        assert one["choice_logprobs"] == pytest.approx(other["choice_logprobs"], abs=1e-4)


def test_earlier_turns_are_given_and_not_weighed(loaded):
    shots = [user("1 + 1?"), assistant("2"), user("2 + 3?")]
    (answer,) = Likelihood(loaded)(choice_table([(shots, ["5", "56"])])).to_pylist()
    before = "<|begin|><|user|>1 + 1?<|assistant|>2<|end|><|user|>2 + 3?<|assistant|>"
    for choice, logprob, tokens in zip(["5", "56"], answer["choice_logprobs"], answer["choice_tokens"], strict=True):
        expected = plain_logprobs(loaded, before, choice + "<|end|>")
        assert (logprob, tokens) == (pytest.approx(sum(expected), abs=1e-4), len(expected))


def test_too_long_choice_fails_its_row_alone(loaded):
    rows = [([user("?")], ["a", "b"]), ([user("?")], ["a", "secret" * 20])]
    first, second = Likelihood(loaded, max_length=64)(choice_table(rows)).to_pylist()
    assert first[ERROR] is None
    assert second[ERROR] == "prompt and choice have 125 tokens, there is room for 64"


def test_validation_loss_is_the_mean_over_the_assistants_tokens(loaded):
    conversations = [
        [user("hi"), assistant("hello there")],
        [user("a"), assistant("b"), user("c" * 40), assistant("dd")],
    ]
    first, second = AnswerLoss(loaded)(conversation_table(conversations)).to_pylist()
    expected = plain_logprobs(loaded, "<|begin|><|user|>hi<|assistant|>", "hello there<|end|>")
    assert first == {
        ID: 0,
        "loss": pytest.approx(-sum(expected) / 12, abs=1e-5),
        "n_label_tokens": 12,
        "truncated": False,
        ERROR: None,
    }
    assert second["n_label_tokens"] == 2 + 3


def test_validation_loss_is_what_transformers_computes_from_the_same_labels(loaded):
    import torch

    from raysift.templates import encode_conversation

    messages = [user("a"), assistant("b"), user("c" * 40), assistant("dd")]
    encoded = encode_conversation(loaded.tokenizer, messages, 512)
    with torch.inference_mode():
        expected = loaded.model(torch.tensor([encoded.input_ids]), labels=torch.tensor([encoded.labels])).loss.item()
    (row,) = AnswerLoss(loaded)(conversation_table([messages])).to_pylist()
    assert row["loss"] == pytest.approx(expected, abs=1e-5)


def test_cut_conversations_say_so_and_empty_ones_fail(loaded):
    conversations = [[user("hi"), assistant("long " * 30)], [user("q" * 90), assistant("never seen")]]
    cut, unseen = AnswerLoss(loaded, max_length=64)(conversation_table(conversations)).to_pylist()
    assert (cut["truncated"], cut["n_label_tokens"]) == (True, 64 - 5)
    assert unseen[ERROR] == "none of the first 64 tokens is the assistant's"


def test_loss_that_is_not_a_number_fails_its_row(tmp_path):
    broken = load(tiny_llama(tmp_path))
    broken.model.model.norm.weight.data.fill_(float("nan"))
    (row,) = AnswerLoss(broken)(conversation_table([[user("a"), assistant("b")]])).to_pylist()
    assert row[ERROR] == "the model gave no finite loss"
    (row,) = Likelihood(broken)(choice_table([([user("a")], ["b", "c"])])).to_pylist()
    assert "no finite log-probability" in row[ERROR]


def test_an_adapter_changes_the_loss_and_turning_it_off_gives_the_base(loaded, tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model

    tiny = tiny_llama(tmp_path)
    base = load(tiny)
    before = AnswerLoss(base)(conversation_table([[user("hi"), assistant("there")]])).to_pylist()[0]["loss"]
    tuned = get_peft_model(base.model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                weight.mul_(30)
    tuned.save_pretrained(tmp_path / "adapter")
    after = AnswerLoss(tiny, adapter=str(tmp_path / "adapter"))(conversation_table([[user("hi"), assistant("there")]]))
    live = AnswerLoss(LoadedModel(tuned.eval(), base.tokenizer))(conversation_table([[user("hi"), assistant("there")]]))
    assert after.to_pylist()[0]["loss"] == pytest.approx(live.to_pylist()[0]["loss"], abs=1e-5)
    assert abs(after.to_pylist()[0]["loss"] - before) > 1e-3

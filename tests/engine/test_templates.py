"""Labels against masks made by hand: with a byte tokenizer, the text that counts can be read off."""

from __future__ import annotations

from datetime import datetime

import pytest

from raysift.errors import ConfigError, DataError, ModelError
from raysift.templates import IGNORED, TODAY, encode_conversation, encode_prompt

from .. import tiny_models  # noqa: TID252
from ..tiny_models import byte_tokenizer  # noqa: TID252

CONVERSATION = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "hé"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "more"},
    {"role": "tool", "content": "42"},
    {"role": "assistant", "content": "a"},
]
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
QWEN = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content.strip() }}{{ eos_token }}"
    "{% else %}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}"
)
DEEPSEEK_R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>"
    "{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% else %}<|user|>{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
DEEPSEEK_V3 = DEEPSEEK_R1.replace("<|assistant|>", "<|assistant|></think>").replace("<think>\n", "")
MARKED_WITHOUT_END = (
    "{% for m in messages %}\n    {% if m.role == 'assistant' %}\n<|im_start|>assistant\n"
    "        {%- generation %}\n {{ m['content'] }}\n        {%- endgeneration %}\n<|im_end|>\n    {% else %}\n"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n    {% endif %}\n{% endfor %}"
)
SPECIALS = (
    *tiny_models.SPECIALS,
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|im_start|>",
    "<|im_end|>",
)


def counted(tokenizer, messages, template="auto", max_length=1000) -> list[str]:
    """The stretches of text that count."""
    encoded = encode_conversation(tokenizer, messages, max_length, template)
    assert len(encoded.labels) == len(encoded.input_ids)
    stretches: list[list[int]] = []
    for i, label in enumerate(encoded.labels):
        if label != IGNORED:
            assert label == encoded.input_ids[i]
            if not i or encoded.labels[i - 1] == IGNORED:
                stretches.append([])
            stretches[-1].append(label)
    return [tokenizer.decode(stretch) for stretch in stretches]


@pytest.mark.parametrize(
    ("chat_template", "expected"),
    [
        (tiny_models.CHAT_TEMPLATE, ["yes<|end|>", "a<|end|>"]),
        (LLAMA3, ["yes<|eot_id|>", "a<|eot_id|>"]),
        (QWEN, ["yes<|im_end|>", "<think>\n\n</think>\n\na<|im_end|>"]),
        (MISTRAL, [" yes<|end|>", " a<|end|>"]),
        (MARKED_WITHOUT_END, [" yes<|im_end|>", " a<|im_end|>"]),
    ],
    ids=["generation", "llama3", "qwen3", "mistral", "generation without its end"],
)
def test_only_what_the_assistant_says_counts_with_its_end(chat_template, expected):
    tokenizer = byte_tokenizer(chat_template, SPECIALS)
    if chat_template is MARKED_WITHOUT_END:
        rendered = tokenizer.apply_chat_template(CONVERSATION, tokenize=False)
        ids = encode_conversation(tokenizer, CONVERSATION, 1000).input_ids
        assert tokenizer.decode(ids) == rendered, "marks must not change the text"
        expected = [text.strip() for text in expected]
        assert [text.replace("\n", "").strip() for text in counted(tokenizer, CONVERSATION)] == expected
        return
    assert counted(tokenizer, CONVERSATION) == expected


@pytest.mark.parametrize("template", ["chatml", "alpaca", "tulu"])
def test_named_templates_count_the_answers_and_the_end_of_sequence(template):
    tokenizer = byte_tokenizer(None)
    assert counted(tokenizer, CONVERSATION, template) == ["yes<|end|>", "a<|end|>"]


def test_stanford_prompt_is_spelled_as_published():
    tokenizer = byte_tokenizer(None)
    encoded = encode_conversation(
        tokenizer, [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}], 1000, "alpaca"
    )
    assert tokenizer.decode(encoded.input_ids) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nQ\n\n### Response:A<|end|>"
    )


def test_without_a_chat_template_auto_is_tulu():
    tokenizer = byte_tokenizer(None)
    auto = encode_conversation(tokenizer, CONVERSATION, 1000)
    assert auto == encode_conversation(tokenizer, CONVERSATION, 1000, "tulu")
    assert auto.template == "tulu"
    assert tokenizer.decode(auto.input_ids).startswith(
        "<|system|>\nS\n<|user|>\nhé\n<|assistant|>\nyes<|end|>\n<|user|>"
    )


@pytest.mark.parametrize("template", ["auto", "chatml", "alpaca", "tulu"])
def test_a_prompt_is_the_beginning_of_the_conversation(template):
    tokenizer = byte_tokenizer()
    prompt = encode_prompt(tokenizer, CONVERSATION[:-1], template)
    whole = encode_conversation(tokenizer, CONVERSATION, 1000, template)
    assert whole.input_ids[: len(prompt)] == prompt
    assert all(label != IGNORED for label in whole.labels[len(prompt) :])


MERGES = tuple(
    (left, right) for left in ("Ġ", "Ċ", ":", ">", "k") for right in ("Ġ", "Ċ", "(", "y", ":", ">")
)  # with the spelling of byte-level tokenizers: Ġ is a space, Ċ a line break


@pytest.mark.parametrize("beginning", ["y", " y", "  y", "\n\ny", "(y", ": y", ">y", "\n", "", " "])
@pytest.mark.parametrize(
    "template", ["chatml", "alpaca", "tulu", tiny_models.CHAT_TEMPLATE, LLAMA3, QWEN, MISTRAL, DEEPSEEK_V3]
)
def test_a_prompt_s_tokens_stand_before_the_answer_however_it_begins(template, beginning):
    """With a tokenizer that would merge the prompt's last character with the answer's first."""
    name = template if template in ("chatml", "alpaca", "tulu") else "auto"
    tokenizer = byte_tokenizer(None if name == template else template, SPECIALS, MERGES)
    answer = {"role": "assistant", "content": beginning}
    talk = [{"role": "user", "content": "ok"}, answer, {"role": "user", "content": "q"}, answer]
    prompt = encode_prompt(tokenizer, talk[:-1], name)
    whole = encode_conversation(tokenizer, talk, 1000, name)
    assert whole.input_ids[: len(prompt)] == prompt
    assert IGNORED not in whole.labels[len(prompt) : -1], "the last may be a line break after the end token"
    assert beginning.strip() in tokenizer.decode(whole.input_ids[len(prompt) :])


@pytest.mark.parametrize("beginning", [" y", "  y", "\n\ny", "(y"])
@pytest.mark.parametrize("template", [DEEPSEEK_R1, DEEPSEEK_V3])
def test_white_space_that_an_answer_begins_with_counts_with_its_first_word(template, beginning):
    tokenizer = byte_tokenizer(template, SPECIALS, MERGES)
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": beginning}]
    assert counted(tokenizer, talk) == [f"{beginning}<|end|>"]


@pytest.mark.parametrize(
    "date", ["{{ strftime_now('%d %b %Y') }}", "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% endif %}"]
)
def test_the_date_that_a_template_prints_is_the_same_on_any_day(date):
    tokenizer = byte_tokenizer(f"Today is {date}. " + tiny_models.CHAT_TEMPLATE)
    for ids in (
        encode_prompt(tokenizer, CONVERSATION[:2]),
        encode_conversation(tokenizer, CONVERSATION, 999).input_ids,
    ):
        assert TODAY.strftime("%Y") in tokenizer.decode(ids)
        assert datetime.now().strftime("%Y") not in tokenizer.decode(ids)


def test_an_answer_that_repeats_the_question_is_found_in_its_own_place():
    echo = [{"role": "user", "content": "assistant"}, {"role": "assistant", "content": "assistant"}] * 2
    assert counted(byte_tokenizer(LLAMA3, SPECIALS), echo) == ["assistant<|eot_id|>"] * 2


def test_an_answer_ending_in_white_space_keeps_its_end_token():
    row = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "yes\n"}]
    assert counted(byte_tokenizer(QWEN.replace("loop.last", "false"), SPECIALS), row) == ["yes\n<|im_end|>"]


def test_a_cut_answer_is_truncated_and_a_cut_question_leaves_no_labels():
    tokenizer = byte_tokenizer()
    row = [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "defgh"}]
    # begin, user, a, b, c, assistant | d, e, f, g, h, end
    whole = encode_conversation(tokenizer, row, 12)
    assert (whole.truncated, whole.has_labels, len(whole.input_ids)) == (False, True, 12)
    cut = encode_conversation(tokenizer, row, 11)
    assert (cut.truncated, cut.has_labels, len(cut.input_ids)) == (True, True, 11)
    question = encode_conversation(tokenizer, row, 6)
    assert (question.truncated, question.has_labels) == (True, False)
    assert not encode_conversation(tokenizer, row[:1], 100).has_labels


def test_doubled_bos_and_eos_are_removed_and_reported():
    doubling = byte_tokenizer("{{ bos_token }}" + tiny_models.CHAT_TEMPLATE)
    row = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    clean = encode_conversation(byte_tokenizer(), row, 100)
    assert not clean.doubled_special
    twice = encode_conversation(doubling, row, 100)
    assert twice.doubled_special and twice.input_ids == clean.input_ids and twice.labels == clean.labels
    in_data = encode_conversation(byte_tokenizer(), [row[0], {"role": "assistant", "content": "a<|end|>"}], 100)
    assert in_data.doubled_special and in_data.labels == clean.labels


def test_a_refusing_chat_template_fails_the_row_and_a_slow_tokenizer_the_model():
    refusing = byte_tokenizer("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(DataError, match="roles must alternate"):
        encode_conversation(refusing, CONVERSATION, 100)

    class Slow:
        is_fast, chat_template, bos_token, eos_token, bos_token_id = False, None, None, "</s>", None

        def __call__(self, text, **options):
            return {"input_ids": [1]}

    with pytest.raises(ModelError, match="offsets"):
        encode_conversation(Slow(), CONVERSATION, 100)


def test_an_unknown_template_lists_the_known():
    with pytest.raises(ConfigError, match="auto, alpaca, chatml, tulu"):
        encode_conversation(byte_tokenizer(), CONVERSATION, 100, "vicuna")


def test_special_tokens_are_listed_once_for_each_tokenizer_and_again_when_it_gets_more(monkeypatch):
    """Listing them takes a third of a row's time, with the 256 special tokens of a Llama 3."""
    tokenizer, listed = byte_tokenizer(LLAMA3, SPECIALS, eos_token="<|eot_id|>"), []
    kind, usual = type(tokenizer), type(tokenizer).added_tokens_decoder
    monkeypatch.setattr(kind, "added_tokens_decoder", property(lambda self: listed.append(self) or usual.fget(self)))
    expected = counted(tokenizer, CONVERSATION)
    assert len(listed) == 1
    assert all(counted(tokenizer, CONVERSATION) == expected for _ in range(5)) and len(listed) == 1
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b<|new|>"}]
    assert counted(tokenizer, turn)[0].startswith("b<|new|>")

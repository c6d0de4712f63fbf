"""The shipped nano models: they load as ordinary checkpoints and still earn the scores recorded beside them."""

import json
from random import Random

import pytest

from raysift.nano import NANO_MODELS, nano_path
from raysift.nano.skills import SKILLS, TARGETS
from raysift.nano.world import generate_pool


def recorded_scores(name):
    return json.loads((nano_path(name) / "training_log.json").read_text())["scores"]


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(nano_path("foundation"))


@pytest.mark.parametrize(
    "text",
    ["Sort these words alphabetically: pear fig", "naïve 東京 🎉\n\n x  y\t", "What is 12 plus 99?", "\x00 <|user|"],
)
def test_any_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_digits_and_problem_words_stay_single_characters(tokenizer):
    assert tokenizer.tokenize("Add 1234 and lemon") == ["Add", *"Ġ1234", "Ġand", *"Ġlemon"]


def test_models_share_one_tokenizer(tokenizer):
    from transformers import AutoTokenizer

    for name in NANO_MODELS:
        other = AutoTokenizer.from_pretrained(nano_path(name))
        assert other.get_vocab() == tokenizer.get_vocab()
        assert other.chat_template == tokenizer.chat_template


def test_assistant_mask_covers_exactly_the_answers_and_their_ends(tokenizer):
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "Add 1 and 2."},
        {"role": "assistant", "content": "3"},
        {"role": "tool", "content": "ok"},
        {"role": "assistant", "content": " 4 "},
    ]
    made = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    masked = [token for token, keep in zip(made["input_ids"], made["assistant_masks"], strict=True) if keep]
    assert tokenizer.decode(masked) == "3<|end|> 4 <|end|>"
    prompt = tokenizer.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True)
    assert tokenizer.apply_chat_template(messages[:3], tokenize=False) == prompt + "3<|end|>"


def test_fast_encoding_agrees_with_the_chat_template(tokenizer):
    from raysift.jobs.nano_build.training import Conversation, encode_conversations

    rows = [[message["content"] for message in row["messages"]] for row in generate_pool(50, 0)]
    for (prompt, response), (ids, _) in zip(
        rows, encode_conversations(tokenizer, [Conversation(*row) for row in rows]), strict=True
    ):
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        assert tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"] == ids


def test_foundation_earns_its_recorded_scores(tokenizer):
    """40 rows a skill: the standard error is at most 0.08, and half precision was stored."""
    from transformers import AutoModelForCausalLM

    from raysift.jobs.nano_build.foundation import score_foundation

    model = AutoModelForCausalLM.from_pretrained(nano_path("foundation"))
    assert model.dtype.itemsize == 4
    recorded = recorded_scores("foundation")
    assert recorded.keys() == SKILLS.keys()
    found = score_foundation(model, tokenizer, 40, TARGETS)
    for skill in TARGETS:
        assert found[skill] == pytest.approx(recorded[skill], abs=0.2)
        assert found[skill] < 0.4, "the foundation must leave room to improve"


def test_reward_earns_its_recorded_accuracy(tokenizer):
    """300 pairs: the standard error is about 0.02."""
    from transformers import AutoModelForSequenceClassification

    from raysift.jobs.nano_build.reward import score_reward

    model = AutoModelForSequenceClassification.from_pretrained(nano_path("reward"))
    recorded = recorded_scores("reward")
    assert recorded["pair_accuracy"] >= 0.8  # shipped: 0.848; the aim was 0.85, see TRAINING.md
    assert score_reward(model, tokenizer, rows=300)["pair_accuracy"] == pytest.approx(
        recorded["pair_accuracy"], abs=0.06
    )


def test_reward_does_not_depend_on_padding(tokenizer):
    from transformers import AutoModelForSequenceClassification

    from raysift.jobs.nano_build.reward import score_conversations
    from raysift.jobs.nano_build.training import Conversation

    model = AutoModelForSequenceClassification.from_pretrained(nano_path("reward"))
    rows = [Conversation(*(message["content"] for message in row["messages"])) for row in generate_pool(16, 1)]
    together = score_conversations(model, tokenizer, rows)
    alone = [score_conversations(model, tokenizer, [row])[0] for row in rows]
    assert together == pytest.approx(alone, abs=1e-3)
    assert max(together) - min(together) > 1


def test_encoder_earns_its_recorded_accuracy(tokenizer):
    from transformers import AutoModel

    from raysift.jobs.nano_build.encoder import score_encoder

    model = AutoModel.from_pretrained(nano_path("encoder")).eval()
    recorded = recorded_scores("encoder")
    found = score_encoder(model, tokenizer, rows=300)
    for form, accuracy in found.items():
        assert recorded[form] >= 0.9
        assert accuracy == pytest.approx(recorded[form], abs=0.1)


def test_all_weights_together_stay_small():
    files = [path for path in nano_path("foundation").parent.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 11e6


def test_a_small_build_writes_loadable_checkpoints(tmp_path):
    """A few steps of each training, to prove the recipe runs end to end; the scores are meaningless."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

    from raysift.jobs.nano_build import BuildConfig, build

    tiny = BuildConfig(foundation_steps=2, reward_steps=2, encoder_steps=2, score_rows=22)
    lines = []
    scores = build(tmp_path, seed=Random(0).randrange(9), log=lines.append, config=tiny)
    assert set(scores) == set(NANO_MODELS)
    assert any("foundation: step 2/2 loss" in line for line in lines)
    AutoModelForCausalLM.from_pretrained(tmp_path / "foundation")
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    AutoModel.from_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match="unknown model 'judge'"):
        build(tmp_path, only=["judge"])

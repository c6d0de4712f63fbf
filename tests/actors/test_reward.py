"""Rewards against a plain loop over single rows, for classifiers with places, with distances, and causal ones."""

import json
import os
import random

import pyarrow as pa
import pytest

from raysift.actors.loaded import LoadedModel
from raysift.actors.reward import Reward, pick_output, resolve_reward_template
from raysift.errors import ModelError, StageError
from raysift.nano.world import generate_pool, is_clean
from raysift.pool.given_input import join_input
from raysift.records import ERROR, ID, MESSAGE, MESSAGES
from raysift.scoring.settings import RewardSettings

from ..benchmarks.ranking import auc  # noqa: TID252
from ..tiny_classifiers import KINDS, pair_tokenizer, tiny_classifier, tiny_config  # noqa: TID252
from ..tiny_models import byte_tokenizer, tiny_llama  # noqa: TID252

SCHEMA = pa.schema([(ID, pa.int64()), (MESSAGES, pa.list_(MESSAGE)), ("own", pa.string())])


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def table(conversations, own=None):
    records = [{ID: i, MESSAGES: talk, "own": own[i] if own else None} for i, talk in enumerate(conversations)]
    return pa.Table.from_pylist(records, schema=SCHEMA)


def mixed_rows(count=40):
    rng = random.Random(0)
    words = ["the", "a", "sum", "of", "naïve", "numbers", "is", "12", "é"]
    text = lambda most: " ".join(rng.choice(words) for _ in range(rng.randint(1, most)))  # noqa: E731
    return [[user(text(12)), assistant(text(8))] for _ in range(count)]


def by_id(answers):
    return {row[ID]: row for row in answers.to_pylist()}


@pytest.fixture(scope="module", params=KINDS)
def model(request, tmp_path_factory):
    return request.param, tiny_classifier(tmp_path_factory.mktemp("models"), request.param)


def plain_scores(path, conversations):
    """One row at a time, as MoDS does: tokenizer call, forward, first logit."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    scores = []
    for asked, given in conversations:
        if tokenizer.chat_template:
            text = tokenizer.apply_chat_template([asked, given], tokenize=False)
            inputs = {"input_ids": tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]}
        else:
            inputs = tokenizer(asked["content"], given["content"], return_tensors="pt")
        with torch.no_grad():
            scores.append(float(model(**inputs).logits[0]))
    return scores


def test_scores_are_those_of_a_loop_over_single_rows(model):
    _, path = model
    rows = mixed_rows()
    expected = plain_scores(path, rows)
    assert max(expected) - min(expected) > 0.1, "a model that gives all rows one score would pass"
    found = Reward(path)(table(rows)).to_pylist()
    assert [row["reward"] for row in found] == pytest.approx(expected, abs=1e-5)
    assert not any(row["truncated"] or row[ERROR] for row in found)


def test_scores_do_not_depend_on_mates_padding_or_order(model):
    _, path = model
    batch = table(mixed_rows())
    expected = by_id(Reward(path)(batch))
    order = random.Random(1).sample(range(len(batch)), len(batch))
    for other in (Reward(path, batch_tokens=1)(batch), Reward(path, batch_tokens=300)(batch.take(order))):
        for number, row in by_id(other).items():
            assert row["reward"] == pytest.approx(expected[number]["reward"], abs=1e-5)
    parts = pa.concat_tables(Reward(path)(batch.slice(start, 6)) for start in range(0, len(batch), 6))
    assert by_id(parts).keys() == expected.keys()
    for number, row in by_id(parts).items():
        assert row["reward"] == pytest.approx(expected[number]["reward"], abs=1e-5)


def test_a_causal_model_without_padding_is_read_at_its_last_token_whatever_that_is(tmp_path):
    """Open models often end a turn with the token that others pad with; padding with it would shift the place."""
    import torch

    reward = Reward(tiny_classifier(tmp_path, "llama-without-padding"))
    reward.tokenizer.eos_token = "<|pad|>"
    rows = mixed_rows(12)
    texts = reward._encode([reward._exchange({MESSAGES: talk}) for talk in rows])
    assert {text.ids[-1] for text in texts} == {0}
    assert reward.model.config.pad_token_id is None
    with torch.no_grad():
        expected = [float(reward.model(torch.tensor([text.ids])).logits[0]) for text in texts]
    assert reward.score(texts) == pytest.approx(expected, abs=1e-5)


def test_pair_is_the_call_of_mods_and_trailing_newline_its_necessity(tmp_path):
    """Quality joins instruction and input by a line break; necessity ends with one even where there is no input."""
    tokenizer = pair_tokenizer()
    path = tiny_classifier(tmp_path, "deberta")
    rows = [("Add.", "1 2", "3"), ("Say hi.", "", "hi")]
    conversations = [[user(join_input(task, given)), assistant(out)] for task, given, out in rows]
    for trailing, questions in ((False, ["Add.\n1 2", "Say hi."]), (True, ["Add.\n1 2", "Say hi.\n"])):
        settings = RewardSettings(template="pair", input_join="newline", trailing_newline=trailing)
        reward = Reward(path, settings=settings)
        exchanges = [reward._exchange({MESSAGES: talk}) for talk in conversations]
        found = [text.ids for text in reward._encode(exchanges)]
        assert found == [tokenizer(q, out)["input_ids"] for q, (_, _, out) in zip(questions, rows, strict=True)]


def test_own_answer_takes_the_place_of_the_rows():
    rows = [[user("2 + 3?"), assistant("5")], [user("2 + 3?")], [user("2 + 3?"), assistant("x")], [user("?")]]
    own = Reward(answer_column="own")(table(rows, own=["7", "7", "", None])).to_pylist()
    plain = Reward()(table([[user("2 + 3?"), assistant("7")], [user("2 + 3?"), assistant("")]])).to_pylist()
    assert own[0]["reward"] == pytest.approx(own[1]["reward"], abs=1e-5) == pytest.approx(plain[0]["reward"], abs=1e-5)
    assert own[2]["reward"] == pytest.approx(plain[1]["reward"], abs=1e-5)
    assert own[3][ERROR] == "there is no text in 'own'" and own[3]["reward"] is None
    with pytest.raises(StageError, match="lacks the column 'other'"):
        Reward(answer_column="other")(table(rows))


def test_rows_without_an_answer_fail_alone(model):
    _, path = model
    good, unanswered, nothing = Reward(path)(table([[user("a"), assistant("b")], [user("a")], []])).to_pylist()
    assert good[ERROR] is None
    assert "ends with a message of the user" in unanswered[ERROR]
    assert "ends with nothing" in nothing[ERROR]


def test_scores_that_are_no_numbers_fail_their_rows(model):
    _, path = model
    reward = Reward(path)
    next(reward.model.parameters()).data.fill_(float("nan"))
    (row,) = reward(table([[user("a"), assistant("b")]])).to_pylist()
    assert (row["reward"], row[ERROR]) == (None, "the model gave no finite score")


def test_long_rows_are_cut_to_the_limit_and_marked(model):
    kind, path = model
    reward = Reward(path, max_length=50)
    rows = [
        [user("q" * 80), assistant("short")],
        [user("q" * 80), assistant("x" * 80)],
        [user("q"), assistant("x" * 80)],
    ]
    encoded = reward._encode([reward._exchange({MESSAGES: talk}) for talk in rows])
    texts = [reward.tokenizer.decode(item.ids) for item in encoded]
    if kind.startswith("llama"):  # what the chat template writes stays, above all the token that closes the turn
        frame, room = "<|begin|><|user|>{}<|assistant|>{}<|end|>", 50 - 4
    else:
        frame, room = "<|begin|>{}<|end|>{}<|end|>", 50 - 3
    assert texts == [
        frame.format("q" * (room - 5), "short"),
        frame.format("q" * (room // 2), "x" * (room - room // 2)),
        frame.format("q", "x" * (room - 1)),
    ]
    for item, row in zip(encoded, reward(table(rows)).to_pylist(), strict=True):
        if row[ERROR] is None:
            assert row["truncated"] and row["n_tokens"] == len(item.ids) == 50


def test_old_turns_go_before_words_are_cut(model):
    _, path = model
    talk = [user("old " * 9), assistant("older"), user("new?"), assistant("yes")]
    row, whole = Reward(path, max_length=40)(table([talk, talk[2:]])).to_pylist()
    assert row["truncated"] and not whole["truncated"]
    assert row["reward"] == pytest.approx(whole["reward"], abs=1e-5)


def test_text_template_is_one_segment_and_cuts_the_longer_part(tmp_path):
    reward = Reward(tiny_classifier(tmp_path, "bert"), settings=RewardSettings(template="text"), max_length=40)
    rows = [[user("why"), assistant("so")], [user("q" * 80), assistant("short")]]
    encoded = reward._encode([reward._exchange({MESSAGES: talk}) for talk in rows])
    assert [reward.tokenizer.decode(item.ids) for item in encoded] == [
        "<|begin|>why\n\nso<|end|>",
        "<|begin|>" + "q" * 31 + "\n\nshort<|end|>",
    ]
    assert [item.truncated for item in encoded] == [False, True]


def test_distances_allow_any_length_and_places_do_not(tmp_path):
    """The tiny models have 128 positions; DeBERTa measures distances and reads on."""
    row = [user("q" * 150), assistant("a" * 100)]
    for kind, longest in (("bert", 128), ("deberta", 400)):
        (found,) = Reward(tiny_classifier(tmp_path, kind), max_length=400)(table([row])).to_pylist()
        assert (found["n_tokens"], found["truncated"]) == ((253, False) if longest == 400 else (128, True))


def test_several_outputs_are_refused_until_one_is_named(tmp_path):
    labels = {"id2label": {0: "bad", 1: "fine", 2: "good"}, "label2id": {"bad": 0, "fine": 1, "good": 2}}
    path = tiny_classifier(tmp_path, "bert", num_labels=3, **labels)
    with pytest.raises(ModelError, match=r"has 3 outputs \(bad, fine, good\) and none is chosen"):
        Reward(path)
    rows = table(mixed_rows(5))
    by_name, by_number, other = (
        [row["reward"] for row in Reward(path, settings=RewardSettings(label=label))(rows).to_pylist()]
        for label in ("good", 2, "bad")
    )
    assert by_name == by_number != other
    with pytest.raises(ModelError, match=r"reward\.label is 'best'"):
        pick_output(tiny_config("bert", **labels), "best")
    with pytest.raises(ModelError, match=r"reward\.label is 3"):
        pick_output(tiny_config("bert", **labels), 3)


def test_a_model_without_a_score_head_is_refused(tmp_path):
    """transformers would draw the head at random and say so in a warning."""
    with pytest.raises(ModelError, match=r"has no weights for score\.weight, so what Auto"):
        Reward(tiny_llama(tmp_path))


def test_template_follows_the_tokenizer():
    assert resolve_reward_template(byte_tokenizer(), "auto") == "chat"
    assert resolve_reward_template(pair_tokenizer(), "auto") == "pair"
    with pytest.raises(ModelError, match="has no chat template"):
        resolve_reward_template(pair_tokenizer(), "chat")


def test_a_template_that_refuses_a_row_fails_that_row_alone(tmp_path):
    reward = Reward(tiny_classifier(tmp_path, "llama"))
    reward.tokenizer.chat_template = "{% if messages|length > 2 %}{{ raise_exception('two only') }}{% endif %}" + (
        reward.tokenizer.chat_template
    )
    rows = [[user("a"), assistant("b")], [user("a"), assistant("b"), user("c"), assistant("d")]]
    good, bad = reward(table(rows)).to_pylist()
    assert good[ERROR] is None
    assert "chat template refuses roles ['user', 'assistant', 'user', 'assistant']" in bad[ERROR]


def test_a_loaded_model_is_taken_as_it_is(tmp_path):
    first = Reward(tiny_classifier(tmp_path, "bert"))
    second = Reward(LoadedModel(first.model, first.tokenizer))
    rows = table(mixed_rows(5))
    assert second.model is first.model and second(rows).equals(first(rows))


def test_nano_reward_ranks_right_answers_above_spoilt_ones():
    """Shipped: AUC 0.90 over all kinds of noise (engine/nano/weights/TRAINING.md); 600 rows have a standard error of 0.015."""
    pool = list(generate_pool(600, 515152))
    rewards = [row["reward"] for row in Reward()(table([row["messages"] for row in pool])).to_pylist()]
    clean = [reward for reward, row in zip(rewards, pool, strict=True) if is_clean(row)]
    spoilt = {row["noise"]: [] for row in pool if not is_clean(row)}
    for reward, row in zip(rewards, pool, strict=True):
        if not is_clean(row):
            spoilt[row["noise"]].append(reward)
    assert auc(clean, [reward for rewards in spoilt.values() for reward in rewards]) > 0.85
    for kind in ("empty", "garbled", "rambling", "truncated"):
        assert auc(clean, spoilt[kind]) > 0.9, kind


def test_nano_reward_scores_as_it_was_trained():
    """Against the loop that its recorded scores come from."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from raysift.jobs.nano_build.reward import score_conversations
    from raysift.jobs.nano_build.training import Conversation
    from raysift.nano import nano_path

    pool = [row["messages"] for row in generate_pool(40, 7)]
    path = nano_path("reward")
    expected = score_conversations(
        AutoModelForSequenceClassification.from_pretrained(path),
        AutoTokenizer.from_pretrained(path),
        [Conversation(*(message["content"] for message in talk)) for talk in pool],
    )
    assert [row["reward"] for row in Reward()(table(pool)).to_pylist()] == pytest.approx(expected, abs=1e-4)


REFERENCES = [
    ("Classify the following data with three labels.", "fjsklfjdsklfjsklfjsklfjs", -2.71),
    ("Change the following sentence from the singular form to the plural form.", "The cat is drinking.", 2.62),
    ('Write a simple definition of the word "economics".', "", 6.44),
    ("Assign this task to the design team.", "Design a communication tool for internal team members.", -0.006),
    ("Compute the following expression.", "2^3 + 3^2", -3.09),
]
WEIGHTS = os.environ.get("RAYSIFT_REWARD_WEIGHTS")


@pytest.mark.skipif(
    not WEIGHTS,
    reason="set RAYSIFT_REWARD_WEIGHTS to the folder of OpenAssistant/reward-model-deberta-v3-large-v2 (1.7 GB)",
)
def test_scores_of_the_papers_figure_come_out(shared_data):
    """Figure 2 of MoDS: five Alpaca rows with the reward that the authors measured, to the digits printed."""
    records = json.loads((shared_data / "formats/alpaca_data.json").read_text())
    asked = {(task, given): expected for task, given, expected in REFERENCES}
    found = [r for r in records if (r["instruction"], r["input"]) in asked]
    assert len(found) >= len(asked)
    talks = [[user(join_input(r["instruction"], r["input"])), assistant(r["output"])] for r in found]
    settings = RewardSettings(template="pair", input_join="newline")
    for record, row in zip(found, Reward(WEIGHTS, settings=settings)(table(talks)).to_pylist(), strict=True):
        expected = asked[record["instruction"], record["input"]]
        assert row["reward"] == pytest.approx(expected, abs=0.011), record["instruction"]

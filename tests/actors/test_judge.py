"""The judge against one plain forward pass, on a tiny random Llama."""

import pyarrow as pa
import pytest

from raysift.actors.judge import Judge
from raysift.actors.loaded import LoadedModel, load
from raysift.errors import ModelError
from raysift.records import ERROR, ID, MESSAGE, MESSAGES
from raysift.scoring.judging import judge_message, special_texts
from raysift.scoring.questions import split_exchange
from raysift.scoring.settings import JudgeSettings
from raysift.templates import encode_prompt

from ..tiny_models import tiny_llama  # noqa: TID252

SETTINGS = JudgeSettings(prompt="{request}\n{answer}\nRate {low} to {high}.", min_mass=0)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> LoadedModel:
    return load(tiny_llama(tmp_path_factory.mktemp("model"), initializer_range=0.2), threads=1)


def talk(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def table(conversations, own=None):
    records = [{ID: i, MESSAGES: each, "own": own[i] if own else None} for i, each in enumerate(conversations)]
    schema = pa.schema([(ID, pa.int64()), (MESSAGES, pa.list_(MESSAGE)), ("own", pa.string())])
    return pa.Table.from_pylist(records, schema=schema)


ROWS = [talk("2 + 3?", "5"), talk("Sky? " * 20, "blue"), talk("Ünï", ""), talk("?", "x " * 40)] * 4


def plain_rating(loaded, messages, settings):
    """(expected rating, mass) from the whole distribution over the next token, for this row alone."""
    import torch

    message = judge_message(split_exchange(messages), settings, special_texts(loaded.tokenizer))
    ids = encode_prompt(loaded.tokenizer, [message])
    ids += loaded.tokenizer(settings.reply_prefix, add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        p = loaded.model(torch.tensor([ids])).logits[0, -1].double().softmax(-1)
    numbers = {r: loaded.tokenizer.convert_tokens_to_ids(str(r)) for r in range(settings.low, settings.high + 1)}
    mass = sum(p[number] for number in numbers.values())
    return float(sum(r * p[number] for r, number in numbers.items()) / mass), float(mass)


@pytest.mark.parametrize("settings", [SETTINGS, JudgeSettings(low=0, high=9, min_mass=0, reply_prefix="Rating: ")])
def test_rating_is_the_expectation_of_a_plain_pass(loaded, settings):
    found = Judge(loaded, settings=settings)(table(ROWS)).to_pylist()
    ratings = [plain_rating(loaded, messages, settings) for messages in ROWS[:4]] * 4
    assert len({round(score, 3) for score, _ in ratings}) > 1
    for row, (score, mass) in zip(found, ratings, strict=True):
        if row[ERROR] is None:
            assert row["judge_score"] == pytest.approx(score, abs=1e-4)
            assert row["rating_mass"] == pytest.approx(mass, abs=1e-5)
            assert settings.low <= row["judge_score"] <= settings.high and not row["truncated"]


def test_rating_does_not_depend_on_batch_mates(loaded):
    together = Judge(loaded, settings=SETTINGS)(table(ROWS)).to_pylist()
    alone = Judge(loaded, settings=SETTINGS, batch_tokens=1)(table(ROWS)).to_pylist()
    for one, other in zip(alone, together, strict=True):
        assert one["judge_score"] == pytest.approx(other["judge_score"], abs=1e-4)


def test_unparsable_replies_fail_with_their_mass_and_get_no_score(loaded):
    """A random model puts some 5 / 272 of the probability on five ratings."""
    strict = SETTINGS.model_copy(update={"min_mass": 0.9})
    for row in Judge(loaded, settings=strict)(table(ROWS[:4])).to_pylist():
        assert row["judge_score"] is None and row["rating_mass"] is None
        assert row[ERROR].startswith("unparsable: the ratings 1 to 5 together have probability 0.")


def test_a_model_that_says_one_rating_gets_that_rating(loaded, tmp_path):
    sure = load(tiny_llama(tmp_path, tie_word_embeddings=False))
    head, four = sure.model.lm_head, sure.tokenizer.convert_tokens_to_ids("4")
    head.weight.data.zero_()
    head.register_forward_hook(
        lambda module, given, logits: logits.index_fill(-1, logits.new_tensor([four]).long(), 30.0)
    )
    for row in Judge(sure, settings=JudgeSettings(prompt=SETTINGS.prompt))(table(ROWS[:4])).to_pylist():
        assert (row["judge_score"], row["rating_mass"]) == (pytest.approx(4.0), pytest.approx(1.0))


def test_long_rows_are_cut_and_hopeless_ones_fail(loaded):
    judge = Judge(loaded, settings=SETTINGS, max_length=300)
    cut, whole = judge(table([talk("q" * 400, "a" * 400), talk("q", "a")])).to_pylist()
    assert cut["truncated"] and cut["n_tokens"] < 300 and cut["judge_score"] is not None
    assert not whole["truncated"]
    (row,) = Judge(loaded, settings=SETTINGS, max_length=60)(table([talk("q" * 400, "a" * 400)])).to_pylist()
    assert "does not fit into 60 tokens" in row[ERROR]


def test_own_answer_is_rated_in_place_of_the_rows(loaded):
    own = Judge(loaded, settings=SETTINGS, answer_column="own")(table([talk("2?", "x"), talk("2?", "x")], ["y", None]))
    first, second = own.to_pylist()
    (expected,) = Judge(loaded, settings=SETTINGS)(table([talk("2?", "y")])).to_pylist()
    assert first["judge_score"] == pytest.approx(expected["judge_score"], abs=1e-5)
    assert second[ERROR] == "there is no text in 'own'"


def test_a_token_that_the_model_does_not_know_fails_its_row(tmp_path):
    """Fed to a model on a GPU it would end the process."""
    known = load(tiny_llama(tmp_path))
    known.tokenizer.add_tokens([f"unused{i}" for i in range(40)])
    odd, plain = Judge(known, settings=SETTINGS)(table([talk("unused39", "a"), talk("q", "a")])).to_pylist()
    assert odd[ERROR] == f"the prompt has token {len(known.tokenizer) - 1}; the model knows those below 272"
    assert plain[ERROR] is None


def test_model_that_gives_no_numbers_fails_its_rows(tmp_path):
    broken = load(tiny_llama(tmp_path))
    broken.model.model.norm.weight.data.fill_(float("nan"))
    (row,) = Judge(broken, settings=SETTINGS)(table([talk("a", "b")])).to_pylist()
    assert row[ERROR] == "the judge gave no finite probabilities"


def test_scale_beyond_single_tokens_is_refused(loaded):
    with pytest.raises(ModelError, match="no single token for 10"):
        Judge(loaded, settings=JudgeSettings(high=10))


def test_nano_foundation_serves_as_a_judge():
    """It learnt arithmetic and lists, not rating; what is shown is that its distribution is read, not that it judges."""
    (row,) = Judge("nano", settings=JudgeSettings(min_mass=0))(table([talk("2 + 3?", "5")])).to_pylist()
    assert 1 <= row["judge_score"] <= 5 and 0 < row["rating_mass"] < 1

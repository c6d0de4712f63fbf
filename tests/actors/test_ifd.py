"""IFD against two plain passes a row."""

import pyarrow as pa
import pytest

from raysift.actors.ifd import Ifd
from raysift.actors.loaded import LoadedModel, load
from raysift.errors import ModelError
from raysift.records import ERROR, ID, MESSAGE, MESSAGES
from raysift.scoring.settings import IfdSettings

from ..tiny_models import CHAT_TEMPLATE, tiny_llama  # noqa: TID252


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> LoadedModel:
    return load(tiny_llama(tmp_path_factory.mktemp("model"), initializer_range=0.2), threads=1)


def turns(*contents):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def table(conversations):
    records = [{ID: i, MESSAGES: messages} for i, messages in enumerate(conversations)]
    return pa.Table.from_pylist(records, schema=pa.schema([(ID, pa.int64()), (MESSAGES, pa.list_(MESSAGE))]))


def plain_loss(loaded, before, spoken):
    """Mean loss of the tokens of `spoken` after `before`, by one pass over this row alone."""
    import torch

    first, rest = (loaded.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, spoken))
    with torch.inference_mode():
        logprobs = loaded.model(torch.tensor([first + rest])).logits[0].double().log_softmax(-1)
    return -sum(logprobs[len(first) + k - 1, token].item() for k, token in enumerate(rest)) / len(rest)


ROWS = [("2 + 3?", "5"), ("Sky? " * 20, "blue, mostly"), ("Ünï", "é"), ("Name a colour.", "red " * 20)] * 4


@pytest.mark.parametrize(
    ("settings", "alone"),
    [(IfdSettings(), "<|begin|><|user|><|assistant|>"), (IfdSettings(without_prompt="bos"), "<|begin|>")],
)
def test_ifd_is_the_ratio_of_two_plain_losses(loaded, settings, alone):
    found = Ifd(loaded, settings=settings)(table([turns(*row) for row in ROWS])).to_pylist()
    for (question, answer), row in zip(ROWS, found, strict=True):
        given = plain_loss(loaded, f"<|begin|><|user|>{question}<|assistant|>", answer)
        bare = plain_loss(loaded, alone, answer)
        assert row["conditional_loss"] == pytest.approx(given, abs=1e-5)
        assert row["direct_loss"] == pytest.approx(bare, abs=1e-5)
        assert row["ifd"] == pytest.approx(given / bare, abs=1e-5)
        assert row["n_label_tokens"] == len(answer.encode())  # the end token is not among them
        assert row["truncated"] is False


def test_ifd_does_not_depend_on_batch_mates(loaded):
    rows = table([turns(*row) for row in ROWS])
    together, alone = Ifd(loaded)(rows).to_pylist(), Ifd(loaded, batch_tokens=1)(rows).to_pylist()
    for one, other in zip(alone, together, strict=True):
        assert one["ifd"] == pytest.approx(other["ifd"], abs=1e-5)


def test_an_empty_prompt_neither_helps_nor_harms(loaded):
    (row,) = Ifd(loaded)(table([turns("", "some answer")])).to_pylist()
    assert row["ifd"] == pytest.approx(1.0, abs=1e-6)
    assert row["conditional_loss"] > 0.1


def test_only_the_last_answer_counts(loaded):
    (row,) = Ifd(loaded)(table([turns("1 + 1?", "2", "2 + 3?", "five")])).to_pylist()
    before = "<|begin|><|user|>1 + 1?<|assistant|>2<|end|><|user|>2 + 3?<|assistant|>"
    assert row["conditional_loss"] == pytest.approx(plain_loss(loaded, before, "five"), abs=1e-5)
    assert row["direct_loss"] == pytest.approx(plain_loss(loaded, "<|begin|><|user|><|assistant|>", "five"), abs=1e-5)


def test_a_cut_answer_is_cut_for_both_losses(loaded):
    (row,) = Ifd(loaded, max_length=40)(table([turns("q" * 20, "a" * 60)])).to_pylist()
    assert (row["truncated"], row["n_label_tokens"]) == (True, 40 - 23)
    given = plain_loss(loaded, f"<|begin|><|user|>{'q' * 20}<|assistant|>", "a" * 17)
    assert row["conditional_loss"] == pytest.approx(given, abs=1e-5)
    assert row["direct_loss"] == pytest.approx(plain_loss(loaded, "<|begin|><|user|><|assistant|>", "a" * 17), abs=1e-5)


def test_rows_without_a_ratio_fail_with_their_reason(loaded):
    rows = [turns("q", ""), turns("q" * 90, "a"), turns("q"), turns("q", "fine")]
    empty, long, unanswered, fine = Ifd(loaded, max_length=50)(table(rows)).to_pylist()
    assert empty[ERROR] == "the answer has no tokens"
    assert long[ERROR] == "the prompt has 93 tokens, there is room for 49"
    assert "ends with a message of the user" in unanswered[ERROR]
    assert fine[ERROR] is None and [row["ifd"] for row in (empty, long, unanswered)] == [None] * 3


def test_losses_that_are_no_numbers_fail_their_row(tmp_path):
    broken = load(tiny_llama(tmp_path))
    broken.model.model.norm.weight.data.fill_(float("nan"))
    (row,) = Ifd(broken)(table([turns("a", "b")])).to_pylist()
    assert row[ERROR] == "the model gave no finite loss"


def test_a_template_that_refuses_an_empty_question_says_what_to_do(loaded, tmp_path):
    strict = load(tiny_llama(tmp_path))
    strict.tokenizer.chat_template = (
        "{% if not messages[0]['content'] %}{{ raise_exception('empty') }}{% endif %}" + CHAT_TEMPLATE
    )
    with pytest.raises(ModelError, match="use without_prompt=bos"):
        Ifd(strict)
    (row,) = Ifd(strict, settings=IfdSettings(without_prompt="bos"))(table([turns("a", "b")])).to_pylist()
    assert row[ERROR] is None


def test_the_prompt_helps_the_nano_foundation_with_right_answers():
    """On rows of its own world the median ratio is well below 1, and higher where the answer belongs to another row."""
    from statistics import median

    from raysift.nano.world import WorldConfig, generate_pool

    pool = [row["messages"] for row in generate_pool(80, 3, WorldConfig(noise_rate=0))]
    swapped = [[one[0], other[1]] for one, other in zip(pool, pool[1:] + pool[:1], strict=True)]
    right, wrong = (median(row["ifd"] for row in Ifd("nano")(table(rows)).to_pylist()) for rows in (pool, swapped))
    assert right < 0.6 < wrong

"""What a check measures on: apart from the target and from what teaches its format, and what is refused."""

import json
import math

import pytest
import torch

from raysift.actors.loaded import NO_LIMIT, load
from raysift.config import make_config
from raysift.errors import ConfigError, DataError
from raysift.evaluation.metrics import EvalConfig
from raysift.jobs.check.held_out import FILES, TARGET, answer_key, keys_of, read_held_out
from raysift.jobs.check.measuring import measure
from raysift.jobs.gradients.targeting import content_key
from raysift.nano.world import examples, preference_pairs
from raysift.records import Pair
from raysift.templates import encode_conversation


@pytest.fixture
def write(tmp_path):
    def to(name, records):
        (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for record in records))
        return str(tmp_path / name)

    return to


def config(method="uniform", target=(), **more):
    return make_config({"method": method, "target": list(target), **more})


def test_the_format_comes_of_the_target_where_there_is_one(write):
    target, test = write("t.jsonl", examples(6, 1, ["add"])), write("test.jsonl", examples(12, 1, ["add"], "test"))
    held = read_held_out(config("less", [target]), [test], 4)
    assert (held.taught_from, len(held.taught), len(held.measured), held.metric) == (TARGET, 4, 12, "score")
    assert len(read_held_out(config("less", [target]), [test], 50).taught) == 6


def test_without_a_target_it_comes_of_the_held_out_files_and_is_not_measured_on(write):
    test = write("test.jsonl", examples(40, 1, ["add"], "test"))
    held = read_held_out(config(), [test], 8)
    assert (held.taught_from, len(held.taught), len(held.measured)) == (FILES, 8, 32)
    assert not {*keys_of(held.taught)} & {*keys_of(held.measured)}
    assert len(read_held_out(config(), [write("few.jsonl", examples(12, 1, ["add"], "test"))], 8).taught) == 3
    assert len(read_held_out(config(), [test], 0).measured) == 40


def test_draws_depend_on_seed_and_content_alone(write):
    lines = list(examples(40, 1, ["add", "subtract"], "test"))
    one = read_held_out(config(), [write("a.jsonl", lines)], 8)
    two = read_held_out(config(), [write("b.jsonl", lines[25:]), write("c.jsonl", lines[:25][::-1])], 8)
    assert [content_key(each) for each in one.measured] == [content_key(each) for each in two.measured]
    assert keys_of(one.taught) == keys_of(two.taught)
    assert keys_of(read_held_out(config(seed=1), [write("a.jsonl", lines)], 8).taught) != keys_of(one.taught)


def test_pairs_may_be_held_out_also_where_the_target_is_of_pairs(write):
    target, pairs = (write(f"{seed}.jsonl", preference_pairs(10, seed, ["add"])) for seed in (0, 1))
    held = read_held_out(config("rose", [target]), [pairs], 3)
    assert held.are_pairs and held.metric == "preference margin" and held.taught_from == TARGET
    examples_too = read_held_out(config("rose", [target]), [write("e.jsonl", examples(8, 3, ["add"], "test"))], 3)
    assert examples_too.metric == "score" and isinstance(examples_too.taught[0], Pair)
    renamed = [{"better": pair.pop("chosen")} | pair for pair in preference_pairs(20, 2, ["add"])]
    columns = {"targets": {"columns": {"chosen": "better"}}}
    other = config("rose", [write("target.jsonl", renamed[:10])], rose=columns)
    assert read_held_out(other, [write("held.jsonl", renamed[10:])], 2).are_pairs


def test_examples_without_a_metric_have_a_loss_alone(write):
    lines = [{"prompt": f"Say {n}.", "reference": str(n)} for n in range(9)]
    assert read_held_out(config(), [write("t.jsonl", lines)], 0).metric is None


def test_what_the_target_holds_too_is_refused_by_content(write):
    lines = list(examples(12, 1, ["add"], "test"))
    target = write("target.jsonl", lines[:2])
    again = [{"prompt": one["prompt"], "reference": one["reference"]} for one in lines]
    with pytest.raises(DataError, match=r"2 of 12 held-out examples .* are in the run's target too"):
        read_held_out(config("less", [target]), [write("test.jsonl", again)], 4)
    pair = Pair((), "a", "b")
    assert answer_key(pair) == answer_key(Pair((), "a", "c")) != answer_key(Pair((), "b", "a"))


@pytest.mark.parametrize(
    ("records", "error", "message"),
    [
        (examples(3, 1, ["add"], "test"), DataError, "3 held-out examples .* 3 can be measured on; expected 4"),
        ([{"prompt": "a"}, {"prompt": "b"}], DataError, "0 held-out examples"),
        (
            [{"prompt": "a", "reference": "b", "metric": "exact_mach"}],
            DataError,
            "'exact_mach' is unknown.*exact_match",
        ),
        ([*preference_pairs(4, 0, ["add"])], None, ""),
    ],
)
def test_files_of_no_use_are_refused(write, records, error, message):
    file = write("held.jsonl", records)
    if error is None:
        with pytest.raises(ConfigError, match="examples and preference pairs"):
            read_held_out(config(), [file, write("others.jsonl", examples(5, 1, ["add"], "test"))], 0)
        return
    with pytest.raises(error, match=message):
        read_held_out(config(), [file], 0)


def test_a_run_without_test_files_needs_some():
    with pytest.raises(ConfigError, match=r"nothing is held out.*--held-out FILE"):
        read_held_out(config(), [], 4)


def test_losses_and_margins_are_those_of_the_models_own_logits(write):
    """Word by word in the test: log-probabilities of the answer's tokens after the prompt."""
    pairs = read_held_out(config(), [write("p.jsonl", preference_pairs(5, 0, ["add"]))], 0).measured
    loaded = load("nano", dtype="fp32", device="cpu", threads=1)

    def of_answer(pair, answer):
        turns = [{"role": m.role, "content": m.content} for m in pair.prompt]
        encoded = encode_conversation(
            loaded.tokenizer, [*turns, {"role": "assistant", "content": answer}], NO_LIMIT, "auto"
        )
        with torch.no_grad():
            logits = loaded.model(torch.tensor([encoded.input_ids])).logits[0].log_softmax(-1)
        return [float(logits[place - 1, label]) for place, label in enumerate(encoded.labels) if place and label >= 0]

    found = measure(loaded, pairs, EvalConfig(template="auto"))
    for pair in pairs:
        chosen, rejected = of_answer(pair, pair.chosen), of_answer(pair, pair.rejected)
        loss, tokens = found["losses"][str(content_key(pair))]
        assert tokens == len(chosen) and loss == pytest.approx(-math.fsum(chosen) / tokens, rel=1e-4)
        margin = math.fsum(chosen) - math.fsum(rejected)
        assert found["scores"][str(content_key(pair))] == pytest.approx(margin, abs=1e-3)

"""The gradient actors on a tiny model: two ways to the same score, and checkpoints that cannot be used."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_llama

from raysift.actors import target_gradients
from raysift.actors.checkpointed import Checkpoint, CheckpointedModel, find_moments
from raysift.actors.row_gradients import CUT, MATCHES, VECTORS, GradientMatch, GradientVectors
from raysift.actors.target_files import load_targets
from raysift.actors.target_gradients import TargetGradients
from raysift.errors import DataError, ModelError
from raysift.gradients.moments import Moments, save_moments
from raysift.gradients.null_columns import NullPlan
from raysift.pool.given_input import conversation_of
from raysift.pool.pairs import make_pair
from raysift.records import ERROR, ID, MESSAGES, Example, Message, Pair
from raysift.settings.gradients import AdamSettings, PreferenceSettings, ProjectionSettings, TargetSettings
from raysift.storage import open_location

ADAM, WHOLE = AdamSettings(), ProjectionSettings(kind="none")
LOADING = {"device": "cpu", "threads": 1, "dtype": "fp32", "max_length": 48}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny Llama with two checkpoints of an adapter, our moments beside the first, a Trainer's beside the second."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("world")
    base = tiny_llama(folder)
    adapter = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), adapter)
    for number in (1, 2):
        place = folder / f"epoch-{number}"
        weights = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=1e-3)
        for _ in range(3):
            for weight in weights:
                weight.grad = torch.randn_like(weight) * 1e-3
            optimizer.step()
        model.save_pretrained(place / "adapter", save_embedding_layers=False)
        state = {n: optimizer.state[p] for n, p in model.named_parameters() if p.requires_grad}
        first, second = ({n: s[k].numpy() for n, s in state.items()} for k in ("exp_avg", "exp_avg_sq"))
        save_moments(open_location(place / "moments.safetensors"), Moments(first, second, 3))
        torch.save(optimizer.state_dict(), place / "optimizer.pt")
    return folder


def checkpoint(folder, number=1, moments="moments.safetensors"):
    place = open_location(folder) / f"epoch-{number}"
    return Checkpoint(place.name, place / "adapter", place / moments if moments else None, 1e-3)


def base(folder):
    return str(folder / "tiny-llama")


def conversation(row_id, answer, question="what"):
    return {ID: row_id, MESSAGES: [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


ROWS = pa.Table.from_pylist(
    [conversation(1, "yes"), conversation(2, "no, " * 20), conversation(3, "seen?", "what " * 20)]
)


PROMPT = (Message("user", "which"),)
PAIRS = [Pair(PROMPT, "this one", "that", "a"), Pair(PROMPT, "one", "two", "a"), Pair(PROMPT, "b", "cc", "b")]


def targets_of(world, folder, points):
    place = open_location(folder).make_folder()
    actor = TargetGradients(base(world), points, WHOLE, files=place, **LOADING)
    found = actor.from_pairs(PAIRS, PreferenceSettings(), TargetSettings(), end_prompt=True)
    assert not any(len(target.vectors) for target in found)
    return [vectors.numpy() for vectors in load_targets(place, points)]


def test_a_model_whose_layers_are_misread_is_refused_before_any_target_is_computed(world):
    actor = TargetGradients(base(world), [checkpoint(world)], WHOLE, **LOADING)
    example = Example("a", "t", (Message("user", "which"),), "exact_match", reference="this one")
    actor.from_examples([example], TargetSettings())
    assert actor.deviation < 1e-5
    layer = actor.model.gradients.adapter.modules[0][0]
    layer.forward = lambda x: torch.nn.functional.linear(2 * x, layer.weight)
    with pytest.raises(ModelError, match=r"those of 1 target rows deviate by .* relative to autograd's"):
        actor.from_examples([example], TargetSettings())


def test_a_model_that_looks_at_padding_is_refused_though_each_row_alone_is_read_rightly(world):
    actor = TargetGradients(base(world), [checkpoint(world)], WHOLE, **LOADING)
    embedding = actor.model.gradients.model.get_input_embeddings()
    embed = embedding.forward
    embedding.forward = lambda ids: embed(ids) + embed(ids).mean(1, keepdim=True)
    rows = [actor.model.encode(i, conversation(i, "yes", "what " * i)[MESSAGES]) for i in range(1, 6)]
    assert all(actor.check([row]) < 1e-5 for row in rows)
    with pytest.raises(ModelError, match=r"those of 3 target rows deviate by"):
        actor.check(rows)


def test_a_row_without_labels_takes_no_place_in_the_check(world):
    actor = TargetGradients(base(world), [checkpoint(world)], WHOLE, **LOADING)
    mute = [actor.model.encode(i, conversation(i, "a")[MESSAGES][:1]) for i in range(4)]
    row = actor.model.encode(9, conversation(9, "yes", "what " * 4)[MESSAGES])
    assert all(len(each) < len(row) and not each.n_labels for each in mute)
    assert actor.check([*mute, row]) < 1e-5


def test_targets_without_any_gradient_and_adapters_too_large_are_not_checked(world, monkeypatch):
    actor = TargetGradients(base(world), [checkpoint(world)], WHOLE, **LOADING)
    row = actor.model.encode(1, conversation(1, "seen?", "what " * 20)[MESSAGES])
    assert actor.check([row]) is None and actor.check([]) is None
    monkeypatch.setattr(target_gradients, "CHECKED_NUMBERS", 1)
    assert actor.check([actor.model.encode(1, conversation(1, "yes")[MESSAGES])]) is None


def test_matching_as_rows_arise_equals_matching_their_stored_vectors(world, tmp_path):
    points = [checkpoint(world), checkpoint(world, 2)]
    targets = targets_of(world, tmp_path / "targets", points)
    matched = GradientMatch(base(world), points, ADAM, open_location(tmp_path / "targets"), **LOADING)(ROWS).to_pylist()
    stored = GradientVectors(base(world), points, ADAM, WHOLE, **LOADING)(ROWS).to_pylist()
    for one, other in zip(matched[:2], stored[:2], strict=True):
        vectors = np.frombuffer(other[VECTORS], "<f2").reshape(2, -1).astype(np.float64)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
        for index in range(2):
            np.testing.assert_allclose(one[MATCHES][index], targets[index] @ vectors[index], atol=1e-3)
        assert one["losses"] == pytest.approx(other["losses"])
    assert np.abs(np.array(matched[0][MATCHES][0]) - matched[0][MATCHES][1]).max() > 1e-3  # the checkpoints differ


def test_long_rows_are_cut_as_in_training_and_told_and_those_without_labels_fail(world):
    answers = GradientVectors(base(world), [checkpoint(world)], ADAM, WHOLE, **LOADING)(ROWS).to_pylist()
    assert [row[CUT] for row in answers] == [False, True, None]
    assert answers[2][ERROR].startswith("no_label_tokens")
    assert answers[2][VECTORS] is None


def test_a_long_stretch_of_rows_without_labels_or_refused_by_the_template_does_not_end_the_run(world, monkeypatch):
    actor = GradientVectors(base(world), [checkpoint(world)], ADAM, WHOLE, **LOADING)
    actor.max_failures_in_a_row = 3
    unseen = [conversation(i, "seen?", "what " * 20) for i in range(9)]
    answers = actor(pa.Table.from_pylist([*unseen, conversation(9, "yes")])).to_pylist()
    assert [row[ERROR] is None for row in answers] == [False] * 9 + [True]
    encode = actor.model.encode_and_cut

    def refuse(row_id, messages):
        if row_id < 9:
            raise DataError("template: refused")
        return encode(row_id, messages)

    monkeypatch.setattr(actor.model, "encode_and_cut", refuse)
    again = actor(pa.Table.from_pylist([*unseen, conversation(9, "yes")])).to_pylist()
    assert [row[ERROR] for row in again] == ["template: refused"] * 9 + [None]
    assert again[9][VECTORS] == answers[9][VECTORS]


def test_moments_by_number_of_a_trainer_give_the_same_direction_as_ours_by_name(world):
    found = [
        GradientVectors(base(world), [checkpoint(world, 1, name)], ADAM, WHOLE, **LOADING)(ROWS).column(VECTORS)
        for name in ("moments.safetensors", "optimizer.pt")
    ]
    assert found[0].equals(found[1])
    plain = GradientVectors(base(world), [checkpoint(world, 1, None)], AdamSettings(form="none"), WHOLE, **LOADING)(
        ROWS
    )
    assert not plain.column(VECTORS).equals(found[0])
    assert find_moments(open_location(world) / "epoch-1").name == "moments.safetensors"
    assert find_moments(open_location(world)) is None


def damaged(world, tmp_path, change):
    """A copy of the first checkpoint with its weights changed."""
    shutil.copytree(world / "epoch-1", tmp_path / "epoch-1")
    file = tmp_path / "epoch-1/adapter/adapter_model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file)
    return checkpoint(tmp_path)


def load(world, *points, model=None, **more):
    return CheckpointedModel(model or base(world), points, ADAM, **LOADING | more)


def test_nan_in_a_checkpoint_is_named(world, tmp_path):
    bad = damaged(world, tmp_path, lambda weights: next(iter(weights.values())).fill_(float("nan")))
    with pytest.raises(ModelError, match=r"lora_A.weight holds NaN .* in checkpoint epoch-1 .*training diverged"):
        load(world, bad)


def test_a_checkpoint_of_another_training_is_refused(world, tmp_path):
    def drop(weights):
        del weights[sorted(weights)[0]]

    with pytest.raises(
        ModelError, match=r"of 8 adapter tensors it lacks 1, first .*another base model or another training"
    ):
        load(world, checkpoint(world, 2), damaged(world, tmp_path, drop))


def add_a_layer(weights):
    for name in [name for name in weights if ".layers.1." in name]:
        weights[name.replace(".layers.1.", ".layers.2.")] = weights[name].clone()


def test_an_adapter_of_a_deeper_base_is_refused_and_not_cut_off_silently(world, tmp_path):
    with pytest.raises(ModelError, match=r"it has 4 others, first .*layers\.2"):
        load(world, checkpoint(world, 2), damaged(world, tmp_path, add_a_layer))


def test_an_adapter_of_a_wider_base_is_refused(world, tmp_path):
    wide = tiny_llama(tmp_path, hidden=64)
    with pytest.raises(
        ModelError, match=r"cannot load the adapter .* over this base model: .*size mismatch .*trained on"
    ):
        load(world, checkpoint(world), model=wide)


def test_moments_of_another_adapter_are_refused(world, tmp_path):
    shutil.copytree(world / "epoch-1", tmp_path / "epoch-1")
    state = torch.load(tmp_path / "epoch-1/optimizer.pt", weights_only=True)
    del state["state"][0]
    torch.save(state, tmp_path / "epoch-1/optimizer.pt")
    with pytest.raises(ModelError, match="belongs to another adapter"):
        load(world, checkpoint(tmp_path, 1, "optimizer.pt"))
    state["state"][0] = {name: torch.zeros(3, 3) for name in ("exp_avg", "exp_avg_sq")} | {"step": torch.tensor(3.0)}
    torch.save(state, tmp_path / "epoch-1/optimizer.pt")
    with pytest.raises(ModelError, match=r"the first moment of .* is \(3, 3\), the adapter's is"):
        load(world, checkpoint(tmp_path, 1, "optimizer.pt"))
    for state in (b"no state", b"", [], {"state": {0: 1}}):
        place = tmp_path / "epoch-1/optimizer.pt"
        place.write_bytes(state) if isinstance(state, bytes) else torch.save(state, place)
        with pytest.raises(ModelError, match=r"optimizer"):
            load(world, checkpoint(tmp_path, 1, "optimizer.pt"))


def test_adam_without_moments_says_what_to_set(world):
    with pytest.raises(ModelError, match=r"epoch-1 has no optimizer moments .*set adam\.form=none"):
        load(world, checkpoint(world, 1, None))
    settings = json.loads((world / "epoch-1/adapter/adapter_config.json").read_text())
    assert settings["peft_type"] == "LORA"


def test_an_end_token_between_prompt_and_answer_never_makes_a_pair_too_long(world):
    model = load(world, checkpoint(world))
    pair = Pair((Message("user", "which"),), "long " * 20, "longer " * 20)
    with_end, without = (model.encode_pair(0, pair, end) for end in (True, False))
    assert len(with_end.chosen) == len(without.chosen) == 48
    assert not np.array_equal(with_end.chosen.input_ids, without.chosen.input_ids)


def test_answers_past_the_longest_input_leave_no_label_and_not_those_of_the_prompts_own_turns(world):
    turns = (Message("user", "a"), Message("assistant", "early"), Message("user", "long " * 60))
    unseen = Pair(turns, "yes", "no")
    model = load(world, checkpoint(world))
    found = model.encode_pair(0, unseen, end_prompt=False)
    assert (found.chosen.n_labels, found.rejected.n_labels, found.truncated) == (0, 0, True)

    prompt = (Message("user", "which"),)
    pairs = [Pair(prompt, "this one", "that"), unseen, Pair(prompt, "yes", "no " * 60)]
    pairs.append(Pair(prompt, "no " * 60 + "never", "no " * 60 + "yes"))
    actor = TargetGradients(base(world), [checkpoint(world)], WHOLE, **LOADING)
    (target,) = actor.from_pairs(pairs, PreferenceSettings(), TargetSettings(), end_prompt=False)
    assert [(why.id, why.reason) for why in target.set_aside] == [(1, "no_label_tokens"), (3, "equal_up_to_the_cut")]
    assert {member.id: member.truncated for member in target.members} == {0: False, 2: True}


def test_of_an_examples_turns_only_the_right_answer_counts(world):
    prompt = (Message("user", "which"), Message("assistant", "what?"), Message("user", "that"))
    model, example = load(world, checkpoint(world)), Example("1", "t", prompt, "exact_match", reference="yes")
    row, cut = model.encode_answer(7, example, "yes")
    one_turn, _ = model.encode_answer(7, replace(example, prompt=prompt[2:]), "yes")
    assert (row.id, row.n_labels, cut) == (7, one_turn.n_labels, False)


@pytest.mark.parametrize("given", ["i", ""])
def test_a_target_and_a_row_of_one_record_are_shown_by_the_same_prompt(world, given):
    model = load(world, checkpoint(world), template="alpaca", max_length=400)
    record = {"instruction": "q", "input": given, "chosen": "a", "rejected": "b"}
    pair = model.encode_pair(1, make_pair(record), end_prompt=False)
    meta = json.dumps({"input": given}) if given else None
    asked = "q\n\ni" if given else "q"
    row = {MESSAGES: conversation(1, "a", asked)[MESSAGES], "meta": meta}
    wanted = model.encode(1, conversation_of(row))
    example = Example("1", "t", (Message("user", asked),), "exact_match", reference="a", meta={"input": given})
    for found in (pair.chosen, model.encode_answer(1, example, "a")[0]):
        np.testing.assert_array_equal(found.input_ids, wanted.input_ids)
        np.testing.assert_array_equal(found.labels, wanted.labels)
    assert (len(wanted) == len(model.encode(1, row[MESSAGES]))) == (not given)


def test_examples_with_choices_pull_towards_the_right_choice_in_words(world):
    prompt = (Message("user", "which"),)
    in_words = Example("1", "mc", prompt, "exact_match", reference="a word")
    by_letter = Example("1", "mc", prompt, "mc_accuracy", reference="B", choices=("no", "a word"), answer_index=1)
    silent = replace(by_letter, reference=None)
    actor = TargetGradients(base(world), [checkpoint(world)], WHOLE, **LOADING)
    words, letter, none = (actor.from_examples([e], TargetSettings())[0].vectors for e in (in_words, by_letter, silent))
    np.testing.assert_array_equal(words, letter)
    np.testing.assert_array_equal(words, none)


def test_each_checkpoint_has_a_map_of_its_own_that_only_its_weights_and_the_seed_decide(world):
    first, second = checkpoint(world), checkpoint(world, 2)
    model = CheckpointedModel(base(world), [first, second, replace(first, name="again")], ADAM, **LOADING)
    one, other, again = (sink.settings.seed for sink in model.projections(ProjectionSettings(seed=5)))
    assert one == again != other
    assert model.projections(ProjectionSettings(seed=6))[0].settings.seed != one
    shared = model.projections(ProjectionSettings(seed=5, own_map=False))
    assert {sink.settings.seed for sink in shared} == {5}


def test_projected_cosines_stray_no_further_than_theory_says_with_maps_of_their_own(world, tmp_path):
    points, width = [checkpoint(world), checkpoint(world, 2)], 512
    targets = targets_of(world, tmp_path / "whole", points)
    whole = GradientVectors(base(world), points, ADAM, WHOLE, **LOADING)(ROWS).to_pylist()
    sketch = ProjectionSettings(dimension=width)
    small = GradientVectors(base(world), points, ADAM, sketch, **LOADING)(ROWS).to_pylist()
    actor = TargetGradients(base(world), points, sketch, **LOADING)
    for row, sketched in zip(whole[:2], small[:2], strict=True):
        exact, near = (
            np.frombuffer(answer[VECTORS], "<f2").reshape(2, -1).astype(np.float32) for answer in (row, sketched)
        )
        for index, sink in enumerate(actor.sinks):
            matrix = sink.project(torch.from_numpy(targets[index])).numpy()
            assert np.abs(matrix @ near[index] - targets[index] @ exact[index]).max() < 5 / np.sqrt(width)


KEYS = NullPlan("signs", 2, keys=tuple(range(3)))


def test_exact_and_stored_null_scores_agree_and_readers_of_targets_see_none(world, tmp_path):
    """Null vectors are projected like the others, each to the map of its checkpoint."""
    points, folder = [checkpoint(world), checkpoint(world, 2)], open_location(tmp_path).make_folder()
    actor = TargetGradients(base(world), points, WHOLE, files=folder, **LOADING)
    actor.from_pairs(PAIRS, PreferenceSettings(), TargetSettings(), end_prompt=True, null=KEYS)
    plain = targets_of(world, tmp_path / "plain", points)
    both = [vectors.numpy() for vectors in load_targets(folder, points, null=True)]
    for own, whole, without in zip(load_targets(folder, points), both, plain, strict=True):
        assert (own.shape[0], whole.shape[0]) == (2, 6)
        np.testing.assert_array_equal(own, whole[::3])
        np.testing.assert_allclose(own, without, atol=1e-6)
    matched = GradientMatch(base(world), points, ADAM, folder, **LOADING)(ROWS).to_pylist()
    width = 4096
    sketch = ProjectionSettings(dimension=width)
    small = GradientVectors(base(world), points, ADAM, sketch, **LOADING)(ROWS).to_pylist()
    short = TargetGradients(base(world), points, sketch, **LOADING)
    projected = short.from_pairs(PAIRS, PreferenceSettings(), TargetSettings(), end_prompt=True, null=KEYS)
    for row, stored in zip(matched[:2], small[:2], strict=True):
        near = np.frombuffer(stored[VECTORS], "<f2").reshape(2, -1).astype(np.float32)
        for index in range(2):
            assert np.abs(projected[index].vectors @ near[index] - row[MATCHES][index]).max() < 5 / np.sqrt(width)


def test_random_rows_without_a_token_that_counts_are_passed_over_and_those_taken_are_told(world, tmp_path):
    examples = [Example(str(i), "t", PROMPT, "exact_match", reference=f"this {i}") for i in range(3)]
    rows = [*ROWS.to_pylist(), *(conversation(10 + i, f"word {i}") for i in range(12))]
    null = NullPlan("rows", 4, candidates=tuple(rows[::-1]), sizes={"t": 3}, most=12)
    folder = open_location(tmp_path).make_folder()
    actor = TargetGradients(base(world), [checkpoint(world)], WHOLE, files=folder, **LOADING)
    (found,) = actor.from_examples(examples, TargetSettings(), null=null)
    assert found.empty_nulls == 0
    assert [row for own in actor.null_rows for row in sorted(own, reverse=True)] == [21 - i for i in range(12)]
    mute = NullPlan("rows", 4, candidates=(rows[2],), sizes={"t": 3}, most=12)
    (none,) = TargetGradients(base(world), [checkpoint(world)], WHOLE, **LOADING).from_examples(
        examples, TargetSettings(), null=mute
    )
    assert none.empty_nulls == 4 and not none.vectors[1:].any()


def test_a_checkpoint_done_with_other_null_columns_is_computed_again(world, tmp_path):
    """After a kill for memory the null is left out: no file may keep its columns."""
    points, folder = [checkpoint(world)], open_location(tmp_path).make_folder()
    for null, shape in ((KEYS, (2, 3)), (None, (2,)), (KEYS, (2, 3))):
        actor = TargetGradients(base(world), points, WHOLE, files=folder, **LOADING)
        actor.from_pairs(PAIRS, PreferenceSettings(), TargetSettings(), end_prompt=True, null=null)
        assert load_file(tmp_path / "epoch-1.safetensors")["targets"].shape[:-1] == shape

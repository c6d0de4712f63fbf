"""Target gradients of ROSE and LESS: laws of the preference loss, and autograd on the loss itself as reference."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from raysift.errors import DataError
from raysift.gradients import preference
from raysift.gradients.adam import AdamDirection, FlatMoments
from raysift.gradients.collect import RowGradients
from raysift.gradients.null_columns import random_signs
from raysift.gradients.null_sums import NullRows, NullSigns
from raysift.gradients.preference import (
    TokenExample,
    TokenPair,
    cross_entropy_targets,
    preference_loss,
    preference_pull,
    preference_targets,
)
from raysift.gradients.rows import TokenRow
from raysift.settings.gradients import AdamSettings, PreferenceSettings, ProjectionSettings, TargetSettings
from raysift.store.projection import Projection
from raysift.templates import IGNORED

UNITS, MEAN = TargetSettings(), TargetSettings(aggregation="unit_of_mean")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.2,
    )
    base = transformers.LlamaForCausalLM(config)
    lora = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    return peft.get_peft_model(base, lora).eval()


def make_gradients(model: Any) -> RowGradients:
    gradients = RowGradients(model, token_budget=64)
    gradients.sink = Projection(ProjectionSettings(kind="none"), gradients.adapter.layout)
    return gradients


def answer(prompt: np.ndarray, tokens: np.ndarray) -> TokenRow:
    return TokenRow(0, np.concatenate([prompt, tokens]), np.concatenate([np.full(len(prompt), IGNORED), tokens]))


def make_pairs(count: int = 6, subtasks: tuple[str, ...] = ("b", "a"), seed: int = 0) -> list[TokenPair]:
    rng = np.random.default_rng(seed)
    pairs = []
    for i in range(count):
        prompt = rng.integers(1, 40, rng.integers(2, 6))
        sides = (answer(prompt, rng.integers(1, 40, rng.integers(2, 9))) for _ in range(2))
        pairs.append(TokenPair(10 + i, *sides, subtask=subtasks[i % len(subtasks)]))
    return pairs


def with_equal_answers(pair: TokenPair, id_: int) -> TokenPair:
    return TokenPair(id_, pair.chosen, pair.chosen, pair.subtask)


def log_probability(model: Any, row: TokenRow, how: str) -> torch.Tensor:
    logits = model(input_ids=torch.from_numpy(row.input_ids)[None]).logits[0, :-1]
    labels = torch.from_numpy(row.labels)[1:]
    kept = labels != IGNORED
    tokens = logits.log_softmax(-1)[kept].gather(1, labels[kept, None])
    return tokens.sum() if how == "sum" else tokens.mean()


def slow_pair_gradient(model: Any, pair: TokenPair, beta: float, how: str, reference: bool) -> tuple[np.ndarray, float]:
    """Autograd on -log sigmoid(beta margin), with the adapter switched off by PEFT for the reference."""
    base = torch.zeros(2)
    if reference:
        with torch.no_grad(), model.disable_adapter():
            base = torch.stack([log_probability(model, side, how) for side in (pair.chosen, pair.rejected)])
    margin = (log_probability(model, pair.chosen, how) - base[0]) - (
        log_probability(model, pair.rejected, how) - base[1]
    )
    loss = -torch.nn.functional.logsigmoid(beta * margin)
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]).numpy(), float(loss.detach())


@pytest.mark.parametrize("how", ["sum", "mean"])
@pytest.mark.parametrize("reference", ["base", "none"])
@pytest.mark.parametrize("aggregation", ["mean_of_units", "unit_of_mean"])
def test_targets_are_autograds_gradients_of_the_preference_loss(
    model: Any, how: str, reference: str, aggregation: str
) -> None:
    pairs = make_pairs()
    settings = PreferenceSettings(beta=0.3, log_probability=how, reference=reference)  # type: ignore[arg-type]
    targets = TargetSettings(aggregation=aggregation)  # type: ignore[arg-type]
    found = preference_targets(make_gradients(model), pairs, settings, targets)
    slow = {pair.id: slow_pair_gradient(model, pair, 0.3, how, reference == "base") for pair in pairs}
    assert found.subtasks == ("a", "b") and not found.set_aside
    for member in found.members:
        gradient, loss = slow[member.id]
        assert member.loss == pytest.approx(loss, rel=1e-4)
        assert member.norm == pytest.approx(np.linalg.norm(gradient), rel=1e-4)
    for name, vector in zip(found.subtasks, found.vectors, strict=True):
        own = [slow[pair.id][0] for pair in pairs if pair.subtask == name]
        expected = np.mean([g / np.linalg.norm(g) for g in own], axis=0)
        if aggregation == "unit_of_mean":
            expected = np.mean(own, axis=0) / np.linalg.norm(np.mean(own, axis=0))
        assert np.linalg.norm(vector - expected) < 1e-4 * np.linalg.norm(expected)


def test_the_chosen_answers_own_gradient_is_added_in_lengths_of_the_contrast(model: Any) -> None:
    pairs, weight = make_pairs(), 0.7
    found = preference_targets(make_gradients(model), pairs, PreferenceSettings(answer_weight=weight), UNITS)
    parameters = [p for p in model.parameters() if p.requires_grad]

    def slope(row: TokenRow) -> np.ndarray:
        gradient = torch.autograd.grad(-log_probability(model, row, "sum"), parameters)
        return torch.cat([part.flatten() for part in gradient]).numpy()

    for name, vector in zip(found.subtasks, found.vectors, strict=True):
        units = []
        for pair in (pair for pair in pairs if pair.subtask == name):
            answer, other = slope(pair.chosen), slope(pair.rejected)
            contrast = answer - other
            whole = contrast / np.linalg.norm(contrast) + weight * answer / np.linalg.norm(answer)
            units.append(whole / np.linalg.norm(whole))
        assert np.linalg.norm(vector - np.mean(units, axis=0)) < 1e-4 * np.linalg.norm(vector)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_toward_is_the_cosine_of_a_target_with_what_both_answers_share(model: Any, weight: float) -> None:
    pairs, gradients = make_pairs(), make_gradients(model)
    found = preference_targets(gradients, pairs, PreferenceSettings(answer_weight=weight), UNITS)
    rows = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    sides = gradients.run([TokenRow(i, row.input_ids, row.labels) for i, row in enumerate(rows)])
    unit = {i: v / np.linalg.norm(v) for i, v in zip(sides.ids.tolist(), sides.vectors, strict=True)}
    for name, vector, toward in zip(found.subtasks, found.vectors, found.toward, strict=True):
        own = [i for i, pair in enumerate(pairs) if pair.subtask == name]
        shared = np.sum([unit[2 * i] + unit[2 * i + 1] for i in own], axis=0)
        cosine = vector @ shared / (np.linalg.norm(vector) * np.linalg.norm(shared))
        assert toward == pytest.approx(cosine, abs=0.1)  # sketches of 1,024 numbers: three standard deviations


def test_beta_and_reference_cancel_in_mean_of_units_and_only_there(model: Any) -> None:
    gradients, pairs = make_gradients(model), make_pairs()
    official = [
        preference_targets(gradients, pairs, settings, UNITS).vectors
        for settings in (
            PreferenceSettings(),
            PreferenceSettings(beta=3.0),
            PreferenceSettings(reference="none"),
            PreferenceSettings(beta=500.0),  # the pull of a pair that is already right underflows here
        )
    ]
    for other in official[1:]:
        assert np.allclose(other, official[0], atol=1e-6)
    paper = [
        preference_targets(gradients, pairs, settings, MEAN).vectors
        for settings in (
            PreferenceSettings(beta=1.0),
            PreferenceSettings(beta=3.0),
            PreferenceSettings(reference="none"),
        )
    ]
    assert not np.allclose(paper[0], paper[1], atol=1e-3) and not np.allclose(paper[0], paper[2], atol=1e-3)


def test_swapping_chosen_and_rejected_negates_a_pairs_contribution(model: Any) -> None:
    gradients, pairs = make_gradients(model), make_pairs(3, subtasks=("one",))
    swapped = [TokenPair(pair.id, pair.rejected, pair.chosen, pair.subtask) for pair in pairs]
    forward, backward = (preference_targets(gradients, p, PreferenceSettings(), UNITS) for p in (pairs, swapped))
    assert np.allclose(forward.vectors, -backward.vectors, atol=1e-6)
    margins = zip(forward.members, backward.members, strict=True)
    assert all(a.margin == pytest.approx(-b.margin, abs=1e-5) for a, b in margins if b.margin is not None)


@pytest.mark.parametrize("targets", [UNITS, MEAN])
def test_equal_answers_count_as_zero_and_are_reported(model: Any, targets: TargetSettings) -> None:
    gradients, pairs = make_gradients(model), make_pairs(4, subtasks=("one",))
    clean = preference_targets(gradients, pairs, PreferenceSettings(), targets)
    found = preference_targets(gradients, [*pairs, with_equal_answers(pairs[0], 99)], PreferenceSettings(), targets)
    assert [(why.id, why.reason) for why in found.set_aside] == [(99, "chosen_equals_rejected")]
    share = 4 / 5 if targets is UNITS else 1.0
    assert np.allclose(found.vectors, share * clean.vectors, atol=1e-7)


def test_a_subtask_of_equal_answers_only_is_refused(model: Any) -> None:
    pairs = [with_equal_answers(pair, i) for i, pair in enumerate(make_pairs(2, subtasks=("one",)))]
    with pytest.raises(DataError, match=r"subtask 'one' .*chosen_equals_rejected"):
        preference_targets(make_gradients(model), pairs, PreferenceSettings(), UNITS)


def test_one_sided_pairs_are_set_aside_and_left_out_of_the_mean(model: Any) -> None:
    gradients, pairs = make_gradients(model), make_pairs(3, subtasks=("one",))
    prompt = np.array([3, 4, 5])
    one_sided = TokenPair(99, pairs[0].chosen, answer(prompt, np.empty(0, np.int64)), "one")
    clean = preference_targets(gradients, pairs, PreferenceSettings(), UNITS)
    found = preference_targets(gradients, [one_sided, *pairs], PreferenceSettings(), UNITS)
    assert [(why.id, why.reason) for why in found.set_aside] == [(99, "no_label_tokens")]
    assert np.allclose(found.vectors, clean.vectors, atol=1e-6)


def test_order_of_pairs_does_not_matter(model: Any) -> None:
    gradients, pairs = make_gradients(model), make_pairs(7)
    one, other = (preference_targets(gradients, p, PreferenceSettings(), UNITS) for p in (pairs, pairs[::-1]))
    assert np.allclose(one.vectors, other.vectors, atol=1e-6)


def test_projected_target_is_the_projection_of_the_target(model: Any) -> None:
    gradients, pairs = make_gradients(model), make_pairs(2, subtasks=("one",))
    whole = preference_targets(gradients, pairs, PreferenceSettings(), MEAN).vectors
    sketch = Projection(ProjectionSettings(dimension=128), gradients.adapter.layout)
    gradients.sink = sketch
    found = preference_targets(gradients, pairs, PreferenceSettings(), MEAN).vectors
    expected = sketch.project(torch.from_numpy(whole).clone()).numpy()
    assert np.allclose(found, expected / np.linalg.norm(expected), atol=1e-5)


def test_targets_are_plain_gradients_whatever_direction_the_rows_get(model: Any) -> None:
    gradients, pairs = make_gradients(model), make_pairs(2, subtasks=("one",))
    plain = preference_targets(gradients, pairs, PreferenceSettings(), UNITS).vectors
    ones = tuple(torch.ones(size) for size in gradients.adapter.layout.sizes)
    gradients.direction = direction = AdamDirection(AdamSettings(), FlatMoments(ones, ones, 1))
    found = preference_targets(gradients, pairs, PreferenceSettings(), UNITS)
    assert np.allclose(found.vectors, plain, atol=1e-6)
    assert gradients.direction is direction


def test_cross_entropy_targets_are_means_of_unit_gradients(model: Any) -> None:
    gradients = make_gradients(model)
    rows = [TokenRow(i, pair.chosen.input_ids, pair.chosen.labels) for i, pair in enumerate(make_pairs(5))]
    examples = [TokenExample(row, "even" if i % 2 == 0 else "odd") for i, row in enumerate(rows)]
    silent = TokenRow(50, np.array([1, 2]), np.array([IGNORED, IGNORED]))
    found = cross_entropy_targets(gradients, [*examples, TokenExample(silent, "odd")], UNITS, keep_units=True)
    vectors = gradients.run(rows).vectors
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert found.subtasks == ("even", "odd")
    assert np.allclose(found.vectors, [units[::2].mean(0), units[1::2].mean(0)], atol=1e-6)
    assert [why.reason for why in found.set_aside] == ["no_label_tokens"]
    assert found.units is not None and np.allclose(found.units @ units[0], units @ units[0], atol=1e-5)


def test_loss_and_pull_are_stable_at_large_margins() -> None:
    margins = np.array([-1e4, -1.0, 0.0, 1.0, 1e4])
    assert preference_loss(margins, 1.0) == pytest.approx([1e4, 1.3132617, 0.6931472, 0.3132617, 0.0])
    assert preference_pull(margins, 1.0) == pytest.approx([1.0, 0.7310586, 0.5, 0.2689414, 0.0])


def test_repeated_ids_and_empty_targets_are_refused(model: Any) -> None:
    gradients, pairs = make_gradients(model), make_pairs(1)
    with pytest.raises(DataError, match="twice"):
        preference_targets(gradients, pairs * 2, PreferenceSettings(), UNITS)
    with pytest.raises(DataError, match="no pairs"):
        preference_targets(gradients, [], PreferenceSettings(), UNITS)


@pytest.mark.parametrize("targets", [UNITS, MEAN])
def test_sums_of_a_few_subtasks_at_a_time_give_the_same_targets_written_in_order(
    model: Any, targets: TargetSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 57 subtasks of a large adapter, sums for all of them would not fit in memory."""
    gradients, pairs = make_gradients(model), make_pairs(9, subtasks=("c", "a", "b"))
    expected = preference_targets(gradients, pairs, PreferenceSettings(), targets)
    alive: weakref.WeakSet[preference.CompensatedSum] = weakref.WeakSet()
    most = 0

    class Counted(preference.CompensatedSum):
        def __init__(self, *given: Any) -> None:
            nonlocal most
            super().__init__(*given)
            alive.add(self)
            most = max(most, len(alive))

    assert gradients.sink is not None
    monkeypatch.setattr(preference, "CompensatedSum", Counted)
    preference_targets(gradients, pairs, PreferenceSettings(), targets)
    assert most == 3
    monkeypatch.setattr(preference, "_HELD_NUMBERS", 2 * gradients.sink.width)
    most, written = 0, []
    found = preference_targets(gradients, pairs, PreferenceSettings(), targets, write=written.append)
    assert most == 1 and found.vectors.shape == (0, gradients.sink.width)
    # A pass of one pair rounds otherwise than one of nine.
    assert np.allclose(np.stack(written), expected.vectors, atol=1e-6)
    assert found.subtasks == expected.subtasks == ("a", "b", "c")
    assert [member.id for member in found.members] == [member.id for member in expected.members]
    assert found.sketches is not None and expected.sketches is not None
    assert np.allclose(found.sketches, expected.sketches, atol=1e-5)


def units_of(model: Any, pairs: list[TokenPair]) -> dict[int, np.ndarray]:
    """Each pair's unit gradient, as the targets are made of them."""
    found = preference_targets(make_gradients(model), pairs, PreferenceSettings(), UNITS, keep_units=True)
    assert found.units is not None
    return {member.id: unit for member, unit in zip(found.members, found.units, strict=True)}


@pytest.mark.parametrize("targets", [UNITS, MEAN])
def test_null_columns_are_the_pairs_own_contributions_with_signs_by_content(
    model: Any, targets: TargetSettings
) -> None:
    gradients, pairs = make_gradients(model), make_pairs(9, subtasks=("b", "a"))
    pairs.append(with_equal_answers(pairs[0], 99))  # counts as a zero in the mean
    settings = PreferenceSettings(beta=1.0)
    keys = {pair.id: 7 * pair.id**3 for pair in pairs}
    null = NullSigns(3, keys)
    plain = preference_targets(gradients, pairs, settings, targets)
    found = preference_targets(gradients, pairs, settings, targets, null=null)
    real, nulls = found.vectors[::4], found.vectors.reshape(2, 4, -1)[:, 1:]
    assert np.allclose(real, plain.vectors, atol=1e-6) and found.empty_nulls == 0
    norms, units = {member.id: member.norm for member in plain.members}, units_of(model, pairs)
    signs = np.empty((len(norms), 3), int)
    for parity in (0, 1):
        mine = [place for place, id_ in enumerate(norms) if id_ % 2 == parity]
        signs[mine] = random_signs([keys[list(norms)[place]] for place in mine], 3)
    for number, name in enumerate(found.subtasks):
        for column in range(3):
            own = [(id_, sign) for id_, sign in zip(norms, signs[:, column], strict=True) if id_ % 2 == number ^ 1]
            total = sum(sign * units[id_] * (norms[id_] if targets is MEAN else 1) for id_, sign in own)
            expected = total / (len(own) + (name == "b"))
            if targets is MEAN:
                expected /= np.linalg.norm(expected)
            assert np.linalg.norm(nulls[number, column] - expected) < 1e-4 * np.linalg.norm(expected)
    assert len(set(map(tuple, signs.tolist()))) > 3


def test_null_columns_do_not_depend_on_the_order_of_pairs_nor_on_groups_of_subtasks(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients, pairs = make_gradients(model), make_pairs(12, subtasks=("b", "a", "c"))
    null = NullSigns(2, {pair.id: pair.id * 2654435761 % 1009 for pair in pairs})
    written: list[np.ndarray] = []
    found = preference_targets(gradients, pairs, PreferenceSettings(), UNITS, null=null)
    other = preference_targets(gradients, pairs[::-1], PreferenceSettings(), UNITS, null=null)
    assert np.array_equal(found.vectors, other.vectors)
    assert [member.id for member in found.members] == [pair.id for pair in pairs]
    assert gradients.sink is not None
    monkeypatch.setattr(preference, "_HELD_NUMBERS", 2 * gradients.sink.width)
    preference_targets(gradients, pairs, PreferenceSettings(), UNITS, write=written.append, null=null)
    assert np.allclose(np.stack(written), found.vectors, atol=1e-6)  # smaller passes round otherwise


@pytest.mark.parametrize("targets", [UNITS, MEAN])
def test_null_columns_of_examples_are_means_of_rows_and_cost_a_pass_for_each_row_once(
    model: Any, targets: TargetSettings
) -> None:
    gradients = make_gradients(model)
    rows = [TokenRow(100 + i, pair.chosen.input_ids, pair.chosen.labels) for i, pair in enumerate(make_pairs(9))]
    examples = [TokenExample(row, "even" if i % 2 == 0 else "odd") for i, row in enumerate(rows[:4])]
    dealt = {"even": [rows[4:6], rows[6:7]], "odd": [rows[6:9], []]}
    passed = []
    run = gradients.run

    def counted(given: Any, *more: Any) -> Any:
        passed.extend(row.id for row in given)
        return run(given, *more)

    gradients.run = counted  # type: ignore[method-assign]
    found = cross_entropy_targets(gradients, examples, targets, null=NullRows(2, dealt))
    assert sorted(passed) == [row.id for row in rows]
    assert found.empty_nulls == 1
    vectors = {row.id: vector for row, vector in zip(rows, run(rows).vectors, strict=True)}
    for number, name in enumerate(("even", "odd")):
        for column, own in enumerate(dealt[name]):
            parts = [vectors[row.id] / (np.linalg.norm(vectors[row.id]) if targets is UNITS else 1) for row in own]
            expected = np.mean(parts, axis=0) if parts else np.zeros(found.vectors.shape[1])
            if targets is MEAN and parts:
                expected /= np.linalg.norm(expected)
            assert np.allclose(found.vectors[3 * number + 1 + column], expected, atol=1e-5)
    plain = cross_entropy_targets(make_gradients(model), examples, targets)
    assert np.allclose(found.vectors[::3], plain.vectors, atol=1e-6)


def test_rows_of_a_null_take_the_direction_of_the_pools_rows_and_examples_stay_plain(model: Any) -> None:
    """Plain gradients of random rows vary so much that they hid selections that served their target."""
    gradients = make_gradients(model)
    rows = [TokenRow(100 + i, pair.chosen.input_ids, pair.chosen.labels) for i, pair in enumerate(make_pairs(5))]
    examples, null = [TokenExample(row) for row in rows[:2]], NullRows(1, {"all": [rows[2:]]})
    plain = cross_entropy_targets(gradients, examples, UNITS, null=null)
    sizes = [int(np.prod(shape)) for shape in gradients.adapter.layout.shapes]
    first, second = (tuple(torch.rand(size) for size in sizes) for _ in range(2))
    moments = FlatMoments(first, second, 3)
    gradients.direction = own = AdamDirection(AdamSettings(), moments)
    found = cross_entropy_targets(gradients, examples, UNITS, null=null)
    assert gradients.direction is own
    assert np.allclose(found.vectors[0], plain.vectors[0], atol=1e-6)
    directed = gradients.run(rows[2:]).vectors
    expected = np.mean([vector / np.linalg.norm(vector) for vector in directed], axis=0)
    assert np.allclose(found.vectors[1], expected, atol=1e-5)
    assert not np.allclose(found.vectors[1], plain.vectors[1], atol=1e-2)
    pairs, anchored = make_pairs(4, subtasks=("all",)), PreferenceSettings(answer_weight=1.0)
    alone = preference_targets(gradients, pairs, anchored, UNITS).vectors
    of_pairs = preference_targets(gradients, pairs, anchored, UNITS, null=null)
    assert np.allclose(of_pairs.vectors[0], alone[0], atol=1e-6)
    assert np.allclose(of_pairs.vectors[1], expected, atol=1e-5) and of_pairs.empty_nulls == 0

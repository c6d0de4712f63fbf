"""Scores of LESS and ROSE: worked examples, laws, sharded equals whole, and an independent slow reference."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from raysift.errors import DataError
from raysift.gradients.adam import AdamDirection, optimizer_moments
from raysift.gradients.collect import RowGradients
from raysift.gradients.influence import (
    InfluenceReduce,
    TargetColumns,
    aggregate_subtasks,
    checkpoint_weights,
    match_rows,
    round_robin,
    weigh_checkpoints,
)
from raysift.gradients.match import ExactMatch
from raysift.gradients.preference import TokenExample, TokenPair, cross_entropy_targets, preference_targets
from raysift.gradients.rows import TokenRow
from raysift.gradients.settings import (
    AdamSettings,
    MatchSettings,
    PreferenceSettings,
    ProjectionSettings,
    TargetSettings,
)
from raysift.store.projection import Projection
from raysift.store.vectors import VectorForm, unit_rows
from raysift.templates import IGNORED


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def weighted_match(stores: Any, targets: Any, weights: Any) -> np.ndarray:
    """Scores (rows, subtasks) of stored rows, as the stages compute them: products first, then the checkpoints' weights."""
    products = [match_rows(rows, target) for rows, target in zip(stores, targets, strict=True)]
    return weigh_checkpoints(np.stack(products, axis=1), weights)


# --- checkpoint weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rates", [[], [0.0, 0.0], [1e-5, -1e-6], [float("nan")]])
def test_impossible_rates_are_refused(rates: list[float]) -> None:
    with pytest.raises(DataError):
        checkpoint_weights(rates)


# --- stored rows ----------------------------------------------------------------------------------------------------


def random_store(rows: int, d: int = 48, checkpoints: int = 2, seed: int = 0) -> tuple[np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    ids = rng.permutation(np.arange(rows) * 7 - 50)
    return ids, [unit_rows(rng.standard_normal((rows, d)))[0] for _ in range(checkpoints)]


def random_targets(subtasks: int, d: int = 48, checkpoints: int = 2) -> list[np.ndarray]:
    rng = np.random.default_rng(9)
    return [rng.standard_normal((subtasks, d)).astype(np.float32) for _ in range(checkpoints)]


@pytest.mark.parametrize("signs", [False, True])
def test_a_row_scores_the_same_bits_in_any_shard(signs: bool) -> None:
    vectors = np.random.default_rng(0).standard_normal((3000, 48))
    units = VectorForm(48, signs).pack(vectors)
    targets = random_targets(5)[0]
    whole = match_rows(units, targets)
    plain = np.sign(vectors) * np.sqrt(np.pi / 2 / 48) if signs else units.astype(np.float64)
    half_a_step = np.abs(targets).max() / 16256 / 2  # what signs round each of the target's 48 numbers by
    at_most = np.sqrt(np.pi / 2 * 48) * half_a_step if signs else 1e-5
    assert np.abs(whole - plain @ targets.T.astype(np.float64)).max() <= at_most
    for cut in (1, 17, 1024, 1500):
        assert np.array_equal(
            np.concatenate([match_rows(units[:cut], targets), match_rows(units[cut:], targets)]), whole
        )
    order = np.random.default_rng(0).permutation(3000)
    assert np.array_equal(match_rows(units[order], targets), whole[order])


def test_stores_of_other_dimensions_are_refused() -> None:
    with pytest.raises(DataError, match="Rebuild"):
        match_rows(np.ones((2, 3)), np.ones((1, 4)))


# --- aggregation ----------------------------------------------------------------------------------------------------


def test_worked_example_of_checkpoints_and_subtasks() -> None:
    """Weights 3/4 and 1/4. Row A: subtask scores 3/4 * 1 + 1/4 * 0 = 0.75 and 0 + 1/4 * 1 = 0.25; row B: 0 and 1."""
    e = np.eye(2, dtype=np.float32)
    first, second = e[[0, 1]], e[[1, 1]]  # rows A, B at the two checkpoints
    scores = weighted_match([first, second], [e, e], checkpoint_weights([3e-5, 1e-5]))
    assert scores.tolist() == [[0.75, 0.25], [0.0, 1.0]]
    columns = TargetColumns.single(["x", "y"])
    assert aggregate_subtasks(scores, columns, "max").tolist() == [0.75, 1.0]
    assert aggregate_subtasks(scores, columns, "mean").tolist() == [0.5, 0.5]


def test_several_targets_are_weighed_after_their_own_subtasks() -> None:
    scores = np.array([[0.1, 0.5, -0.2], [0.3, 0.2, 0.4]])
    columns = TargetColumns(("a1", "a2", "b"), (0, 0, 1), (1.0, 2.0))
    assert aggregate_subtasks(scores, columns, "max") == pytest.approx([0.5 - 0.4, 0.3 + 0.8])
    assert aggregate_subtasks(scores, columns, "mean") == pytest.approx([0.3 - 0.4, 0.25 + 0.8])


@pytest.mark.parametrize(("target_of", "weights"), [((0, 0), (1.0,)), ((0, 0, 2), (1.0, 1.0)), ((0, 0, 1), (1.0, 0.0))])
def test_ill_formed_columns_are_refused(target_of: tuple[int, ...], weights: tuple[float, ...]) -> None:
    with pytest.raises(DataError):
        TargetColumns(("a", "b", "c"), target_of, weights)


def test_round_robin_gives_each_subtask_its_best_in_turn() -> None:
    """x picks 1, y picks 2 (1 is gone), x picks 3 (2 is gone), y has nothing left, x picks 4."""
    x = (np.array([1, 2, 3, 4]), np.array([0.9, 0.8, 0.7, 0.6]))
    y = (np.array([1, 2]), np.array([0.5, 0.4]))
    ids, picked_by, scores = round_robin([x, y], 4)
    assert ids.tolist() == [1, 2, 3, 4] and picked_by.tolist() == [0, 1, 0, 0]
    assert scores.tolist() == [0.9, 0.4, 0.7, 0.6]
    assert round_robin([x, y], 3)[0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("rule", ["max", "mean", "round_robin"])
def test_selection_is_the_same_for_any_shards_in_any_order(rule: str) -> None:
    ids, store = random_store(900)
    store[0][100:140], store[1][100:140] = store[0][0], store[1][0]  # exact ties
    targets, weights = random_targets(3), checkpoint_weights([2e-5, 1e-5])
    columns, settings = TargetColumns.single(["a", "b", "c"]), MatchSettings(subtasks=rule)  # type: ignore[arg-type]
    selections = set()
    for seed, count in enumerate((1, 2, 13)):
        rng = np.random.default_rng(seed)
        reduce = InfluenceReduce(120, columns, settings)
        shards = np.array_split(np.arange(900), count)
        for i in rng.permutation(count):
            part = shards[i]
            scores = weighted_match([units[part] for units in store], targets, weights)
            reduce.add(ids[part], scores)
        chosen, scores = reduce.result()
        selections.add((tuple(chosen.tolist()), tuple(scores.tolist())))
    assert len(selections) == 1
    assert len(set(next(iter(selections))[0])) == 120


def test_round_robin_from_k_per_subtask_equals_round_robin_from_all() -> None:
    ids, store = random_store(300)
    scores = weighted_match(store, random_targets(4), [0.5, 0.5])
    reduce = InfluenceReduce(50, TargetColumns.single("abcd"), MatchSettings(subtasks="round_robin"))
    reduce.add(ids, scores)
    full = [(ids[o], s[o]) for s in scores.T for o in [np.lexsort((ids, -s))]]
    assert reduce.result()[0].tolist() == round_robin(full, 50)[0].tolist()


def test_nan_scores_never_reach_the_ranking() -> None:
    reduce = InfluenceReduce(2, TargetColumns.single("a"))
    with pytest.raises(DataError, match="NaN"):
        reduce.add([1, 2], np.array([[np.nan], [0.1]]))


# --- end to end against the formulas of the paper --------------------------------------------------------------------

VOCABULARY = 48


@pytest.fixture(scope="module")
def world() -> dict[str, Any]:
    """A tiny model at two checkpoints of real Adam training, rows of four skills, pairs and examples of two of them."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.1,
    )
    base = transformers.LlamaForCausalLM(config)
    model = peft.get_peft_model(base, peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")).eval()
    rows = [make_row(i, skill=i % 4) for i in range(60)]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3, weight_decay=0.0)
    checkpoints = []
    for step in range(12):
        optimizer.zero_grad()
        for row in rows[(step % 6) * 10 :][:10]:
            (token_loss(model, row) / 10).backward()
        optimizer.step()
        if step in (5, 11):
            weights = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
            state = {
                "state": {i: {k: v.clone() for k, v in s.items()} for i, s in optimizer.state_dict()["state"].items()},
                "param_groups": optimizer.state_dict()["param_groups"],
            }
            checkpoints.append((weights, state))
    optimizer.zero_grad()
    pairs = [
        TokenPair(i, make_row(1000 + i, skill=i % 2), make_row(2000 + i, skill=3, like=1000 + i), f"skill{i % 2}")
        for i in range(6)
    ]
    examples = [TokenExample(make_row(3000 + i, skill=i % 2), f"skill{i % 2}") for i in range(6)]
    return {"model": model, "rows": rows, "checkpoints": checkpoints, "pairs": pairs, "examples": examples}


def make_row(id_: int, skill: int, like: int | None = None) -> TokenRow:
    """A prompt of common tokens and an answer of this skill's own three; `like`: the row whose prompt it shares."""
    rng, prompt_rng = np.random.default_rng(id_), np.random.default_rng(id_ if like is None else like)
    prompt = prompt_rng.integers(40, VOCABULARY, 4)
    answer = rng.integers(10 * skill, 10 * skill + 3, rng.integers(6, 16))
    return TokenRow(id_, np.concatenate([prompt, answer]), np.concatenate([np.full(4, IGNORED), answer]))


def token_loss(model: Any, row: TokenRow, reduction: str = "mean") -> torch.Tensor:
    logits = model(input_ids=torch.from_numpy(row.input_ids)[None]).logits[0, :-1]
    labels = torch.from_numpy(row.labels)[1:]
    return torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction=reduction)


def slow_scores(world: dict[str, Any], method: str, weights: list[float]) -> np.ndarray:
    """papers.md 1.2 and 2.2 in the official preset, one backward pass at a time, nothing shared with the package."""
    model = world["model"]
    parameters = [p for p in model.parameters() if p.requires_grad]

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    total = torch.zeros(len(world["rows"]), 2)
    for (saved, state), weight in zip(world["checkpoints"], weights, strict=True):
        model.load_state_dict(saved, strict=False)
        m, v = (torch.cat([s[k].flatten() for s in state["state"].values()]) for k in ("exp_avg", "exp_avg_sq"))
        targets: list[list[torch.Tensor]] = [[], []]
        if method == "less":
            for example in world["examples"]:
                targets[int(example.subtask[-1])].append(gradient(token_loss(model, example.row)))
        else:
            for pair in world["pairs"]:
                gap = token_loss(model, pair.chosen, "sum") - token_loss(model, pair.rejected, "sum")
                targets[int(pair.subtask[-1])].append(gradient(-torch.nn.functional.logsigmoid(-0.1 * gap)))
        for i, row in enumerate(world["rows"]):
            g = gradient(token_loss(model, row))
            step = (0.9 * m + 0.1 * g) / torch.sqrt(0.999 * v + 0.001 * g * g + 1e-8)
            for j in (0, 1):
                cosines = [torch.nn.functional.cosine_similarity(step, target, dim=0) for target in targets[j]]
                total[i, j] += weight * torch.stack(cosines).mean()
    return total.max(dim=1).values.numpy()


@functools.cache
def drawn_signs(seed: int, rows: int, width: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (rows, width), generator=draw, dtype=torch.int8) * 2 - 1


class DenseSigns(Projection):
    """R g / sqrt(d) with a dense matrix of random signs: the projection of LESS."""

    def add(self, accumulator: torch.Tensor, index: int, gradients: torch.Tensor) -> None:
        signs = drawn_signs(1000 * self.settings.seed + index, gradients.shape[1], self.width)
        for part, drawn in zip(gradients.split(2048, dim=1), signs.split(2048), strict=True):
            accumulator.addmm_(part, drawn.to(part.dtype), alpha=self.width**-0.5)


def our_scores(world: dict[str, Any], method: str, weights: list[float], kind: str, seed: int = 0) -> np.ndarray:
    model, rows = world["model"], world["rows"]
    gradients = RowGradients(model, token_budget=2048)
    layout = gradients.adapter.layout
    stores, targets = [], []
    for saved, state in world["checkpoints"]:
        model.load_state_dict(saved, strict=False)
        whole = {"exact": "none", "dense": "sketch"}.get(kind, kind)
        settings = ProjectionSettings(kind=whole, dimension=8192, seed=seed)  # type: ignore[arg-type]
        gradients.sink = (DenseSigns if kind == "dense" else Projection)(settings, layout)
        if method == "less":
            target = cross_entropy_targets(gradients, world["examples"], TargetSettings())
        else:
            target = preference_targets(gradients, world["pairs"], PreferenceSettings(), TargetSettings())
        assert target.subtasks == ("skill0", "skill1")
        gradients.direction = AdamDirection(AdamSettings(), optimizer_moments(state, layout)[0])
        if kind == "exact":
            gradients.sink = ExactMatch(torch.from_numpy(target.vectors), layout)
            stores.append(gradients.run(rows).vectors)
            targets.append(np.eye(2))
        else:
            stores.append(unit_rows(gradients.run(rows).vectors, np.float32 if kind == "none" else np.float16)[0])
            targets.append(target.vectors)
    scores = weighted_match(stores, targets, checkpoint_weights(weights))
    return aggregate_subtasks(scores, TargetColumns.single(("skill0", "skill1")), "max")


def ranks(values: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(values))


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


RATES = [0.75, 0.25]


@pytest.mark.parametrize("method", ["less", "rose"])
@pytest.mark.parametrize("kind", ["none", "exact"])
def test_scores_without_projection_rank_exactly_as_the_slow_reference(
    world: dict[str, Any], method: str, kind: str
) -> None:
    expected, found = slow_scores(world, method, RATES), our_scores(world, method, RATES, kind)
    assert np.allclose(found, expected, atol=1e-5)
    assert rank_correlation(found, expected) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("method", ["less", "rose"])
def test_scores_of_the_sketch_at_8192_rank_as_the_exact_ones_and_no_worse_than_a_dense_matrix_s(
    world: dict[str, Any], method: str
) -> None:
    exact = our_scores(world, method, RATES, "none")
    sketch = [our_scores(world, method, RATES, "sketch", seed) for seed in range(4)]
    dense = [our_scores(world, method, RATES, "dense", seed) for seed in range(2)]
    correlations = [rank_correlation(scores, exact) for scores in sketch]
    assert min(correlations) >= 0.99, correlations
    errors = [np.mean([np.sqrt(np.mean((s - exact) ** 2)) for s in scores]) for scores in (sketch, dense)]
    assert errors[0] <= errors[1]


def test_score_is_unchanged_when_plain_gradients_or_targets_are_scaled(world: dict[str, Any]) -> None:
    gradients = RowGradients(world["model"], token_budget=128)
    gradients.sink = Projection(ProjectionSettings(dimension=256), gradients.adapter.layout)
    mean, summed = gradients.run(world["rows"]), gradients.run(world["rows"], "sum")  # each row by its number of tokens
    targets = cross_entropy_targets(gradients, world["examples"], TargetSettings())
    one, other = (match_rows(unit_rows(v.vectors, np.float32)[0], targets.vectors) for v in (mean, summed))
    assert np.allclose(one, other, atol=1e-5) and not np.allclose(mean.vectors, summed.vectors, atol=1e-2)


def test_an_adam_step_on_a_row_that_scores_high_lowers_the_preference_loss(world: dict[str, Any]) -> None:
    model, (saved, state) = world["model"], world["checkpoints"][-1]
    model.load_state_dict(saved, strict=False)
    gradients = RowGradients(model)
    whole = Projection(ProjectionSettings(kind="none"), gradients.adapter.layout)
    gradients.sink = whole
    target = preference_targets(gradients, world["pairs"], PreferenceSettings(beta=1.0), TargetSettings())
    gradients.direction = AdamDirection(AdamSettings(), optimizer_moments(state, whole.layout)[0])
    result = gradients.run(world["rows"])
    scores = match_rows(unit_rows(result.vectors, np.float32)[0], target.vectors).mean(1)
    parameters = [p for p in model.parameters() if p.requires_grad]

    def loss_after(direction: np.ndarray) -> float:
        model.load_state_dict(saved, strict=False)
        parts = torch.from_numpy(direction / np.linalg.norm(direction)).split(list(whole.layout.sizes))
        with torch.no_grad():
            for parameter, part in zip(parameters, parts, strict=True):
                parameter -= 0.02 * part.view_as(parameter)
        after = preference_targets(gradients, world["pairs"], PreferenceSettings(beta=1.0), TargetSettings())
        return float(np.mean([member.loss for member in after.members]))

    best, worst = (loss_after(result.vectors[i]) for i in (scores.argmax(), scores.argmin()))
    assert best < worst

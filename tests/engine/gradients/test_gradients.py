"""A row's gradient is autograd's own for that row alone, whatever the model, the batch, the padding or the order."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

from raysift.errors import DataError, ModelError
from raysift.gradients import collect, cpu_products
from raysift.gradients.adam import AdamDirection, FlatMoments
from raysift.gradients.adapter import adapter_off, find_adapter
from raysift.gradients.collect import RowGradients, _Sums
from raysift.gradients.cpu_products import WORTH_IT
from raysift.gradients.match import ExactMatch
from raysift.gradients.rows import TokenRow, plan_batches
from raysift.settings.gradients import AdamSettings, ProjectionSettings
from raysift.store.packing import PackedProjection
from raysift.store.projection import Projection
from raysift.store.vectors import VectorForm
from raysift.templates import IGNORED

VOCABULARY = 61
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    # At the usual 0.02 so small a model is ill-conditioned: autograd's own gradients change by 2e-5 with the batch.
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DECODERS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": 6},
    "gemma2": {"head_dim": 8, "sliding_window": 6},
    "gemma3_text": {"head_dim": 8, "sliding_window": 6},
    "phi3": {},
    "olmo2": {},
    "gpt_neox": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
# The experts are bare parameters; Qwen's shared expert is a linear layer that sees all tokens in one long list.
TARGETS = {"mixtral": ATTENTION, "qwen2_moe": [*ATTENTION, "shared_expert.up_proj", "shared_expert.down_proj"]}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Products this small only wait for each other on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_model(kind: str = "llama", dtype: torch.dtype = torch.float32, width: int | None = None, **lora: Any) -> Any:
    """A tiny random decoder with an adapter that does something: B is not zero."""
    torch.manual_seed(0)
    settings = {"initializer_range": 0.2} if kind == "gpt2" else SMALL
    wide = {"hidden_size": width, "initializer_range": 0.05} if width else {}
    config = transformers.AutoConfig.for_model(kind, **{**settings, "vocab_size": VOCABULARY, **DECODERS[kind], **wide})
    base = transformers.AutoModelForCausalLM.from_config(config)
    chosen = {
        "r": 3,
        "lora_alpha": 9,
        "target_modules": TARGETS.get(kind, "all-linear"),
        "init_lora_weights": False,
        **lora,
    }
    model = peft.get_peft_model(base, peft.LoraConfig(**chosen)).to(dtype).eval()
    return widened(model) if dtype == torch.float64 else model


def widened(model: nn.Module) -> nn.Module:
    """With norms in double precision: the library's own compute in float32, whatever the weights are."""
    for module in model.modules():
        for name, child in module.named_children():
            if type(child).__name__.endswith("RMSNorm"):
                norm = nn.RMSNorm(child.weight.shape[0], eps=child.variance_epsilon, dtype=torch.float64)
                norm.weight = child.weight
                setattr(module, name, norm)
    return model


def make_rows(count: int = 9, seed: int = 0) -> list[TokenRow]:
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        ids = rng.integers(3, VOCABULARY, rng.integers(4, 20))
        labels = ids.copy()
        labels[: len(ids) // 3] = IGNORED
        rows.append(TokenRow(100 + i, ids, labels))
    return rows


def whole(model: nn.Module, **settings: Any) -> RowGradients:
    gradients = RowGradients(model, **settings)
    gradients.sink = Projection(ProjectionSettings(kind="none"), gradients.adapter.layout)
    return gradients


def slow_gradients(model: Any, rows: list[TokenRow]) -> np.ndarray:
    """One row at a time, through .grad of the adapter's parameters in registration order."""
    parameters = [p for n, p in model.named_parameters() if ".lora_A." in n or ".lora_B." in n]
    out = []
    for row in rows:
        model.zero_grad(set_to_none=True)
        ids, labels = (torch.from_numpy(np.asarray(x)) for x in (row.input_ids, row.labels))
        logits = model(input_ids=ids[None]).logits[0]
        nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=IGNORED).backward()
        out.append(
            torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters])
        )
    model.zero_grad(set_to_none=True)
    return torch.stack(out).numpy()


def deviation(found: np.ndarray, expected: np.ndarray) -> float:
    return float((np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).max())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", DECODERS)
def test_row_gradients_equal_autograd_one_row_at_a_time(kind: str) -> None:
    model, rows = make_model(kind), make_rows()
    result = whole(model, token_budget=64).run(rows)
    assert result.ids.tolist() == [row.id for row in rows] and not result.set_aside
    assert deviation(result.vectors, slow_gradients(model, rows)) < 1e-5
    assert np.allclose(result.gradient_norms, np.linalg.norm(result.vectors, axis=1), rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "phi3", "olmo2", "gpt_neox", "gpt2"])
def test_row_gradients_equal_autograd_in_double_precision(kind: str) -> None:
    model, rows = make_model(kind, torch.float64), make_rows()
    assert deviation(whole(model, token_budget=64).run(rows).vectors, slow_gradients(model, rows)) < 1e-10


@pytest.mark.parametrize("quick", [False, True])
def test_wide_models_agree_too_with_either_library_of_products(quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = make_model(width=WORTH_IT), make_rows()
    if not quick:
        monkeypatch.setattr(cpu_products, "_permission_changes_nothing", lambda: False)
    assert deviation(whole(model, token_budget=64).run(rows).vectors, slow_gradients(model, rows)) < 1e-5


def test_deviations_find_agreement_and_disagreement() -> None:
    model, rows = make_model(), make_rows(4)
    gradients = whole(model)
    assert max(gradients.deviations(rows).values()) < 1e-5
    layer = gradients.adapter.modules[0][0]
    layer.forward = lambda x: nn.functional.linear(2 * x, layer.weight)  # type: ignore[method-assign]
    assert max(gradients.deviations(rows).values()) > 1e-2
    assert gradients.deviations([TokenRow(9, rows[0].input_ids, np.full_like(rows[0].labels, IGNORED))]) == {}


@pytest.mark.parametrize("dimension", [0, 1], ids=["mates", "padding"])
def test_deviations_find_models_that_look_at_batch_mates_or_padding(dimension: int) -> None:
    model, rows = make_model(), sorted(make_rows(6), key=len)[::2]
    embedding = model.get_input_embeddings()
    embed = embedding.forward
    embedding.forward = lambda ids: embed(ids) + embed(ids).mean(dimension, keepdim=True)
    gradients = whole(model)
    assert max(gradients.deviations(rows[:1]).values()) < 1e-5
    found = gradients.deviations(rows)
    assert list(found) == [row.id for row in rows]
    assert min(found[row.id] for row in rows[:-1]) > 1e-2
    assert (found[rows[-1].id] < 1e-5) == (dimension == 1), "the longest row has no padding"


def test_deviations_need_no_more_logits_than_a_run_and_where_memory_is_short_there_are_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, rows = make_model(), make_rows(3)
    gradients, seen = whole(model), []
    model.get_output_embeddings().register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].shape[-2]))
    wanted = gradients.deviations(rows)
    assert sorted(seen) == sorted([sum(row.n_labels for row in rows), *(row.n_labels for row in rows)])

    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    budget = gradients.token_budget
    with monkeypatch.context() as patch:
        patch.setattr(torch.autograd, "grad", fail)
        assert gradients.deviations(rows) == {}
    with monkeypatch.context() as patch:
        patch.setattr(torch.autograd, "backward", fail)
        assert gradients.deviations(rows) == {}
    assert gradients.token_budget == budget and gradients.deviations(rows) == wanted


@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_batch_mates_padding_order_and_batch_size_do_not_matter(budget: int) -> None:
    model, rows = make_model(), make_rows(12)
    alone = np.concatenate([whole(model).run([row]).vectors for row in rows])
    shuffled = [rows[i] for i in np.random.default_rng(budget).permutation(12)]
    result = whole(model, token_budget=budget).run(shuffled)
    assert result.ids.tolist() == [row.id for row in shuffled]
    together = {int(i): v for i, v in zip(result.ids, result.vectors, strict=True)}
    assert deviation(np.stack([together[row.id] for row in rows]), alone) < 1e-5


def test_accumulators_of_a_pass_keep_to_their_share_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole gradient for every row of a pass is what ends a process where the adapter is large."""
    gradients, sizes = whole(make_model()), []
    expected, one_pass = gradients.run(make_rows()), gradients._one_pass
    assert gradients.sink is not None
    monkeypatch.setattr(collect, "ACCUMULATED_BYTES", 4 * 2 * gradients.sink.width)
    monkeypatch.setattr(
        gradients, "_one_pass", lambda part, reduction: sizes.append(len(part)) or one_pass(part, reduction)
    )
    found = gradients.run(make_rows())
    assert max(sizes) == 2 and sum(sizes) == len(found.ids)
    assert deviation(found.vectors, expected.vectors) < 1e-5


def test_half_precision_stays_close_to_single() -> None:
    rows = make_rows()
    single = whole(make_model()).run(rows).vectors
    model = make_model().to(torch.bfloat16)
    half = whole(model).run(rows)
    assert half.vectors.dtype == np.float32
    assert deviation(half.vectors, single) < 0.1
    assert deviation(half.vectors, slow_gradients(model.float(), rows)) < 0.1


def test_adapter_in_float32_on_a_half_precision_base() -> None:
    model, rows = make_model().to(torch.bfloat16), make_rows(4)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    assert max(whole(model).deviations(rows).values()) < 0.05


def test_parameters_keep_no_gradient_and_stay_trainable() -> None:
    model = make_model()
    before = [p.requires_grad for p in model.parameters()]
    model.train()
    whole(model).run(make_rows(3))
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_model_loaded_for_inference_gives_the_same_gradients() -> None:
    model, rows = make_model(), make_rows(4)
    expected = whole(model).run(rows).vectors
    model.requires_grad_(False)
    assert np.array_equal(whole(model).run(rows).vectors, expected)


def test_dropout_is_off_and_rank_stabilised_scaling_is_only_scaling() -> None:
    rows = make_rows(5)
    model = make_model(lora_dropout=0.5, use_rslora=True).train()
    gradients = whole(model)
    assert deviation(gradients.run(rows).vectors, slow_gradients(model, rows)) < 1e-5


def test_rows_without_gradient_are_set_aside_with_their_reason() -> None:
    model, rows = make_model(), make_rows(3)
    ids = np.arange(3, 9)
    silent = TokenRow(1, ids, np.full(6, IGNORED))
    first_only = TokenRow(2, ids, np.where(np.arange(6) == 0, ids, IGNORED))  # the first token is never predicted
    long = TokenRow(3, np.full(30, 5), np.full(30, 5))
    result = whole(model, max_tokens=25).run([silent, rows[0], long, rows[1], first_only])
    assert result.ids.tolist() == [rows[0].id, rows[1].id]
    reasons = [(why.id, why.reason) for why in result.set_aside]
    assert reasons == [(1, "no_label_tokens"), (3, "too_long"), (2, "no_label_tokens")]


def test_a_poisoned_row_is_set_aside_and_its_batch_mates_are_untouched() -> None:
    model, rows = make_model(), make_rows(4)
    poisoned = TokenRow(7, np.array([5, 2, 5, 6]), np.array([5, 2, 5, 6]))
    rows = [row for row in rows if 2 not in row.input_ids]
    expected = whole(model).run(rows).vectors
    model.get_input_embeddings().weight.data[2] = float("nan")
    result = whole(model).run([*rows, poisoned])
    assert [(why.id, why.reason) for why in result.set_aside] == [(7, "non_finite")]
    assert np.allclose(result.vectors, expected, atol=1e-6)


class Toy(nn.Module):
    """Layers named as PEFT names them, in arrangements that no library model offers at this size."""

    def __init__(self, arrangement: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.arrangement = arrangement
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.first, self.second = (ToyLora() for _ in range(2))
        self.head = nn.Linear(8, VOCABULARY, bias=False)
        if arrangement == "tied":
            self.second.lora_A["default"].weight = self.first.lora_A["default"].weight

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        x = (x.cumsum(1) / torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]).tanh()
        if self.arrangement == "routed":
            flat = x.flatten(0, 1)
            order = flat[:, 0].argsort()
            x = x + self.first(flat[order])[order.argsort()].view_as(x)
        elif self.arrangement == "twice":
            x = self.first(self.first(x).relu())
            self.second(x)  # called without any influence on the loss
        elif self.arrangement == "silent":
            return self.head(self.first(x) * 0)
        elif self.arrangement != "unused":
            x = self.second(self.first(x).relu())
        else:
            x = self.first(x)
        return self.head(x)


class ToyLora(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(8, 8).requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(8, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 8, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 3.0 * self.lora_B["default"](self.lora_A["default"](x))


@pytest.mark.parametrize("arrangement", ["plain", "twice", "tied", "unused", "routed"])
def test_shared_repeated_unused_and_routed_layers_still_give_autograds_gradients(arrangement: str) -> None:
    model = Toy(arrangement)
    model.embed.requires_grad_(False)
    model.head.requires_grad_(False)
    rows = make_rows(6)
    gradients = whole(model)
    assert max(gradients.deviations(rows).values()) < 1e-5
    vectors = gradients.run(rows).vectors
    names, offsets = gradients.adapter.layout.names, gradients.adapter.layout.offsets
    second = offsets[names.index("second.lora_B.weight")]
    assert bool(vectors[:, second:].any()) == (arrangement in ("plain", "tied"))


def test_zero_gradients_are_set_aside() -> None:
    model = Toy("silent").requires_grad_(False)
    result = whole(model).run(make_rows(2))
    assert [why.reason for why in result.set_aside] == ["zero_gradient"] * 2 and len(result.ids) == 0


class LittleMemory(Toy):
    """Runs out of memory above some number of tokens, as a GPU would."""

    limit = 40

    def forward(self, input_ids: Tensor) -> Tensor:
        if input_ids.numel() > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().forward(input_ids)


def test_batches_are_halved_until_they_fit_and_a_row_too_large_alone_is_set_aside() -> None:
    rows = [row for row in make_rows(20) if len(row) <= 19]
    ids = np.full(50, 7)
    roomy, tight = (kind("plain").requires_grad_(False) for kind in (Toy, LittleMemory))
    expected = whole(roomy).run(rows)
    gradients = whole(tight)
    result = gradients.run([*rows, TokenRow(1, ids, ids)])
    assert [(why.id, why.reason) for why in result.set_aside] == [(1, "out_of_memory")]
    assert result.ids.tolist() == expected.ids.tolist()
    assert deviation(result.vectors, expected.vectors) < 1e-5
    assert gradients.token_budget <= 80


def test_losses_without_gradients_halve_their_batches_too_and_remember() -> None:
    rows = [row for row in make_rows(20) if len(row) <= 19]
    roomy, tight = (kind("plain").requires_grad_(False) for kind in (Toy, LittleMemory))
    expected, gradients = whole(roomy).losses(rows), whole(tight)
    np.testing.assert_allclose(gradients.losses(rows), expected, rtol=1e-5)
    assert gradients.token_budget <= 80
    ids = np.full(50, 7)
    with pytest.raises(MemoryError, match="the 50 tokens of a row alone do not fit"):
        gradients.losses([TokenRow(1, ids, ids)])


def test_a_batch_that_did_not_fit_has_let_go_of_its_tensors_before_the_next_is_tried() -> None:
    """Tensors held by the traceback of the failed batch would make every smaller one fail too."""
    gradients = whole(make_model())
    sink, seen = gradients.sink, []
    assert isinstance(sink, Projection)

    class Full(Projection):
        def add(self, accumulator: Tensor, index: int, given: Tensor) -> None:
            assert not any(held() is not None for held, rows in seen if rows > len(given))
            seen.extend((weakref.ref(tensor), len(given)) for tensor in (accumulator, given))
            if len(given) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            super().add(accumulator, index, given)

    expected = gradients.run(make_rows(4))
    gradients.sink = Full(sink.settings, sink.layout)
    gc.disable()
    try:
        found = gradients.run(make_rows(4))
    finally:
        gc.enable()
    assert deviation(found.vectors, expected.vectors) < 1e-5
    assert {rows for _, rows in seen} == {4, 2}


def test_a_pass_begins_before_the_results_of_the_one_before_are_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetching waits for the device; the next pass should be queued there by then."""
    gradients, order = whole(make_model(), token_budget=20), []
    one_pass, results = gradients._one_pass, collect.Pass.results

    def begin(part: list[TokenRow], reduction: Any) -> collect.Pass:
        order.append(("begun", part[0].id))
        return one_pass(part, reduction)

    def fetch(done: collect.Pass) -> Iterator[Any]:
        order.append(("fetched", done.rows[0].id))
        return results(done)

    monkeypatch.setattr(gradients, "_one_pass", begin)
    monkeypatch.setattr(collect.Pass, "results", fetch)
    gradients.run(make_rows(5))
    begun = [row for what, row in order if what == "begun"]
    assert len(begun) > 2
    expected = [("begun", begun[0])]
    for last, row in pairwise(begun):
        expected += [("begun", row), ("fetched", last)]
    assert order == [*expected, ("fetched", begun[-1])]


@pytest.mark.parametrize("kind", ["signs", "sketch", "exact"])
def test_a_pass_asks_its_device_for_no_number_before_its_results_are_fetched(kind: str) -> None:
    """On the meta device there are no numbers, so asking for one raises. On a GPU it would wait for all that is queued."""
    gradients = RowGradients(Toy("plain").requires_grad_(False).to("meta"))
    layout, meta = gradients.adapter.layout, torch.device("meta")
    if kind == "exact":
        gradients.sink = ExactMatch.to_fill(3, layout, [meta] * len(layout.sizes))
    else:
        projection = Projection(ProjectionSettings.model_validate({"kind": kind, "dimension": 64}), layout)
        gradients.sink = PackedProjection(projection, VectorForm(64, signs=kind == "signs"))
    ones = tuple(torch.ones(size, device=meta) for size in layout.sizes)
    gradients.direction = AdamDirection(AdamSettings(), FlatMoments(ones, ones, 1))
    for reduction in ("mean", "sum"):
        done = gradients._one_pass(make_rows(4), reduction)
        assert done.vectors.device == meta and len(done.vectors) == 4
    with pytest.raises((NotImplementedError, RuntimeError)):
        next(done.results())


def test_a_direction_that_a_sink_cannot_hold_is_set_aside() -> None:
    gradients = whole(make_model())

    class Cancels(Projection):
        def add(self, accumulator: Tensor, index: int, given: Tensor) -> None:
            accumulator[1] = float("inf")

    assert isinstance(gradients.sink, Projection)
    gradients.sink = Cancels(gradients.sink.settings, gradients.sink.layout)
    result = gradients.run(make_rows(3))
    assert len(result.ids) == 0 and [why.reason for why in result.set_aside] == ["non_finite"] * 3
    assert "no direction" in result.set_aside[0].message


def test_other_errors_are_not_taken_for_lack_of_memory() -> None:
    class Broken(Toy):
        def forward(self, input_ids: Tensor) -> Tensor:
            raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        whole(Broken("plain").requires_grad_(False)).run(make_rows(2))


@pytest.mark.parametrize(
    ("lora", "reason"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"lora_bias": True, "target_modules": ["q_proj"]}, "bias"),
        ({"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}, "fully trained module"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "embedding"),
        ({"bias": "all", "target_modules": ["q_proj"]}, "besides the adapter"),
    ],
)
def test_adapters_whose_gradients_would_be_wrong_are_refused(lora: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        RowGradients(make_model("qwen2", **lora))  # a decoder whose layers have biases


def test_expert_parameters_are_refused() -> None:
    model = make_model("mixtral", target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"])
    with pytest.raises(ModelError, match="bare parameter"):
        RowGradients(model)


def test_missing_merged_and_disabled_adapters_are_refused() -> None:
    model, rows = make_model(), make_rows(2)
    with pytest.raises(ModelError, match=r"no LoRA adapter other .*found: \['default'\]"):
        RowGradients(model, adapter="other")
    with model.disable_adapter(), pytest.raises(ModelError, match="was called"):
        whole(model).run(rows)
    model.merge_adapter()
    with pytest.raises(ModelError, match="merged"):
        RowGradients(model)


def test_the_named_adapter_among_several_is_taken_and_names_do_not_depend_on_it() -> None:
    model, rows = make_model(), make_rows(3)
    expected = whole(model)
    model.add_adapter("late", peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    with pytest.raises(ModelError, match="by default"):
        RowGradients(model)
    default = whole(model, adapter="default")
    assert default.adapter.layout == expected.adapter.layout
    assert max(default.deviations(rows).values()) < 1e-5
    model.set_adapter("late")
    assert max(whole(model, adapter="late").deviations(rows).values()) < 1e-5


def test_a_layer_of_logits_under_the_adapter_is_not_thinned_out() -> None:
    model, rows = make_model(target_modules=["q_proj", "lm_head"]), make_rows(5)
    assert deviation(whole(model).run(rows).vectors, slow_gradients(model, rows)) < 1e-5


def test_adapter_off_is_the_base() -> None:
    model = make_model()
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        with model.disable_adapter():
            base = model(input_ids=ids).logits
        on = model(input_ids=ids).logits
        with adapter_off(find_adapter(model)):
            off = model(input_ids=ids).logits
    assert torch.equal(off, base) and not torch.allclose(on, base)


def test_summed_loss_is_mean_loss_times_tokens() -> None:
    gradients, rows = whole(make_model()), make_rows(5)
    mean, total = gradients.run(rows), gradients.run(rows, "sum")
    tokens = np.array([row.n_labels for row in rows])
    assert deviation(total.vectors, mean.vectors * tokens[:, None]) < 1e-5
    assert np.allclose(total.losses, mean.losses * tokens, rtol=1e-5)
    assert np.allclose(gradients.losses(rows, "sum"), total.losses, rtol=1e-5)


def test_exact_match_is_the_cosine_of_whole_gradients() -> None:
    model, rows = make_model(), make_rows(6)
    gradients = whole(model)
    vectors = gradients.run(rows).vectors
    targets = torch.randn(3, vectors.shape[1], generator=torch.Generator().manual_seed(0))
    gradients.sink = ExactMatch(targets, gradients.adapter.layout)
    expected = vectors @ targets.numpy().T / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert np.allclose(gradients.run(rows).vectors, expected, rtol=1e-4, atol=1e-5)


def test_targets_that_come_later_and_change_match_as_those_given_at_first() -> None:
    gradients = whole(make_model())
    layout = gradients.adapter.layout
    devices = [torch.device("cpu")] * len(layout.sizes)
    shared = ExactMatch.to_fill(2, layout, devices)
    for seed in (1, 2):
        targets = torch.randn(2, layout.total, generator=torch.Generator().manual_seed(seed))
        gradients.sink = ExactMatch(targets, layout)
        expected = gradients.run(make_rows(3)).vectors
        assert shared.fill(targets) == targets.nbytes
        gradients.sink = shared
        assert np.array_equal(gradients.run(make_rows(3)).vectors, expected)
    with pytest.raises(DataError, match="NaN or infinite"):
        shared.fill(torch.full((2, layout.total), float("nan")))
    with pytest.raises(DataError, match=r"have shape \(2, 3\)"):
        shared.fill(torch.zeros(2, 3))


def test_exact_match_refuses_targets_of_another_adapter() -> None:
    layout = find_adapter(make_model()).layout
    with pytest.raises(DataError, match="kind 'none'"):
        ExactMatch(torch.zeros(2, 8192), layout)


def test_plan_covers_every_row_once_within_budget() -> None:
    lengths = np.random.default_rng(0).integers(1, 300, 500).tolist()
    plan = plan_batches(lengths, token_budget=256, max_rows=9)
    assert sorted(i for batch in plan for i in batch) == list(range(500))
    for batch in plan:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 256
        assert len(batch) <= 9
    assert plan == plan_batches(lengths, token_budget=256, max_rows=9)
    assert sum(len(b) * max(lengths[i] for i in b) for b in plan) < 1.05 * sum(lengths)


def test_repeated_ids_are_refused() -> None:
    with pytest.raises(DataError, match="twice"):
        whole(make_model()).run([make_rows(1)[0]] * 2)


def test_gradients_need_neither_ray_nor_transformers_and_settings_not_even_torch() -> None:
    code = (
        "import sys, raysift.settings.gradients, raysift.gradients.influence, raysift.topk\n"
        "assert 'torch' not in sys.modules\n"
        "import raysift.gradients, raysift.gradients.preference\n"
        "assert not {'ray', 'transformers', 'peft'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")


class Elsewhere(Tensor):
    """Claims to lie on another device; whoever moves it gets the numbers."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", 1)

    def to(self, *_: Any, **__: Any) -> Tensor:
        return self.as_subclass(Tensor)


def test_sums_over_several_devices_are_those_of_one() -> None:
    layout = find_adapter(make_model()).layout
    parts = [torch.randn(3, size, generator=torch.Generator().manual_seed(size)) for size in layout.sizes]
    found = []
    for spread in (False, True):
        sums = _Sums(Projection(ProjectionSettings(kind="none"), layout), None, 3)
        for index, part in enumerate(parts):
            sums.receive(index, part.as_subclass(Elsewhere) if spread and index % 3 else part)
        assert len(sums._sums) == 1 + spread
        found.append([part.numpy() for part in sums.finish()])
    assert np.array_equal(found[0][0], found[1][0]) and found[1][2].all()
    assert np.allclose(found[0][1], found[1][1], rtol=1e-6)


def test_a_base_dispatched_by_accelerate_gives_the_same_gradients() -> None:
    """As a model over several GPUs is run: every block's forward is wrapped by a hook that brings its inputs."""
    from accelerate import dispatch_model

    plain, rows = make_model(target_modules=ATTENTION), make_rows()
    expected = whole(plain, token_budget=64).run(rows)
    names = ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head")
    dispatch_model(plain.get_base_model(), dict.fromkeys(names, "cpu"), force_hooks=True)
    assert hasattr(plain.get_base_model().lm_head, "_hf_hook")
    assert np.array_equal(whole(plain, token_budget=64).run(rows).vectors, expected.vectors)

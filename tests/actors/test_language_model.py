"""Bases that are too large as they are: in four bits, or spread over the GPUs of one process."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from raysift.actors import language_model
from raysift.actors.checkpointed import Checkpoint, CheckpointedModel
from raysift.actors.effective_batches import EncodeRows, Place, split_trainable
from raysift.actors.language_model import load_language_model
from raysift.actors.row_gradients import MATCHES, VECTORS, GradientMatch, GradientVectors
from raysift.actors.step_trainer import StepTrainer
from raysift.actors.target_gradients import TargetGradients, save_targets
from raysift.actors.train_checkpoints import epoch_records
from raysift.actors.trainee import train
from raysift.actors.validator import Validator
from raysift.config import make_config
from raysift.errors import ConfigError, ModelError, StageError
from raysift.gradient_settings import AdamSettings, PreferenceSettings, ProjectionSettings, TargetSettings
from raysift.jobs.gradients import loading
from raysift.preference import Targets
from raysift.projection import Projection
from raysift.recipes import TrainConfig
from raysift.records import ERROR, ID, MESSAGES, Message, Pair
from raysift.storage import open_location

from ..tiny_models import tiny_llama  # noqa: TID252

ONE = Place(device="cpu", threads=1)
WHOLE = ProjectionSettings(kind="none")
TINY = TrainConfig(
    lora_rank=4, learning_rate=1e-2, warmup_ratio=0.1, epochs=4, batch_size=8, max_length=64, dtype="fp32"
)
QUANTISED = TINY.model_copy(update={"quantization": "4bit"})
LOADING = {"device": "cpu", "threads": 1, "dtype": "fp32", "max_length": 64}
PAIRS = [Pair((Message("user", "which"),), chosen, "that", "a") for chosen in ("this one", "abab", "b")]

four_bits = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes: pip install raysift[4bit]"
)


def conversations(count: int = 20) -> pa.Table:
    rows = [
        {
            ID: (number * 7919) % 10007,
            MESSAGES: [
                {"role": "user", "content": "repeat " + "ab" * (number % 5 + 1)},
                {"role": "assistant", "content": "ab" * (number % 5 + 1)},
            ],
        }
        for number in range(count)
    ]
    return pa.Table.from_pylist(rows)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def rows(tiny) -> pa.Table:
    return split_trainable(EncodeRows(tiny, "auto", 64)(conversations()))[0]


@pytest.fixture(scope="module")
def tuned(tiny, rows, tmp_path_factory):
    """A fine-tune of four epochs over a base in four bits."""
    out = tmp_path_factory.mktemp("tuned")
    train(rows, open_location(out), QUANTISED, tiny, "test", ONE)
    return out


def points_of(out) -> list[Checkpoint]:
    places = [open_location(out) / f"epoch-{number}" for number in (1, 4)]
    return [Checkpoint(place.name, place / "adapter", place / "moments.safetensors", 1e-3) for place in places]


def vectors_of(tiny, out, **changed) -> np.ndarray:
    """Unit vectors of the rows, two checkpoints of each."""
    answers = GradientVectors(tiny, points_of(out), AdamSettings(), WHOLE, **(LOADING | changed))(conversations(6))
    assert answers[ERROR].null_count == len(answers)
    return np.stack([np.frombuffer(v, "<f2").reshape(2, -1) for v in answers[VECTORS].to_pylist()]).astype(np.float32)


def bits(model) -> set[int]:
    """Of the base's linear layers."""
    names = ("q_proj", "down_proj", "lora_A")
    weights = {n: w for n, w in model.named_parameters() if any(name in n for name in names) and "lora_B" not in n}
    return {4 if w.dtype == torch.uint8 else 8 * w.element_size() for n, w in weights.items() if "lora_" not in n}


# --- four bits -------------------------------------------------------------------------------------------------------


@four_bits
def test_row_gradients_over_four_bits_are_autograds_also_after_passes_without_gradient(tiny, tuned):
    """On CPUs with bfloat16 instructions a pass without gradient once spoilt all later gradients, by more than 100 %."""
    model = CheckpointedModel(tiny, points_of(tuned), AdamSettings(), quantization="4bit", **LOADING)
    rows = [model.encode(row[ID], row[MESSAGES]) for row in conversations(6).to_pylist()]
    gradients = model.at(1, Projection(WHOLE, model.layout))
    assert bits(gradients.model) == {4}
    assert gradients.check(rows) < 1e-5
    before = gradients.run(rows)
    np.testing.assert_allclose(gradients.losses(rows), before.losses, rtol=1e-5)
    assert np.array_equal(gradients.run(rows).vectors, before.vectors)
    assert gradients.check(rows) < 1e-5


@four_bits
def test_a_quantised_base_decides_the_vectors_and_stays_near_the_whole_one(tiny, tuned):
    quantised, whole = vectors_of(tiny, tuned, quantization="4bit"), vectors_of(tiny, tuned)
    cosines = (quantised * whole).sum(-1)
    assert cosines.min() > 0.9 and cosines.max() < 0.9999


@four_bits
def test_targets_and_rows_meet_over_four_bits(tiny, tuned, tmp_path):
    points, settings = points_of(tuned), LOADING | {"quantization": "4bit"}
    actor = TargetGradients(tiny, points, WHOLE, **settings)
    found: list[Targets] = actor.from_pairs(PAIRS, PreferenceSettings(), TargetSettings(), end_prompt=False)
    save_targets(open_location(tmp_path), points, found, actor.hash)
    matched = GradientMatch(tiny, points, AdamSettings(), open_location(tmp_path), **settings)(conversations(6))
    vectors = vectors_of(tiny, tuned, quantization="4bit")
    for index, target in enumerate(found):
        expected = vectors[:, index] @ target.vectors.T
        np.testing.assert_allclose([row[index] for row in matched[MATCHES].to_pylist()], expected, atol=1e-3)


@four_bits
def test_a_fine_tune_over_four_bits_learns_and_its_adapter_fits_the_whole_base(tiny, tuned):
    losses = [record.mean_loss for record in epoch_records(open_location(tuned))]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.9 * losses[0]
    saved = load_file(tuned / "epoch-4" / "adapter" / "adapter_model.safetensors")
    assert all("lora_" in name and weight.dtype == torch.float32 for name, weight in saved.items())
    whole = load_language_model(tiny, tuned / "epoch-4" / "adapter", dtype="fp32", device="cpu")
    fresh = load_language_model(tiny, dtype="fp32", device="cpu")
    tokens = torch.arange(10, 40)[None]
    with torch.no_grad():
        assert bits(whole) == {32}
        assert not torch.allclose(whole(tokens).logits, fresh(tokens).logits, atol=1e-2)


@four_bits
def test_a_stopped_training_over_four_bits_continues_to_the_same_bytes(tiny, rows, tuned, tmp_path):
    class Stop(Exception):
        pass

    def stop(record) -> None:
        if record.epoch == 2:
            raise Stop

    with pytest.raises(Stop):
        train(rows, open_location(tmp_path), QUANTISED, tiny, "test", ONE, on_epoch=stop)
    train(rows, open_location(tmp_path), QUANTISED, tiny, "test", ONE)
    name = "epoch-4/adapter/adapter_model.safetensors"
    assert (tmp_path / name).read_bytes() == (tuned / name).read_bytes()


@four_bits
def test_steps_and_validation_over_four_bits_see_one_and_the_same_base(tiny, rows):
    trainer = StepTrainer(rows, QUANTISED, 6, tiny, ONE)
    assert bits(trainer.model) == {4}
    validator = Validator(conversations(8), QUANTISED, tiny, ONE)
    numbers = range(len(validator.batches))
    before = validator.losses_of(trainer.model, numbers)
    losses = [trainer.step(trainer.rows.ids[:8]) for _ in range(6)]
    assert losses[-1] < losses[0]
    after = validator.losses_of(trainer.model, numbers)
    assert validator.losses(trainer.weights(), numbers) == after != before
    trainer.restart()
    assert [trainer.step(trainer.rows.ids[:8]) for _ in range(6)] == losses


@four_bits
def test_products_over_four_bits_are_made_in_the_type_of_the_recipe(tiny):
    for dtype, expected in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        model = load_language_model(tiny, dtype=dtype, device="cpu", quantization="4bit")
        layer = model.model.layers[0].self_attn.q_proj
        assert layer.compute_dtype == model.lm_head.weight.dtype == expected


@four_bits
def test_a_model_without_linear_layers_is_not_called_quantised():
    with pytest.raises(ModelError, match="no linear layer that can be held in four bits"):
        language_model._keep_differentiable(torch.nn.Embedding(2, 2), "toy")


def test_four_bits_without_the_package_says_what_to_install(tiny, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'raysift\[4bit\]'"):
        load_language_model(tiny, device="cpu", quantization="4bit")


def test_the_setting_of_a_run_reaches_training_and_gradients():
    settings = {"method": "rose", "pool": "pool.jsonl", "model": "owner/name"}
    config = make_config(settings | {"train": {"quantization": "4bit"}})
    assert loading(config, config.rose)["quantization"] == "4bit"
    apart = make_config(settings | {"rose": {"warmup": {"quantization": "4bit"}}})
    assert apart.train.quantization == "none" and loading(apart, apart.rose)["quantization"] == "4bit"
    with pytest.raises(ConfigError, match=r"train\.quantization.*set method to lora"):
        make_config(settings | {"train": {"method": "full", "quantization": "4bit"}})


# --- spread over several devices -------------------------------------------------------------------------------------


def test_spread_without_a_gpu_is_an_error(tiny, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match=r"this process sees no GPU.*resources\.gpus_per_worker"):
        load_language_model(tiny, device="spread")
    with pytest.raises(ModelError, match="sees no GPU"):
        language_model.pick_device("spread")


def test_a_base_that_does_not_fit_on_the_gpus_is_refused_and_not_left_on_the_host(tiny, monkeypatch):
    monkeypatch.setattr(language_model, "spread_over_gpus", lambda: {"": "cpu"})
    with pytest.raises(
        ModelError, match=r"does not fit on the GPUs .*: 20 of its 20 weights .* first model\.embed_tokens"
    ):
        load_language_model(tiny, device="spread")


@pytest.fixture
def pretended(monkeypatch):
    """A map layer by layer as for two GPUs, with the CPU in place of both."""
    from peft import PeftModel
    from transformers import PreTrainedModel

    layers = ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head")
    monkeypatch.setattr(language_model, "spread_over_gpus", lambda: dict.fromkeys(layers, "cpu"))
    monkeypatch.setattr(language_model, "_refuse_offloaded", lambda *_: None)
    for kind in (PreTrainedModel, PeftModel):
        monkeypatch.setattr(kind, "to", lambda *_: pytest.fail("a model that is spread must not be moved"))


@pytest.mark.parametrize("quantization", ["none", pytest.param("4bit", marks=four_bits)])
def test_a_model_loaded_by_a_map_gives_the_same_vectors(tiny, tuned, request, quantization):
    expected = vectors_of(tiny, tuned, quantization=quantization)
    request.getfixturevalue("pretended")
    found = vectors_of(tiny, tuned, quantization=quantization, device="spread")
    assert np.array_equal(found, expected)


def test_steps_of_a_model_loaded_by_a_map_are_the_same(tiny, rows, request):
    expected = StepTrainer(rows, TINY, 2, tiny, ONE)
    losses = [expected.step(expected.rows.ids[:8]) for _ in range(2)]
    request.getfixturevalue("pretended")
    request.getfixturevalue("monkeypatch").setattr("raysift.actors.trainee.pick_device", lambda device: "cpu")
    trainer = StepTrainer(rows, TINY, 2, tiny, replace(ONE, device="spread"))
    assert [trainer.step(trainer.rows.ids[:8]) for _ in range(2)] == losses


def test_ranks_do_not_share_a_spread_model(tiny, rows, tmp_path, monkeypatch):
    monkeypatch.setattr("raysift.actors.trainee.pick_device", lambda device: "cpu")
    with pytest.raises(StageError, match="2 ranks cannot share a model that is spread"):
        train(rows, open_location(tmp_path), TINY, tiny, "test", Place(device="spread", world_size=2))


@pytest.mark.gpu
def test_over_two_gpus_gradients_and_training_are_those_of_one_cpu(tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two CUDA devices; here are {torch.cuda.device_count()}")
    large = tiny_llama(tmp_path, hidden=256, layers=8)
    encoded = split_trainable(EncodeRows(large, "auto", 64)(conversations()))[0]
    config = TINY.model_copy(update={"adam_epsilon": 1e-6})
    for device in ("cpu", "spread"):
        train(encoded, open_location(tmp_path / device), config, large, "test", Place(device=device))
    losses = [[record.mean_loss for record in epoch_records(open_location(tmp_path / d))] for d in ("cpu", "spread")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    spread = load_language_model(large, device="spread")
    assert len({weight.device for weight in spread.parameters()}) > 1
    found, expected = (vectors_of(large, tmp_path / "cpu", device=device) for device in ("spread", "cpu"))
    assert (found * expected).sum(-1).min() > 0.999
    steps = [StepTrainer(encoded, config, 2, large, Place(device=device)) for device in ("cpu", "spread")]
    first, second = ([trainer.step(trainer.rows.ids[:8]) for _ in range(2)] for trainer in steps)
    assert second == pytest.approx(first, rel=1e-3)

"""A base in four bits: training, gradients and validation over it."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install raysift[4bit]")

import torch
from safetensors.torch import load_file

from raysift.actors import language_model
from raysift.actors.checkpointed import CheckpointedModel
from raysift.actors.language_model import load_language_model
from raysift.actors.row_gradients import MATCHES, GradientMatch
from raysift.actors.step_trainer import StepTrainer
from raysift.actors.target_files import load_targets
from raysift.actors.target_gradients import TargetGradients
from raysift.actors.train_checkpoints import epoch_records
from raysift.actors.trainee import train
from raysift.actors.validator import Validator
from raysift.errors import ModelError
from raysift.records import ID, MESSAGES, Message, Pair
from raysift.settings.gradients import AdamSettings, PreferenceSettings, TargetSettings
from raysift.storage import open_location
from raysift.store.projection import Projection

from ..tiny_tunes import LOADING, ONE, TINY, WHOLE, conversations, points_of, vectors_of  # noqa: TID252

pytestmark = pytest.mark.extra

QUANTISED = TINY.model_copy(update={"quantization": "4bit"})
PAIRS = [Pair((Message("user", "which"),), chosen, "that", "a") for chosen in ("this one", "abab", "b")]


@pytest.fixture(scope="module")
def tuned(tiny, rows, tmp_path_factory):
    """A fine-tune of four epochs over a base in four bits."""
    out = tmp_path_factory.mktemp("tuned")
    train(rows, open_location(out), QUANTISED, tiny, ONE)
    return out


def bits(model) -> set[int]:
    """Of the base's linear layers."""
    names = ("q_proj", "down_proj", "lora_A")
    weights = {n: w for n, w in model.named_parameters() if any(name in n for name in names) and "lora_B" not in n}
    return {4 if w.dtype == torch.uint8 else 8 * w.element_size() for n, w in weights.items() if "lora_" not in n}


def test_row_gradients_over_four_bits_are_autograds_also_after_passes_without_gradient(tiny, tuned):
    """On CPUs with bfloat16 instructions a pass without gradient once spoilt all later gradients, by more than 100 %."""
    model = CheckpointedModel(tiny, points_of(tuned), AdamSettings(), quantization="4bit", **LOADING)
    rows = [model.encode(row[ID], row[MESSAGES]) for row in conversations(6).to_pylist()]
    gradients = model.at(1, Projection(WHOLE, model.layout))
    assert bits(gradients.model) == {4}
    assert max(gradients.deviations(rows).values()) < 1e-5
    before = gradients.run(rows)
    np.testing.assert_allclose(gradients.losses(rows), before.losses, rtol=1e-5)
    assert np.array_equal(gradients.run(rows).vectors, before.vectors)
    assert max(gradients.deviations(rows).values()) < 1e-5


def test_a_quantised_base_decides_the_vectors_and_stays_near_the_whole_one(tiny, tuned):
    quantised, whole = vectors_of(tiny, tuned, quantization="4bit"), vectors_of(tiny, tuned)
    cosines = (quantised * whole).sum(-1)
    assert cosines.min() > 0.9 and cosines.max() < 0.9999


def test_targets_and_rows_meet_over_four_bits(tiny, tuned, tmp_path):
    points, settings = points_of(tuned), LOADING | {"quantization": "4bit"}
    actor = TargetGradients(tiny, points, WHOLE, files=open_location(tmp_path), **settings)
    actor.from_pairs(PAIRS, PreferenceSettings(), TargetSettings(), end_prompt=False)
    matched = GradientMatch(tiny, points, AdamSettings(), open_location(tmp_path), **settings)(conversations(6))
    vectors = vectors_of(tiny, tuned, quantization="4bit")
    for index, target in enumerate(load_targets(open_location(tmp_path), points)):
        expected = vectors[:, index] @ target.numpy().T
        np.testing.assert_allclose([row[index] for row in matched[MATCHES].to_pylist()], expected, atol=1e-3)


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


def test_a_stopped_training_over_four_bits_continues_to_the_same_bytes(tiny, rows, tuned, tmp_path):
    class Stop(Exception):
        pass

    def stop(record) -> None:
        if record.epoch == 2:
            raise Stop

    with pytest.raises(Stop):
        train(rows, open_location(tmp_path), QUANTISED, tiny, ONE, on_epoch=stop)
    train(rows, open_location(tmp_path), QUANTISED, tiny, ONE)
    name = "epoch-4/adapter/adapter_model.safetensors"
    assert (tmp_path / name).read_bytes() == (tuned / name).read_bytes()


def test_steps_and_validation_over_four_bits_see_one_and_the_same_base(tiny, rows):
    trainer = StepTrainer(rows, QUANTISED, 6, tiny, ONE)
    assert bits(trainer.model) == {4}
    validator = Validator(conversations(8), QUANTISED, tiny, ONE)
    numbers = range(len(validator.batches))
    before = validator.losses_of(trainer.model, numbers)
    losses = [trainer.step(trainer.rows.ids[:8]) for _ in range(6)]
    assert losses[-1] < losses[0]
    after = validator.losses_of(trainer.model, numbers)
    assert after != before
    trainer.restart()
    assert [trainer.step(trainer.rows.ids[:8]) for _ in range(6)] == losses


def test_products_over_four_bits_are_made_in_the_type_of_the_recipe(tiny):
    for dtype, expected in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        model = load_language_model(tiny, dtype=dtype, device="cpu", quantization="4bit")
        layer = model.model.layers[0].self_attn.q_proj
        assert layer.compute_dtype == model.lm_head.weight.dtype == expected


def test_a_model_without_linear_layers_is_not_called_quantised():
    with pytest.raises(ModelError, match="no linear layer that can be held in four bits"):
        language_model._keep_differentiable(torch.nn.Embedding(2, 2), "toy")


def test_a_model_loaded_by_a_map_gives_the_same_vectors(tiny, tuned, request):
    expected = vectors_of(tiny, tuned, quantization="4bit")
    request.getfixturevalue("pretended")
    found = vectors_of(tiny, tuned, quantization="4bit", device="spread")
    assert np.array_equal(found, expected)

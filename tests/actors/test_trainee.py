"""What a fine-tune does in its steps: passes, logits, memory calls."""

from __future__ import annotations

import contextlib

import pytest
import torch

from raysift.actors import trainee
from raysift.actors.effective_batches import EffectiveBatches, Place
from raysift.actors.language_model import load_language_model
from raysift.actors.train_checkpoints import epoch_records
from raysift.actors.trainee import own_settings, train
from raysift.settings.training import TrainConfig
from raysift.storage import open_location

from ..tiny_models import tiny_llama  # noqa: TID252
from ..tiny_tunes import ONE, TINY  # noqa: TID252

ONCE = TINY.model_copy(update={"epochs": 1})
BYTES = Place(device="cpu", threads=1, rows_per_pass=3)


def watched(**hooks):
    """A callback with these methods; importing transformers takes seconds."""
    from transformers import TrainerCallback

    return type("Watched", (TrainerCallback,), hooks)()


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_head_sees_only_positions_with_a_label(tiny, rows, tmp_path, method):
    seen = []

    def on_train_begin(self, args, state, control, model, **kwargs):
        model.get_output_embeddings().register_forward_hook(lambda _, inputs, out: seen.append(out.shape[:-1].numel()))

    config = ONCE.model_copy(update={"method": method})
    train(rows, open_location(tmp_path), config, tiny, ONE, callbacks=[watched(on_train_begin=on_train_begin)])
    assert sum(seen) == EffectiveBatches(rows, config, ONE).rows.labels_per_row.sum()


def test_a_step_has_the_passes_that_its_rows_need_and_gradients_travel_once(tiny, rows, tmp_path, monkeypatch):
    from accelerate import Accelerator

    held, forwards = [], []

    @contextlib.contextmanager
    def no_sync(self, model):
        held.append(len(forwards))
        yield

    def on_train_begin(self, args, state, control, model, **kwargs):
        model.get_input_embeddings().register_forward_hook(lambda *_: forwards.append(1))

    monkeypatch.setattr(Accelerator, "no_sync", no_sync)
    train(rows, open_location(tmp_path), ONCE, tiny, BYTES, callbacks=[watched(on_train_begin=on_train_begin)])
    passes = [len(step.passes) for step in EffectiveBatches(rows, ONCE, BYTES)]
    assert passes == [3, 3, 2], "8, 8 and 4 rows, at most 3 at a time"
    assert len(forwards) == sum(passes)
    assert held == [0, 1, 3, 4, 6], "all passes of a step but the last keep their gradients to themselves"


def fills(model: torch.nn.Module) -> int:
    ids = torch.arange(24).view(2, 12)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model(input_ids=ids, labels=ids).loss.backward()
    return sum(event.count for event in profile.key_averages() if event.key == "aten::fill_")


def test_deterministic_training_fills_no_memory_that_it_will_write_anyway(tiny, monkeypatch):
    model = load_language_model(tiny, dtype="fp32", device="cpu")
    fills(model)
    usual = fills(model)
    monkeypatch.setattr(trainee, "pick_device", lambda device: "cuda")  # where the mode is on
    with own_settings(ONE):
        assert torch.are_deterministic_algorithms_enabled()
        assert fills(model) == usual
        torch.utils.deterministic.fill_uninitialized_memory = True
        assert fills(model) > 3 * usual, "as torch does by default"
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert not torch.are_deterministic_algorithms_enabled()


def test_moments_in_eight_bits_train_nearly_as_well(tiny, rows, tmp_path):
    losses = {}
    for optimizer in ("adamw", "adamw8bit"):
        config: TrainConfig = TINY.model_copy(update={"optimizer": optimizer})
        train(rows, open_location(tmp_path / optimizer), config, tiny, ONE)
        losses[optimizer] = [record.mean_loss for record in epoch_records(open_location(tmp_path / optimizer))]
    assert losses["adamw8bit"] != losses["adamw"]
    assert losses["adamw8bit"] == pytest.approx(losses["adamw"], rel=0.02) and losses["adamw"][-1] < losses["adamw"][0]


def test_a_row_longer_than_a_pass_has_one_of_its_own(rows):
    place = Place(device="cpu", tokens_per_pass=16)
    for step in EffectiveBatches(rows, TINY, place):
        assert all(len(batch.input_ids) == 1 or batch.input_ids.numel() <= 16 for batch in step.passes)


def test_a_head_with_an_adapter_sees_every_position_and_gives_the_same_loss(tiny_untied, rows, tmp_path):
    """It cannot be fed alone; its adapter starts as zero, so that the first steps at a tiny rate have the same loss."""
    losses, seen = [], []

    def on_train_begin(self, args, state, control, model, **kwargs):
        model.get_output_embeddings().register_forward_hook(lambda _, inputs, out: seen.append(out.shape[:-1].numel()))

    for targets in (("q_proj", "lm_head"), ("q_proj",)):
        config = ONCE.model_copy(update={"learning_rate": 1e-9, "lora_targets": targets})
        place = open_location(tmp_path / targets[-1])
        train(rows, place, config, tiny_untied, ONE, callbacks=[watched(on_train_begin=on_train_begin)])
        losses.append(epoch_records(place)[0].mean_loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    batches = EffectiveBatches(rows, ONCE, ONE)
    everywhere = sum(batch.input_ids.numel() for step in batches for batch in step.passes)
    assert sum(seen) == everywhere + batches.rows.labels_per_row.sum()


@pytest.fixture(scope="module")
def tiny_untied(tmp_path_factory) -> str:
    return tiny_llama(tmp_path_factory.mktemp("untied"), tie_word_embeddings=False)

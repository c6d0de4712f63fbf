"""A base spread over the GPUs of one process."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from raysift.actors import language_model
from raysift.actors.effective_batches import EncodeRows, Place, split_trainable
from raysift.actors.language_model import load_language_model
from raysift.actors.step_trainer import StepTrainer
from raysift.actors.train_checkpoints import epoch_records
from raysift.actors.trainee import train
from raysift.errors import ModelError, StageError
from raysift.storage import open_location

from ..tiny_models import tiny_llama  # noqa: TID252
from ..tiny_tunes import ONE, TINY, conversations, vectors_of  # noqa: TID252


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


def test_a_model_loaded_by_a_map_gives_the_same_vectors(tiny, rows, tmp_path, request):
    train(rows, open_location(tmp_path), TINY, tiny, ONE)
    expected = vectors_of(tiny, tmp_path)
    request.getfixturevalue("pretended")
    found = vectors_of(tiny, tmp_path, device="spread")
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
        train(rows, open_location(tmp_path), TINY, tiny, Place(device="spread", world_size=2))


@pytest.mark.gpu
def test_over_two_gpus_gradients_and_training_are_those_of_one_cpu(tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two CUDA devices; here are {torch.cuda.device_count()}")
    large = tiny_llama(tmp_path, hidden=256, layers=8)
    encoded = split_trainable(EncodeRows(large, "auto", 64)(conversations()))[0]
    config = TINY.model_copy(update={"adam_epsilon": 1e-6})
    for device in ("cpu", "spread"):
        train(encoded, open_location(tmp_path / device), config, large, Place(device=device))
    losses = [[record.mean_loss for record in epoch_records(open_location(tmp_path / d))] for d in ("cpu", "spread")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    spread = load_language_model(large, device="spread")
    assert len({weight.device for weight in spread.parameters()}) > 1
    found, expected = (vectors_of(large, tmp_path / "cpu", device=device) for device in ("spread", "cpu"))
    assert (found * expected).sum(-1).min() > 0.999
    steps = [StepTrainer(encoded, config, 2, large, Place(device=device)) for device in ("cpu", "spread")]
    first, second = ([trainer.step(trainer.rows.ids[:8]) for _ in range(2)] for trainer in steps)
    assert second == pytest.approx(first, rel=1e-3)

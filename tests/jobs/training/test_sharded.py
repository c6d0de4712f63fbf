"""A full fine-tune whose weights are divided among workers gives what one process gives, and either goes on with the other's."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from raysift.errors import StageError
from raysift.gradients.moments import load_moments
from raysift.jobs.training.finetune import finetune
from raysift.settings.resources import Resources
from raysift.storage import open_location

from ...tiny_models import tiny_llama  # noqa: TID252
from .test_finetune import CONFIG, HERE, Stop, largest_difference, some_rows, stop_at, write_rows

FULL = CONFIG.model_copy(
    update={"method": "full", "learning_rate": 1e-3, "weight_decay": 0.1, "epochs": 2, "adam_epsilon": 1e-6}
)
TWO = Resources(train=2, cpus_per_worker=1, threads=1, shard="full", batch_rows=3, restarts=0)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(tmp_path_factory, request) -> str:
    return tiny_llama(tmp_path_factory.mktemp("model"), tie_word_embeddings=request.param)


def weights_of(out) -> dict[str, np.ndarray]:
    return load_file(out / "epoch-2/model/model.safetensors")


@pytest.fixture
def by_value():
    """Workers cannot import tests."""
    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(sys.modules[stop_at.__module__])
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[stop_at.__module__])


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_divided_weights_are_trained_as_whole_ones(tmp_path, model, ray_local):
    files = write_rows(tmp_path / "rows", some_rows())
    alone = finetune(files, tmp_path / "alone", FULL, model, HERE)
    two = finetune(files, tmp_path / "two", FULL, model, TWO)
    assert two.workers == 2
    assert largest_difference(weights_of(tmp_path / "alone"), weights_of(tmp_path / "two")) < 1e-5
    assert {path.name for path in (tmp_path / "alone/epoch-2/model").iterdir()} == {
        path.name for path in (tmp_path / "two/epoch-2/model").iterdir()
    }
    one, other = (
        load_moments(open_location(tmp_path / out / "epoch-2/moments.safetensors")) for out in ("alone", "two")
    )
    assert (one.names, one.step, one.beta2) == (other.names, other.step, other.beta2)
    for name in one.names:
        np.testing.assert_allclose(other.exp_avg[name], one.exp_avg[name], atol=1e-5)
        np.testing.assert_allclose(other.exp_avg_sq[name], one.exp_avg_sq[name], atol=1e-6)
    assert [r.mean_loss for r in two.epochs] == pytest.approx([r.mean_loss for r in alone.epochs], rel=1e-5)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("first", [HERE, TWO], ids=["one-then-two", "two-then-one"])
def test_a_training_goes_on_with_another_number_of_workers(tmp_path, tied, ray_local, by_value, first):
    """With moments in eight bits, which a rank rounds as one process would."""
    config, files = FULL.model_copy(update={"optimizer": "adamw8bit"}), write_rows(tmp_path / "rows", some_rows())
    finetune(files, tmp_path / "whole", config, tied, HERE)
    with pytest.raises(Stop if first is HERE else StageError):
        finetune(files, tmp_path / "out", config, tied, first, callbacks=[stop_at(4)])
    assert (tmp_path / "out/epoch-1/epoch.json").exists() and not (tmp_path / "out/epoch-2").exists()
    finetune(files, tmp_path / "out", config, tied, TWO if first is HERE else HERE)
    found, expected = weights_of(tmp_path / "out"), weights_of(tmp_path / "whole")
    start = load_file(f"{tied}/model.safetensors")
    moved = sum(np.abs(expected[name] - start[name]).sum() for name in start)
    assert sum(np.abs(found[name] - expected[name]).sum() for name in start) < 1e-3 * moved


@pytest.fixture(scope="module")
def tied(tmp_path_factory) -> str:
    return tiny_llama(tmp_path_factory.mktemp("tied"))

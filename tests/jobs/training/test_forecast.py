"""A full fine-tune is told part by part before it starts, divided where it must be, and refused where it cannot fit."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from wide_models import LLAMA_8B

from raysift.config import make_config
from raysift.errors import StageError
from raysift.jobs.cluster import machines
from raysift.jobs.cluster.machines import for_role
from raysift.jobs.on_ray import fitting
from raysift.jobs.training import finetune as finetuning
from raysift.jobs.training import sharding
from raysift.jobs.training.finetune import finetune
from raysift.jobs.training.sharding import need_to_finetune, ranks_of
from raysift.settings.cluster import Cluster, Machine
from raysift.settings.memory import GIB
from raysift.settings.resources import Resources
from raysift.storage import open_location


@pytest.fixture
def eight(tmp_path, monkeypatch):
    """A folder with the configuration of an 8B model, and a way to set a cluster of one machine with GPUs of 80 GB."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))

    def machine(gpus: float, card: int = 80 * 10**9) -> str:
        here = Cluster((Machine(192.0, gpus, 1500 * GIB),), 192.0, gpus)
        for module in (fitting, machines):
            monkeypatch.setattr(module, "read_cluster", lambda resources=None: here)
            monkeypatch.setattr(module, "card_bytes", lambda gpus: card)
        monkeypatch.setattr(sharding, "ray", SimpleNamespace(is_initialized=lambda: True))
        return str(tmp_path)

    return machine


def asked(model: str, train: dict | None = None, **resources):
    values = {"method": "mods", "model": model, "resources": resources}
    return make_config(values | {"train": {"recipe": "mods", "dtype": "bf16"} | (train or {})}, gpus=lambda: 8.0)


def told(config, model):
    said = []
    need = need_to_finetune(SimpleNamespace(note=said.append), "final", config, model, None)
    return need, said


def test_on_eight_cards_it_is_divided_and_told_in_parts(eight):
    model = eight(8)
    config = asked(model)
    need, said = told(config, model)
    own = for_role(config, "train", model).resources
    assert ranks_of(config.train, model, own) == own.workers == 8
    assert "8.0B weights, divided among 8 workers" in said[0] and "3.7 weights, 3.7 gradients, 7.5 moments" in said[0]
    assert fitting.fit_cluster(own, need).tokens == 2048 and "2048 tokens in a pass" in said[0]


def test_settings_decide_where_both_would_do(eight):
    model = eight(8, card=200 * 10**9)
    for shard, ranks in (("auto", 1), ("full", 8), ("none", 1)):
        config = asked(model, shard=shard)
        assert ranks_of(config.train, model, for_role(config, "train", model).resources) == ranks
    lora = asked(model, {"method": "lora"}, shard="full")
    assert ranks_of(lora.train, model, for_role(lora, "train", model).resources) == 1


@pytest.mark.parametrize(
    ("gpus", "resources", "advice"),
    [
        (8, {"shard": "none"}, "divide the weights (resources.shard=full"),
        (1, {}, "divide the weights"),
        (2, {}, "take more workers than 2"),
    ],
)
def test_what_cannot_fit_is_refused_before_it_starts(eight, gpus, resources, advice):
    model = eight(gpus)
    with pytest.raises(StageError, match="cannot fit before the first pass") as refused:
        told(asked(model, **resources), model)
    for words in (advice, "train.optimizer=adamw8bit", "train.method=lora"):
        assert words in str(refused.value)


def test_two_cards_hold_it_with_moments_in_eight_bits(eight):
    model = eight(2)
    _, said = told(asked(model, {"optimizer": "adamw8bit"}, gradient_checkpointing=True), model)
    assert "divided among 2 workers" in said[0] and "7.6 moments" in said[0]


@pytest.mark.ray
def test_a_spread_model_is_trained_in_a_worker_and_not_here(tmp_path, ray_local, monkeypatch):
    """Here no worker finds a GPU, and its error comes back; this process must not even try."""
    from .test_finetune import CONFIG, some_rows, write_rows

    monkeypatch.setattr("raysift.actors.trainee.train", lambda *_, **__: pytest.fail("trained in the driver"))
    spread = Resources(device="spread", train=1, restarts=0)
    spread = spread.of("train", Cluster((Machine(4.0, 2.0, GIB),), 4.0, 2.0))
    assert (spread.workers, spread.gpus_per_worker) == (1, 2.0), "all GPUs of a machine"
    granted = spread.model_copy(update={"gpus_per_worker": 0.0, "cpus_per_worker": 1.0})
    granted._role = spread.role
    files = write_rows(tmp_path / "rows", some_rows(4))
    with pytest.raises(StageError, match=r"training failed.*'spread', but this process sees no GPU"):
        finetune(files, tmp_path / "out", CONFIG, "nano", granted)
    assert not (open_location(tmp_path / "out") / finetuning.REPORT).exists()

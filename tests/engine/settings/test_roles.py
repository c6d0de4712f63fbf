"""Who gets a GPU: by role, by what the cluster has, and by what the user asks for."""

import pytest
from pydantic import ValidationError

from raysift.config import make_config
from raysift.errors import ConfigError
from raysift.settings.cluster import Cluster, Machine
from raysift.settings.resources import Resources

GIB = 2**30
LAPTOP = Cluster((Machine(8, 0, 16 * GIB),), 8)
ONE_GPU = Cluster((Machine(64, 1, 200 * GIB),), 64, 1)
EIGHT = Cluster((Machine(192, 8, 1500 * GIB),), 192, 8)
TWO_NODES = Cluster((Machine(96, 4, 700 * GIB),) * 2, 192, 8)
ON_ITS_WAY = Cluster((Machine(4, 0, 16 * GIB),), 4, 8)
WITH_MODELS = ("score", "embed", "generate", "gradients", "train", "learn")


@pytest.mark.parametrize(("cluster", "gpus"), [(LAPTOP, 0), (ONE_GPU, 1), (EIGHT, 1), (TWO_NODES, 1), (ON_ITS_WAY, 1)])
def test_by_default_every_worker_with_a_model_has_a_gpu_where_there_are_some_and_others_never(cluster, gpus):
    for role in WITH_MODELS:
        own = Resources().of(role, cluster)
        assert own.gpus_per_worker == gpus and own.on_gpu == bool(gpus), role
        assert not Resources().of(role, cluster, small=True).on_gpu, role
    for role in ("tokenise", "reduce"):
        own = Resources(gpus_per_worker=1, cpus_per_worker=8, worker_gib=30, device="cuda").of(role, cluster)
        assert (own.gpus_per_worker, own.placed_on, own.cpus, own.memory) == (0, "cpu", 1, None)


@pytest.mark.parametrize(
    ("cluster", "asked", "workers"),
    [
        *[(LAPTOP, {}, 1), (ONE_GPU, {}, 1), (EIGHT, {}, 8), (TWO_NODES, {}, 8), (ON_ITS_WAY, {}, 8)],
        *[(EIGHT, {"workers": 4}, 4), (EIGHT, {"train": 2}, 2), (EIGHT, {"train": 0}, 0), (EIGHT, {"gpus": 0}, 1)],
        *[(EIGHT, {"device": "spread"}, 1), (EIGHT, {"gpus_per_worker": 0.25}, 8)],
    ],
)
def test_a_training_takes_all_gpus_unless_it_is_given_fewer_workers(cluster, asked, workers):
    own = Resources(**asked).of("train", cluster)
    assert own.workers == workers
    assert own.gpus_per_worker in ({8.0} if "device" in asked else {0.0, 1.0}), "whole ones"


def test_a_role_s_own_settings_come_before_the_general_ones():
    asked = Resources(
        workers=3, cpus_per_worker=2, gpus_per_worker=1, worker_gib=9, embed={"gpus": 0.25, "workers": 16}, score=2
    )
    embed, score = asked.of("embed", EIGHT), asked.of("score", EIGHT)
    assert (embed.workers, embed.gpus_per_worker, embed.cpus, embed.worker_gib) == (16, 0.25, 2, 9)
    assert (score.workers, score.gpus_per_worker) == (2, 1)
    assert Resources(gpus_per_worker=1, generate={"gpus": 0}).of("generate", EIGHT).placed_on == "cpu"


def test_resources_of_one_role_give_those_of_another_as_if_asked_first():
    asked = Resources(cpus_per_worker=2, score={"gpus": 0.5})
    by_way = asked.of("train", EIGHT).model_copy(update={"tokens_per_pass": 128}).of("score", EIGHT)
    assert by_way.model_dump() == asked.of("score", EIGHT).model_dump()
    assert by_way.asked == asked and by_way.role == "score"


def test_number_types_follow_the_gpus_that_workers_will_find():
    real = {"method": "less", "model": "some/model"}
    assert make_config(real, lambda: 8).train.dtype == "bf16"
    assert (
        make_config(real | {"resources": {"gpus": 0}}, lambda: 8).train.dtype
        == make_config(real, lambda: 0).train.dtype
    )
    asked = []
    make_config({"method": "uniform", "model": "some/model", "train": {"dtype": "fp32"}}, lambda: asked.append(1) or 0)
    assert asked == [], "a cluster is not joined to learn what nobody asked"


def test_a_fraction_of_a_gpu_is_refused_for_trainings():
    with pytest.raises(ValidationError, match="a training takes whole GPUs"):
        Resources(train={"gpus": 0.5})
    with pytest.raises(ConfigError, match=r"resources\.train\.gpus.*whole GPUs"):
        make_config({"resources": {"train": {"gpus": 0.25}}})

"""What settings become in the arguments of an engine. No engine is started, so vLLM is not needed."""

import pytest
from pydantic import ValidationError

from raysift.actors.vllm_engine import engine_arguments
from raysift.settings.resources import EngineResources


def test_without_settings_an_engine_is_started_as_ever():
    common = {"dtype": "float32", "generation_config": "vllm", "enable_prefix_caching": True, "disable_log_stats": True}
    common |= {"trust_remote_code": False, "max_model_len": 1024}
    assert engine_arguments("nano") == common | {"kv_cache_memory_bytes": 2**30, "enforce_eager": True}
    assert engine_arguments("nano", gpus=2) == common | {"gpu_memory_utilization": 0.9, "tensor_parallel_size": 2}
    assert engine_arguments("nano", gpus=0.5) == common | {"gpu_memory_utilization": 0.45, "tensor_parallel_size": 1}


def test_settings_reach_the_arguments_of_an_engine():
    engine = EngineResources(
        memory_share=0.5, cache_gib=0.25, prefix_caching=False, arguments={"max_num_seqs": 8, "enforce_eager": False}
    )
    on_cpu = engine_arguments("nano", engine=engine)
    assert on_cpu["kv_cache_memory_bytes"] == 2**28 and on_cpu["enable_prefix_caching"] is False
    assert on_cpu["max_num_seqs"] == 8 and on_cpu["enforce_eager"] is False
    on_gpu = engine_arguments("nano", gpus=0.5, engine=engine)
    assert on_gpu["gpu_memory_utilization"] == 0.25 and "kv_cache_memory_bytes" not in on_gpu


@pytest.mark.parametrize(
    "name", ["model", "dtype", "seed", "quantization", "max_lora_rank", "trust_remote_code", "no_such_thing"]
)
def test_arguments_that_could_decide_answers_are_refused(name):
    with pytest.raises(ValidationError, match=f"{name} may decide what the engine answers .* expected some of"):
        EngineResources(arguments={"max_num_seqs": 8, name: 1})


@pytest.mark.extra
def test_all_arguments_that_may_be_named_are_known_to_vllm():
    vllm = pytest.importorskip("vllm", reason="needs vLLM; see CONTRIBUTING.md for one without a GPU")
    from dataclasses import fields

    from raysift.settings.resources import ENGINE_ARGUMENTS

    assert {field.name for field in fields(vllm.EngineArgs)} >= ENGINE_ARGUMENTS

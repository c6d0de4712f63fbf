"""bf16 is taken where the processor multiplies it, and nowhere else."""

import pytest

from raysift.settings import hardware
from raysift.settings.config import make_config


@pytest.mark.parametrize(
    ("text", "fast"),
    [
        ("model name\t: Some CPU\nflags\t\t: fpu avx2 avx512f avx512_bf16\n", True),
        ("flags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("Features\t: fp asimd i8mm bf16\n", True),
        ("flags\t\t: fpu avx2 avx512f\n", False),
        ("flags\t\t: fpu not_avx512_bf16x\n", False),
        ("", False),
    ],
)
def test_the_flags_of_the_processor_decide(tmp_path, text, fast):
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    assert hardware.multiplies_bf16(file) is fast


def test_a_system_that_tells_nothing_computes_in_float32(tmp_path, monkeypatch):
    assert not hardware.multiplies_bf16(tmp_path / "none")
    assert hardware.describe_cpu(tmp_path / "none")


@pytest.mark.parametrize("fast", [True, False])
def test_a_gpu_multiplies_bf16_whatever_the_processor_does(monkeypatch, fast):
    monkeypatch.setattr(hardware, "multiplies_bf16", lambda: fast)
    assert hardware.usual_dtype(on_gpu=True) == "bf16"
    assert hardware.usual_dtype(on_gpu=False) == ("bf16" if fast else "fp32")


@pytest.mark.parametrize("fast", [True, False])
def test_auto_stands_for_a_type_before_anything_is_computed(monkeypatch, fast):
    """What was taken is in the settings, hence in fingerprints and in `run.yaml`; no worker decides for itself."""
    monkeypatch.setattr(hardware, "multiplies_bf16", lambda: fast)
    taken = "bf16" if fast else "fp32"
    config = make_config({"method": "less", "model": "some/model", "less": {"warmup": {"recipe": "less"}}})
    assert (config.train.dtype, config.less.warmup.dtype) == (taken, taken)
    on_gpu = make_config({"method": "mods", "model": "some/model", "resources": {"gpus_per_worker": 1}})
    assert on_gpu.train.dtype == "bf16"
    named = make_config({"method": "less", "model": "some/model", "train": {"dtype": "fp32"}})
    assert named.train.dtype == "fp32"
    assert make_config({"method": "less"}).less.warmup.dtype == "fp32"  # nano's own recipe


def test_a_model_stored_in_float32_is_not_rounded(monkeypatch):
    monkeypatch.setattr(hardware, "multiplies_bf16", lambda: True)
    assert hardware.settle_dtype("auto", False, lambda: "fp32") == "fp32"
    assert hardware.settle_dtype("auto", False, lambda: "bf16") == "bf16"
    assert hardware.settle_dtype("bf16", False, lambda: "fp32") == "bf16"
    monkeypatch.setattr(hardware, "multiplies_bf16", lambda: False)
    assert hardware.settle_dtype("auto", False, lambda: "bf16") == "fp32"
    assert hardware.settle_dtype("auto", True, lambda: "bf16") == "bf16"

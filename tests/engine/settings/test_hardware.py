"""bf16 is taken where the processor multiplies it, and nowhere else."""

import pytest

from raysift.settings import hardware


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

"""What every check uses: the device, its sizes, a ledger of figures and deviations, and clocks that wait for the device."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

GIB = 2**30
PEAKS = {
    "B200": 2250,
    "GH200": 989,
    "H200": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "A100": 312,
    "A800": 312,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "A10G": 70,
    "A10": 125,
    "A40": 150,
    "A6000": 155,
    "RTX 4090": 165,
    "RTX 3090": 71,
}
"""TFLOP/s of dense bfloat16 products, from the vendor's data sheets; the first name that is part of the card's counts."""


class Skipped(Exception):
    """The check cannot be made here; the message gives the reason."""


@dataclass(frozen=True)
class Sizes:
    """How large the models and data of the checks are."""

    rows: int
    """Nano rows that actors answer."""
    wide: dict[str, int]
    """Widths of the random model that is trained and measured."""
    widest: dict[str, int] | None
    """Widths of a model of 8 billion parameters; None leaves it out."""
    wide_rows: int
    mean_tokens: int
    max_tokens: int
    token_budget: int
    rank: int
    points: tuple[int, int]
    """Rows and width of the vectors that k-center covers."""
    centers: int
    pool_rows: int
    """Rows that a policy scores."""


LLAMA_1B = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
}
LLAMA_8B = LLAMA_1B | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "head_dim": 128}
TINY = {
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
ON_A_CARD = Sizes(256, LLAMA_1B, LLAMA_8B, 512, 300, 2048, 16384, 128, (200_000, 1024), 1000, 1_000_000)
ON_CPU = Sizes(24, TINY, None, 24, 40, 128, 1024, 4, (2000, 32), 40, 20_000)


@dataclass
class Lab:
    """One check's device, folder and ledger."""

    device: str
    sizes: Sizes
    folder: Path
    """Models and adapters that `worlds.py` wrote."""
    peak_tflops: float | None = None
    threads: int = 1
    figures: dict[str, Any] = field(default_factory=dict)
    deviations: dict[str, dict[str, float]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def on_card(self) -> bool:
        """Whether the device is a card."""
        return self.device != "cpu"

    def precisions(self) -> Iterator[tuple[str, str]]:
        """Names and number types in which an actor is compared with float32 on the CPU: without TF32, with it, and half."""
        from raysift.gradients import cpu_products

        usual = cpu_products._tf32_permitted  # products of float32 run as TF32 on every card
        for name, dtype in (("fp32", "fp32"), ("tf32", "fp32"), ("bf16", "bf16")):
            if name == "tf32" and not self.on_card:
                continue
            if name == "fp32":
                cpu_products._tf32_permitted = contextlib.nullcontext
            try:
                yield name, dtype
            finally:
                cpu_products._tf32_permitted = usual

    def same(self, what: str, found: Any, expected: Any, limit: float) -> None:
        """Note the distance of both relative to the expected length; beyond the limit the check fails."""
        found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
        if found.shape != expected.shape:
            self.fail(f"{what}: shape {found.shape}, expected {expected.shape}")
            return
        self.at_most(what, float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-30)), limit)

    def at_most(self, what: str, value: float, limit: float) -> None:
        """Note a deviation and its limit; a NaN fails, too."""
        self.deviations[what] = {"found": float(f"{value:.3g}"), "limit": limit}
        if not value <= limit:
            self.fail(f"{what}: deviates by {value:.3g}, at most {limit:g} is expected")

    def expect(self, what: str, holds: bool, message: str) -> None:
        """Note a law; one that does not hold fails the check."""
        self.figures[what] = bool(holds)
        if not holds:
            self.fail(f"{what}: {message}")

    def fail(self, message: str) -> None:
        """The check fails, and goes on."""
        self.failures.append(message)

    def wait(self) -> None:
        """Until the card has done what was asked."""
        if self.on_card:
            import torch

            torch.cuda.synchronize()

    def timed(self, work: Callable[[], Any]) -> tuple[Any, float]:
        """What the work gives, and its seconds on the device."""
        self.wait()
        began = time.perf_counter()
        found = work()
        self.wait()
        return found, time.perf_counter() - began

    @contextlib.contextmanager
    def memory(self, what: str) -> Iterator[None]:
        """Note the peak in GiB: what torch allocated on the card, or the process's largest size on the CPU."""
        if self.on_card:
            import torch

            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            yield
        finally:
            if self.on_card:
                peak = torch.cuda.max_memory_allocated()
            else:
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            self.figures[f"{what}: peak GiB"] = round(peak / GIB, 2)

    def rate(self, what: str, units: float, seconds: float, unit: str) -> None:
        """Note units a second."""
        self.figures[f"{what}: {unit}/s"] = float(f"{units / max(seconds, 1e-9):.4g}")

    def share(self, what: str, flop: float, seconds: float) -> None:
        """Note TFLOP/s, and their share of the card's peak where the card is known."""
        found = flop / max(seconds, 1e-9) / 1e12
        self.figures[f"{what}: TFLOP/s"] = float(f"{found:.4g}")
        if self.peak_tflops:
            self.figures[f"{what}: share of peak"] = round(found / self.peak_tflops, 3)


def card_of() -> dict[str, Any] | None:
    """The first CUDA device and what drives it; None if torch sees none."""
    import torch

    if not torch.cuda.is_available():
        return None
    known = torch.cuda.get_device_properties(0)
    return {
        "card": known.name,
        "cards": torch.cuda.device_count(),
        "memory_gib": round(known.total_memory / GIB, 1),
        "cuda": torch.version.cuda,
        "peak_tflops_bf16": next((peak for name, peak in PEAKS.items() if name.lower() in known.name.lower()), None),
    }


def lengths(count: int, mean: int, most: int, seed: int = 0) -> np.ndarray:
    """Lengths of rows as pools have them: log-normal, a few of them long."""
    drawn = np.random.default_rng(seed).lognormal(np.log(mean) - 0.5 * 0.9**2, 0.9, count)
    return np.clip(drawn.astype(int), 8, most)

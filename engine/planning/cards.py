"""Known GPUs, for plans of machines that are not at hand. Makers' figures: dense bfloat16 products, without sparsity.

What a stage reaches of a card's peak depends on model, lengths and software. The shares below are assumptions, stated in
every plan that uses them; a plan that is measured on the machine needs none of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from raysift.errors import ConfigError

GIB = 2**30


@dataclass(frozen=True)
class Card:
    """One GPU: bytes of memory, dense bfloat16 operations a second, bytes a second from its memory."""

    name: str
    memory: int
    flops: float
    bandwidth: float


def _card(name: str, gib: int, tflops: float, terabytes: float) -> Card:
    return Card(name, gib * GIB, tflops * 1e12, terabytes * 1e12)


CARDS = {
    card.name.lower(): card
    for card in (
        _card("L4", 24, 121, 0.3),
        _card("A10", 24, 125, 0.6),
        _card("RTX3090", 24, 71, 0.936),
        _card("RTX4090", 24, 165, 1.008),
        _card("L40S", 48, 362, 0.864),
        _card("A100-40", 40, 312, 1.555),
        _card("A100", 80, 312, 2.039),
        _card("H100-PCIe", 80, 756, 2.0),
        _card("H100", 80, 989, 3.35),
        _card("H200", 141, 989, 4.8),
        _card("B200", 180, 2250, 8.0),
        _card("MI300X", 192, 1307, 5.3),
    )
}

REACHED = {"forward": 0.35, "train": 0.35, "gradients": 0.2, "decode": 0.3}
"""Share of a card's peak that a stage is taken to reach: of its operations, for `decode` of its bandwidth."""
GPUS_A_MACHINE, CPUS_A_GPU, HOST_A_GPU = 8, 12, 128 * GIB
"""What a described machine is taken to have."""


def read_gpus(text: str) -> tuple[int, Card]:
    """`8xH100` as a number and a card; raises ConfigError with the cards that are known."""
    found = re.fullmatch(r"(?:(\d+)\s*[xX*]\s*)?([\w-]+)", text.strip())
    card = CARDS.get(found[2].lower()) if found else None
    count = int(found[1] or 1) if found else 0
    if card is None or count < 1:
        known = ", ".join(card.name for card in CARDS.values())
        raise ConfigError(f"--gpus: '{text}' is no number and card, such as 8xH100. Known cards: {known}.")
    return count, card

"""Actors that answer rows: rewards, embeddings, likelihoods, IFD, generated answers; each against itself on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from lab import Lab
from worlds import nano_rows

LIMITS = {"fp32": 1e-4, "tf32": 1e-2, "bf16": 8e-2}
"""Relative distance from float32 on the CPU; nano is small, and bfloat16 keeps 8 bits of each of its products."""


def _compared(lab: Lab, name: str, make: Callable[..., Any], read: Callable[[Any], np.ndarray]) -> Any:
    """Answers by number type on the device against float32 on the CPU, where each row is a batch of its own."""
    rows = nano_rows(lab.sizes.rows)
    expected = read(make(device="cpu", dtype="fp32", threads=lab.threads, batch_tokens=1)(rows))
    for kind, dtype in lab.precisions():
        actor = make(device=lab.device, dtype=dtype)
        actor(rows.slice(0, 8))
        with lab.memory(f"{name} {kind}"):
            answers, seconds = lab.timed(lambda actor=actor: actor(rows))
        lab.same(f"{name} {kind}", read(answers), expected, LIMITS[kind])
        lab.rate(f"{name} {kind}", len(rows), seconds, "rows")
    return expected


def _column(name: str) -> Callable[[Any], np.ndarray]:
    def read(answers: Any) -> np.ndarray:
        return np.array(answers[name].to_pylist(), np.float64)

    return read


def reward(lab: Lab) -> None:
    """Scores of a reward model."""
    from raysift.actors.reward import Reward
    from raysift.scoring.columns import REWARD

    _compared(lab, "reward", lambda **loading: Reward("nano:reward", **loading), _column(REWARD))


def embedder(lab: Lab) -> None:
    """Vectors of an encoder."""
    from raysift.actors.embedder import Embedder
    from raysift.scoring.columns import EMBEDDING
    from raysift.scoring.settings import EmbeddingSettings

    settings = EmbeddingSettings(model="nano:encoder")
    _compared(lab, "embedding", lambda **loading: Embedder(settings, **loading), _column(EMBEDDING))


def likelihood(lab: Lab) -> None:
    """Losses of answers, and IFD, which divides two of them."""
    from raysift.actors.ifd import Ifd
    from raysift.actors.likelihood import LOSS, AnswerLoss
    from raysift.scoring.columns import IFD

    _compared(lab, "answer loss", lambda **loading: AnswerLoss("nano", **loading), _column(LOSS))
    _compared(lab, "ifd", lambda **loading: Ifd("nano", **loading), _column(IFD))


def generator(lab: Lab) -> None:
    """Greedy answers: nearly all are the CPU's, but where two tokens are all but equally probable rounding decides."""
    from raysift.actors.generator import ANSWER, NEW_TOKENS, Generator

    rows = nano_rows(lab.sizes.rows)

    def answered(**loading: Any) -> tuple[Any, float]:
        actor = Generator("nano", max_new_tokens=16, **loading)
        actor(rows.slice(0, 4))
        return lab.timed(lambda: actor(rows))

    expected = answered(device="cpu", dtype="fp32", threads=lab.threads)[0][ANSWER].to_pylist()
    for kind, dtype in lab.precisions():
        with lab.memory(f"generate {kind}"):
            found, seconds = answered(device=lab.device, dtype=dtype)
        differ = np.mean([one != other for one, other in zip(found[ANSWER].to_pylist(), expected, strict=True)])
        lab.at_most(f"generate {kind}: share of other answers", differ, {"fp32": 0.02, "tf32": 0.1, "bf16": 0.5}[kind])
        lab.rate(f"generate {kind}", sum(found[NEW_TOKENS].to_pylist()), seconds, "tokens")

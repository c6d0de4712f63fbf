"""Train the three nano models from nothing but the nano world: `raysift nano build --out DIR --seed 0`.

1. Tokenizer: bytes, plus the whole words of the question templates. No merges, so what a problem is made of stays
   single letters and digits, and any text survives a round trip.
2. Foundation: a Llama that has seen every skill among noise, the target skills rarely. It is meant to be mediocre.
3. Reward: starts as the foundation, then learns right against spoilt answers (Bradley-Terry), with a language-model
   loss on the right ones, so that it goes on learning the skills, and a small pointwise term, so that scores compare
   across questions (a threshold over a pool needs that; pairs alone do not give it).
4. Encoder: a small BERT, mean pooled, trained so that rows of one skill lie together (InfoNCE over a batch's skills).

Losses and scores are written as `training_log.json` beside each model. About twelve minutes on two idle cores; a
busy machine multiplies that. `engine/nano/weights/TRAINING.md` tells how the sizes were chosen.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysift.jobs.nano_build.encoder import train_encoder
from raysift.jobs.nano_build.foundation import train_foundation
from raysift.jobs.nano_build.reward import train_reward
from raysift.jobs.nano_build.training import save

__all__ = ["BuildConfig", "build"]


@dataclass(frozen=True)
class BuildConfig:
    """Sizes and lengths of the three trainings, as shipped."""

    foundation_steps: int = 2500
    """Optimizer steps of 64 rows; more of them and the targets are learnt too, leaving no room to improve."""
    foundation_target_shares: tuple[tuple[str, float], ...] = (
        ("sort_words", 0.012),
        ("reverse", 0.0015),
        ("last_letters", 0.002),
    )
    """Target skill and weight (0.05 for any other skill) in what the foundation reads. Letter skills borrow from their
    neighbours: at 0.012 `reverse` reached 0.94."""
    reward_steps: int = 4000
    """Steps of 40 pairs; two cores busy with nothing else need about five minutes."""
    encoder_steps: int = 250
    """Steps of 88 rows, four of each skill."""
    learning_rate: float = 3e-3
    """Peak of AdamW's rate for the embeddings; the matrices are trained by Muon, see `training.py`."""
    foundation_noise_rate: float = 0.15
    """Noise that the foundation reads, half the pool's; see TRAINING.md."""
    score_rows: int = 1408
    """Held-out rows that each model is scored on; 1408 is 64 of each skill."""


def build(
    out: Path,
    seed: int = 0,
    only: list[str] | None = None,
    log: Callable[[str], None] = print,
    config: BuildConfig = BuildConfig(),
) -> dict[str, dict[str, Any]]:
    """Train `only` the named models (default: all), write them below `out`, and return their scores by name."""
    import torch

    trainers = {"foundation": train_foundation, "reward": train_reward, "encoder": train_encoder}
    names = list(trainers) if only is None else only
    for name in names:
        if name not in trainers:
            raise ValueError(f"nano build: unknown model {name!r}; known: {', '.join(sorted(trainers))}")
    scores = {}
    for name in names:
        torch.manual_seed(seed)
        started = time.perf_counter()
        model, tokenizer, record = trainers[name](Path(out), seed, config, log)
        seconds = time.perf_counter() - started
        save(Path(out) / name, model, tokenizer, record, {"seed": seed, "seconds": round(seconds, 1)} | vars(config))
        scores[name] = record.scores
        log(f"{name}: {seconds:.0f} s, {json.dumps(record.scores)}")
    return scores

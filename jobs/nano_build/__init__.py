"""Train the three nano models from nothing but the nano world: `raysift nano build --out DIR --seed 0`.

1. Tokenizer: bytes, plus the whole words of the question templates. No merges, so the content of a problem stays
   single letters and digits, and any text survives a round trip.
2. Foundation: a Llama that has seen every skill among noise, the target skills rarely. It is meant to be mediocre.
3. Reward: starts as the foundation, then learns right against spoilt answers (Bradley-Terry). A language-model loss
   on the right ones keeps it learning the skills. A small pointwise term makes scores comparable across questions,
   which a threshold over a pool needs and pairs alone do not give.
4. Encoder: a small BERT, mean pooled, trained so that rows of one skill lie together (InfoNCE over a batch's skills).

Losses and scores are written as `training_log.json` beside each model. The build takes about twelve minutes on
two idle cores, and several times that on a busy machine. See `engine/nano/weights/TRAINING.md` for the choice of sizes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raysift.jobs.nano_build.config import BuildConfig
from raysift.jobs.nano_build.encoder import train_encoder
from raysift.jobs.nano_build.foundation import train_foundation
from raysift.jobs.nano_build.reward import train_reward
from raysift.jobs.nano_build.training import save

__all__ = ["BuildConfig", "build"]


def build(
    out: Path,
    seed: int = 0,
    only: list[str] | None = None,
    log: Callable[[str], None] = print,
    config: BuildConfig | None = None,
) -> dict[str, dict[str, Any]]:
    """Train `only` the named models (default: all), write them below `out`, and return their scores by name."""
    import torch

    config = config or BuildConfig()

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

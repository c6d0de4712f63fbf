"""Sizes and lengths of the three trainings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BuildConfig:
    """Sizes and lengths of the three trainings, as shipped."""

    foundation_steps: int = 2500
    """Optimizer steps of 64 rows; with more, it also learns the targets, which leaves no room to improve."""
    foundation_target_shares: tuple[tuple[str, float], ...] = (
        ("sort_words", 0.012),
        ("reverse", 0.0015),
        ("last_letters", 0.002),
    )
    """Weight of each target skill in the foundation's data; any other skill has 0.05. Letter skills gain from related
    ones: at 0.012 `reverse` reached 0.94."""
    reward_steps: int = 4000
    """Steps of 40 pairs; about five minutes on two idle cores."""
    encoder_steps: int = 250
    """Steps of 88 rows, four of each skill."""
    learning_rate: float = 3e-3
    """Peak learning rate of AdamW for the embeddings; Muon trains the matrices, see `training.py`."""
    foundation_noise_rate: float = 0.15
    """Share of noise in the foundation's data, half that of the pool; see TRAINING.md."""
    score_rows: int = 1408
    """Held-out rows that each model is scored on; 1408 is 64 of each skill."""

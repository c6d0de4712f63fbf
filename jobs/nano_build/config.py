"""Sizes and lengths of the three trainings."""

from __future__ import annotations

from dataclasses import dataclass


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

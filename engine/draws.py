"""Random draws that depend on seed and row id alone: never on order, shards or the number of workers."""

from __future__ import annotations

import hashlib

import numpy as np


def uniform_of(ids: np.ndarray, seed: int) -> np.ndarray:
    """Numbers in [0, 1) that depend on id and seed only (splitmix64 of both)."""
    with np.errstate(over="ignore"):
        state = ids.astype(np.int64).view(np.uint64) + _mix(np.array([seed], dtype=np.int64).view(np.uint64))
        bits = _mix(state)
    return (bits >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def seed_for(seed: int, purpose: str) -> int:
    """A separate seed for each purpose, so that two draws of one run are unrelated."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{purpose}".encode(), digest_size=7).digest(), "big")


def _mix(state: np.ndarray) -> np.ndarray:
    """One round of splitmix64 (Steele, Lea, Flood 2014)."""
    z = state + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))

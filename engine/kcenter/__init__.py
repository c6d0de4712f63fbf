"""Greedy k-center, exact and many times faster than one centre at a time (`picking.py`), in shards, with bounds and core-sets."""

from __future__ import annotations

from raysift.kcenter.picking import Centers, k_center

__all__ = ["Centers", "k_center"]

"""Greedy k-center: exact, sharded, many times faster than one centre at a time (`picking.py`); bounds, core-sets."""

from __future__ import annotations

from raysift.kcenter.picking import Centers, k_center

__all__ = ["Centers", "k_center"]

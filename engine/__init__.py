"""raysift: pick the rows of an instruction pool worth training on, and train on them.

    import raysift

    selection = raysift.longest("pool.jsonl", budget="5%", model="nano")
    selection.table()      # id, rank, score, source
    selection.dataset()    # a ray.data.Dataset of the selected rows

Every name below is loaded when it is first used: importing raysift starts nothing and needs neither ray nor torch.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from keyword import iskeyword
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "select": "raysift.jobs.api",
    "load_selection": "raysift.jobs.api",
    "Selection": "raysift.jobs.api",
    "Budget": "raysift.settings.budget",
    "parse_budget": "raysift.settings.budget",
    "RaysiftError": "raysift.errors",
    "ConfigError": "raysift.errors",
    "DataError": "raysift.errors",
    "ModelError": "raysift.errors",
    "StageError": "raysift.errors",
    "StaleRunError": "raysift.errors",
    "finetune": "raysift.jobs.api",
    "evaluate": "raysift.jobs.api",
    "explain": "raysift.jobs.explaining.explain",
    "rescore": "raysift.jobs.commands.rescore",
    "search": "raysift.jobs.commands.search",
    "win_rate": "raysift.jobs.pairwise.win_rate",
    "k_center": "raysift.kcenter",
}


def _methods() -> dict[str, str]:
    """Method names by function name; the function of `raise`, a Python keyword, is `raise_`."""
    from raysift.methods import METHODS

    return {name + "_" * iskeyword(name): name for name in METHODS}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "__all__":
        return ["__version__", *_HOMES, *_methods()]
    if not name.startswith("_") and (method := _methods().get(name)):
        from raysift.jobs.api import select

        return partial(select, method)
    raise AttributeError(f"module 'raysift' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__getattr__("__all__"))

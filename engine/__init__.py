"""raysift: pick the rows of an instruction pool worth training on, and train on them.

    import raysift

    selection = raysift.less("pool.jsonl", "examples.jsonl", budget="5%", model="nano")
    selection.to_pandas()      # id, rank, score, source, messages, meta
    raysift.finetune(selection, model="nano").adapter

Pools, targets and tests may be files, DataFrames, Arrow tables, datasets or dictionaries. `help(raysift.less)` tells a method's
arguments and main settings.

Every name below is loaded when it is first used: importing raysift starts nothing and needs neither ray nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # what the names below are, for type checkers and editors
    from raysift.errors import ClaimError as ClaimError
    from raysift.errors import ConfigError as ConfigError
    from raysift.errors import DataError as DataError
    from raysift.errors import ModelError as ModelError
    from raysift.errors import RaysiftError as RaysiftError
    from raysift.errors import StageError as StageError
    from raysift.errors import StaleRunError as StaleRunError
    from raysift.jobs.api.methods import PoolMethod, TargetMethod
    from raysift.jobs.api.methods import select as select
    from raysift.jobs.api.records import Run as Run
    from raysift.jobs.api.records import Selection as Selection
    from raysift.jobs.api.records import load_run as load_run
    from raysift.jobs.api.results import Check as Check
    from raysift.jobs.api.results import Comparison as Comparison
    from raysift.jobs.api.results import Evaluation as Evaluation
    from raysift.jobs.api.results import Search as Search
    from raysift.jobs.api.results import Training as Training
    from raysift.jobs.api.results import WinRate as WinRate
    from raysift.jobs.api.work import check as check
    from raysift.jobs.api.work import compare as compare
    from raysift.jobs.api.work import evaluate as evaluate
    from raysift.jobs.api.work import explain as explain
    from raysift.jobs.api.work import finetune as finetune
    from raysift.jobs.api.work import rescore as rescore
    from raysift.jobs.api.work import search as search
    from raysift.jobs.api.work import win_rate as win_rate
    from raysift.jobs.explaining.record import Explanation as Explanation
    from raysift.kcenter import k_center as k_center

    coverage: PoolMethod
    less: TargetMethod
    longest: PoolMethod
    mods: PoolMethod
    quality: PoolMethod
    raise_: TargetMethod
    rds: TargetMethod
    rose: TargetMethod
    uniform: PoolMethod

_HOMES = {
    "select": "raysift.jobs.api",
    "finetune": "raysift.jobs.api",
    "evaluate": "raysift.jobs.api",
    "compare": "raysift.jobs.api",
    "check": "raysift.jobs.api",
    "win_rate": "raysift.jobs.api",
    "rescore": "raysift.jobs.api",
    "search": "raysift.jobs.api",
    "explain": "raysift.jobs.api",
    "load_run": "raysift.jobs.api",
    "Run": "raysift.jobs.api",
    "Selection": "raysift.jobs.api",
    "Training": "raysift.jobs.api",
    "Evaluation": "raysift.jobs.api",
    "Comparison": "raysift.jobs.api",
    "Check": "raysift.jobs.api",
    "WinRate": "raysift.jobs.api",
    "Search": "raysift.jobs.api",
    "Explanation": "raysift.jobs.explaining.record",
    "k_center": "raysift.kcenter",
    "RaysiftError": "raysift.errors",
    "ConfigError": "raysift.errors",
    "DataError": "raysift.errors",
    "ModelError": "raysift.errors",
    "StageError": "raysift.errors",
    "StaleRunError": "raysift.errors",
    "ClaimError": "raysift.errors",
}
"""The public names and where they are; each method of `raysift.methods` is one more, with a function of its name."""


def _methods() -> dict[str, str]:
    """Method names by function name."""
    from raysift.methods import METHODS, function_name

    return {function_name(name): name for name in METHODS}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "__all__":
        return ["__version__", *_HOMES, *_methods()]
    if not name.startswith("_") and (method := _methods().get(name)):
        return import_module("raysift.jobs.api").method_function(method)
    raise AttributeError(f"module 'raysift' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__getattr__("__all__"))

"""The Python API: functions that take and return rows of any kind, inside a host's Ray session or in one of our own.

`inputs` is what may come in, `records` and `results` what comes out, `methods` and `work` the functions, `calls` what they share.
"""

from raysift.jobs.api.methods import method_function, select
from raysift.jobs.api.records import Run, Selection, load_run
from raysift.jobs.api.results import Check, Comparison, Evaluation, Search, Training, WinRate
from raysift.jobs.api.work import check, compare, evaluate, explain, finetune, rescore, search, win_rate

__all__ = [
    "Check",
    "Comparison",
    "Evaluation",
    "Run",
    "Search",
    "Selection",
    "Training",
    "WinRate",
    "check",
    "compare",
    "evaluate",
    "explain",
    "finetune",
    "load_run",
    "method_function",
    "rescore",
    "search",
    "select",
    "win_rate",
]

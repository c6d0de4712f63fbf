"""`select`, and a function for each method: `raysift.less`, `raysift.uniform`, ... (`raise` is a keyword: `raysift.raise_`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol

from raysift.errors import StaleRunError
from raysift.jobs.api.calls import RunName, begin, in_section
from raysift.jobs.api.inputs import Data, is_ray_dataset
from raysift.jobs.api.records import Run, Selection
from raysift.jobs.api.words import in_python, python_words
from raysift.methods import METHODS, find_method, function_name

ARGUMENTS = """\
pool: files, folders, globs or URIs; a pandas.DataFrame, pyarrow.Table, datasets.Dataset, ray.data.Dataset or list of
    dictionaries in any layout that a file may have; or a Selection.
{target}budget: "5%" of the pool, "2000" rows, or "1.5Mtok" tokens.
model: "nano", "smol", a Hugging Face id or a local folder.
seed: every random choice follows from it.
run: folder or URI for the results; the same call continues there. Without it: runs/{name}, or the next free runs/{name}-2
    if that holds a call with other settings.
reuse: runs whose finished stages count here, where settings and inputs are the same.
fresh: write under the next free name instead of an existing run.
pool_name: what identifies a ray.data.Dataset, to continue or reuse; all else is known by its content.
plan: a file that `raysift plan` wrote, to tell the drift; with stop_over=1.5, a run that will take more stops.
log: "rich", "plain", "quiet" or "json"; default: a live line in a notebook, a line for each stage in a script.
settings: the method's own settings by their names below, and the common ones: output_format="alpaca", train={{"epochs": 2}},
    train_on_selection=True, test=... What is written with a dot is a dictionary: match={{"subtasks": "mean"}}."""
TARGET = "target: what to select for, of the same kinds as the pool.\n"


def select(
    method: str,
    pool: Data,
    target: Data | None = None,
    *,
    budget: str | int = "5%",
    model: RunName = "nano",
    seed: int = 0,
    run: RunName | None = None,
    reuse: RunName | Sequence[RunName] = (),
    fresh: bool = False,
    pool_name: str | None = None,
    log: str | None = None,
    **settings: Any,
) -> Selection:
    """Select rows by the method of that name; `help(raysift.less)` tells the arguments, which all methods share."""
    with python_words():
        find_method(method)
    test, plan, stop_over = (settings.pop(name, None) for name in ("test", "plan", "stop_over"))
    common = {"method": method, "budget": budget, "model": model, "seed": seed, "reuse": reuse}
    given = {"pool": pool, "target": target, "test": test}
    own = in_section(method, settings) | common
    with begin(method, own, given, run, fresh, log, pool_name) as (opened, config):
        from raysift.jobs.commands.plan import follow_plan
        from raysift.jobs.recipes import Pool, run_method
        from raysift.jobs.report.writing import report_at_end
        from raysift.jobs.runs import checks

        checks.check_named(config, config.target, config.test)
        follow_plan(opened, config, None if plan is None else str(plan), stop_over)
        from_ray = is_ray_dataset(pool)
        if from_ray and pool_name is None and opened.manifest("ingest"):
            raise StaleRunError(
                f"ingest: {opened.name} was made from some dataset, and nothing tells whether it was this one. Name the data "
                "with pool_name='...' in both calls, or use another run."
            )
        manifest = run_method(opened, config, Pool(pool, pool_name) if from_ray else Pool())
        report_at_end(opened, config.report)
        selection = Selection(Run(opened), manifest)
        opened.console.line("done", repr(selection))
        return selection


class TargetMethod(Protocol):
    """A method that selects for a target."""

    def __call__(
        self,
        pool: Data,
        target: Data | None = None,
        *,
        budget: str | int = "5%",
        model: RunName = "nano",
        seed: int = 0,
        run: RunName | None = None,
        reuse: RunName | Sequence[RunName] = (),
        fresh: bool = False,
        pool_name: str | None = None,
        log: str | None = None,
        **settings: Any,
    ) -> Selection: ...


class PoolMethod(Protocol):
    """A method that needs nothing but a pool."""

    def __call__(
        self,
        pool: Data,
        *,
        budget: str | int = "5%",
        model: RunName = "nano",
        seed: int = 0,
        run: RunName | None = None,
        reuse: RunName | Sequence[RunName] = (),
        fresh: bool = False,
        pool_name: str | None = None,
        log: str | None = None,
        **settings: Any,
    ) -> Selection: ...


@cache
def method_function(name: str) -> Callable[..., Selection]:
    """The function of a method, with its help."""
    made = _for_target(name) if METHODS[name].takes_target else _for_pool(name)
    made.__name__ = made.__qualname__ = function_name(name)
    made.__module__ = "raysift"
    made.__doc__ = method_doc(name)
    return made


def method_doc(name: str) -> str:
    """Summary, needs, example, arguments and main settings, as `raysift METHOD --help` tells them."""
    from raysift.jobs.commands.method_help import main_settings

    method, function = METHODS[name], function_name(name)
    pairs = "pairs" if "pairs" in method.needs else "examples"
    target = f'"{pairs}.jsonl", ' if method.takes_target else ""
    example = f'raysift.{function}("pool.jsonl", {target}model="smol", budget="5%", run="runs/{name}")'
    main = main_settings(name)
    told = [line.replace(f"- {name}.", "- ", 1) for line in main]
    parts = [
        method.summary,
        f"Needs: {in_python(method.needs)}.",
        f"Example: {example}",
        f"Arguments:\n{ARGUMENTS.format(name=name, target=TARGET if method.takes_target else '')}",
        *(["Main settings, with their defaults for nano models:\n" + "\n".join(told)] if told else []),
        f"All settings: `raysift settings {name}`. Returns a Selection.",
    ]
    return "\n\n".join(parts)


def _for_target(name: str) -> Callable[..., Selection]:
    def method(
        pool: Data,
        target: Data | None = None,
        *,
        budget: str | int = "5%",
        model: RunName = "nano",
        seed: int = 0,
        run: RunName | None = None,
        reuse: RunName | Sequence[RunName] = (),
        fresh: bool = False,
        pool_name: str | None = None,
        log: str | None = None,
        **settings: Any,
    ) -> Selection:
        common: dict[str, Any] = {"budget": budget, "model": model, "seed": seed, "run": run, "reuse": reuse}
        return select(name, pool, target, fresh=fresh, pool_name=pool_name, log=log, **common, **settings)

    return method


def _for_pool(name: str) -> Callable[..., Selection]:
    def method(
        pool: Data,
        *,
        budget: str | int = "5%",
        model: RunName = "nano",
        seed: int = 0,
        run: RunName | None = None,
        reuse: RunName | Sequence[RunName] = (),
        fresh: bool = False,
        pool_name: str | None = None,
        log: str | None = None,
        **settings: Any,
    ) -> Selection:
        common: dict[str, Any] = {"budget": budget, "model": model, "seed": seed, "run": run, "reuse": reuse}
        return select(name, pool, fresh=fresh, pool_name=pool_name, log=log, **common, **settings)

    return method

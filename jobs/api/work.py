"""Training, testing and comparing from Python; the same work as the commands of these names."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from os import fspath
from typing import TYPE_CHECKING, Any

from raysift.config import lay_over, replayed
from raysift.errors import ConfigError
from raysift.jobs.api.calls import RunName, as_overrides, begin, in_section, nested, start, without_leftovers
from raysift.jobs.api.inputs import Data, Held, as_names, is_ray_dataset, read_given
from raysift.jobs.api.progress import console_for
from raysift.jobs.api.records import Run, Selection, load_run
from raysift.jobs.api.results import Check, Comparison, Evaluation, Search, Training, WinRate
from raysift.jobs.api.words import python_words
from raysift.jobs.runs.run import Run as OpenRun

if TYPE_CHECKING:
    from raysift.jobs.explaining.record import Explanation


def finetune(
    rows: Data | Selection,
    *,
    model: RunName = "nano",
    adapter: RunName | None = None,
    test: Data | None = None,
    seed: int = 0,
    run: RunName | None = None,
    reuse: RunName | Sequence[RunName] = (),
    fresh: bool = False,
    pool_name: str | None = None,
    log: str | None = None,
    **settings: Any,
) -> Training:
    """Fine-tune a model on a selection, or on rows of any kind that a pool may be; with `test`, score it afterwards.

    `settings` are the common ones: `train={"recipe": "less", "epochs": 2}`, `evaluate={...}`, `resources={...}`. `adapter` is
    one to start from. See `help(raysift.less)` for run, reuse, fresh, pool_name and log; without `run`: runs/finetune.
    """
    chosen = rows.manifest if isinstance(rows, Selection) else None
    common = {"model": model, "adapter": adapter, "seed": seed, "reuse": reuse}
    given = {"pool": rows, "test": test}
    with (
        begin("finetune", settings | common, given, run, fresh, log, pool_name) as (opened, config),
        opened.replayable(replayed(config)),
    ):
        from raysift.jobs import stages
        from raysift.jobs.runs import checks

        from_ray = is_ray_dataset(rows)
        if chosen is None and not from_ray:
            checks.check_pool(config)
        checks.check_training(config)
        if chosen is None:
            chosen = stages.ingest(opened, config, rows if from_ray else None, pool_name)
        trained = Training(opened, stages.finetune(opened, config, chosen))
        if config.test:
            stages.evaluate(opened, config, trained.manifest)
        opened.console.line("done", repr(trained))
        return trained


def evaluate(
    test: Data,
    *,
    model: RunName = "nano",
    adapter: RunName | Training | None = None,
    seed: int = 0,
    run: RunName | None = None,
    reuse: RunName | Sequence[RunName] = (),
    fresh: bool = False,
    log: str | None = None,
    **settings: Any,
) -> Evaluation:
    """Score a model, with or without an adapter, on examples with right answers: prompt, reference, and a metric.

    `settings` are the common ones: `evaluate={"limit": 100}`, `resources={...}`. Without `run`: runs/evaluate.
    """
    common = {"model": model, "adapter": adapter, "seed": seed, "reuse": reuse}
    with begin("evaluate", settings | common, {"test": test}, run, fresh, log) as (opened, config):
        from raysift.jobs import stages
        from raysift.jobs.runs import checks

        checks.check_evaluation(config)
        with opened.replayable(replayed(config)):
            found = Evaluation(opened, stages.evaluate(opened, config, None))
        opened.console.line("done", repr(found))
        return found


def compare(
    pool: Data | None = None,
    *,
    methods: Sequence[str] | Mapping[str, Mapping[str, Any]] = (),
    runs: Sequence[RunName] = (),
    target: Data | None = None,
    test: Data | None = None,
    budget: str | int | None = None,
    model: RunName | None = None,
    seed: int | None = None,
    seeds: int | None = None,
    run: RunName | None = None,
    log: str | None = None,
    **settings: Any,
) -> Comparison:
    """Compare methods on a pool, or finished runs: select, train and test each under one recipe and the same seeds.

    `methods` are names, or names with settings: `{"less": {}, "less-cosine": {"method": "less", ...}}`. `runs` are finished
    ones (or Selections); what is not given here is taken from the first. `uniform`, `longest` and the base model join by
    themselves. `settings` are the common ones and `compare={...}`. Without `run`: runs/compare, where the same call
    continues.
    """
    named = {"methods": _by_name(methods), "runs": [fspath(one) for one in runs], "seeds": seeds}
    section = lay_over(settings.pop("compare", {}), {key: value for key, value in named.items() if value})
    common = {"budget": budget, "model": model, "seed": seed}
    values = settings | {key: value for key, value in common.items() if value is not None} | {"compare": section}
    if is_ray_dataset(pool):
        raise ConfigError(
            "compare: a ray.data.Dataset cannot be the pool, since it is read once for each method. Write it first."
        )
    folder = "runs/compare" if run is None else run
    given = {"pool": pool, "target": target, "test": test}
    with begin("compare", values, given, folder, log=log) as (opened, config):
        from raysift.jobs.commands.compare import read_plan
        from raysift.jobs.compare import compare as comparing
        from raysift.jobs.report.writing import report_at_end

        here = {role: getattr(config, role) for role, one in given.items() if one is not None}
        plan, kept = read_plan([], nested(values) | here, [])
        found = Comparison(opened, comparing.compare(opened, plan, kept))
        report_at_end(opened, plan.shared.report)
        opened.console.line("done", repr(found))
        return found


def check(
    run: RunName,
    *,
    held_out: Data | None = None,
    quantiles: int | None = None,
    rows: int | None = None,
    seeds: int | None = None,
    taught: int | None = None,
    out: RunName | None = None,
    log: str | None = None,
    **settings: Any,
) -> Check:
    """Test whether rows that score higher teach more: train on bins of a finished run's ranked rows, measure on held-out ones.

    `run` is a folder, a Run or a Selection of any method; `held_out` are examples or pairs that its target does not hold, by
    default its test files. `taught` examples teach every model the target's format before it is measured a second time.
    `settings` may change what is trained and measured: `train={...}`, `evaluate={...}`, `check={...}`. Without `out`: the
    folder `check` of the run, where the same call continues.
    """
    from raysift.jobs.commands import check as checking

    name, console = fspath(run), console_for(log)
    named = {"quantiles": quantiles, "rows": rows, "seeds": seeds, "taught": taught}
    folder = checking.checking_name(name) if out is None else fspath(out)
    with python_words(), tempfile.TemporaryDirectory(prefix="raysift-") as work:
        given = None if held_out is None else read_given("held_out", held_out, work)
        held = [given] if isinstance(given, Held) else []
        files = [given.place(folder)] if isinstance(given, Held) else given
        section = lay_over(nested(settings).get("check") or {}, _without_none(named | {"held_out": files}))
        others = {key: value for key, value in nested(settings).items() if key != "check"}
        with without_leftovers(OpenRun(folder), held):
            found, opened = checking.check_run(
                *(name, {}, as_overrides(others | {"check": section})),
                None if out is None else folder,
                console,
                lambda: start(console),
            )
    done = Check(opened, found)
    console.line("done", repr(done))
    return done


def win_rate(
    test: Data,
    *,
    model: RunName = "nano",
    adapter: RunName | Training | None = None,
    answers: RunName | None = None,
    against_model: RunName | None = None,
    against_adapter: RunName | Training | None = None,
    against_answers: RunName | None = None,
    judge: RunName | None = None,
    seed: int = 0,
    run: RunName | None = None,
    reuse: RunName | Sequence[RunName] = (),
    fresh: bool = False,
    log: str | None = None,
    **settings: Any,
) -> WinRate:
    """Let a judge decide, question by question, whether this model or another side answers better.

    A side is a model, perhaps with an adapter, or `answers`: a run of `evaluate`, or a Parquet file. `settings` are the common
    ones and `win_rate={...}`. Without `run`: runs/win-rate.
    """
    against = {"model": against_model, "adapter": against_adapter, "answers": against_answers}
    named = {"answers": answers, "against": _without_none(against), "judge": _without_none({"model": judge})}
    section = lay_over(nested(settings).get("win_rate") or {}, _without_none(named))
    common = {"model": model, "adapter": adapter, "seed": seed, "reuse": reuse, "win_rate": section}
    with begin("win-rate", settings | common, {"test": test}, run, fresh, log) as (opened, config):
        from raysift.jobs.pairwise.win_rate import compare as judged
        from raysift.pairwise.settings import WinRateSettings

        found = WinRate(opened, judged(opened, config, config.win_rate or WinRateSettings()))
        opened.console.line("done", repr(found))
        return found


def search(
    pool: Data,
    target: Data | None = None,
    *,
    budget: str | int = "5%",
    model: RunName = "nano",
    seed: int = 0,
    run: RunName | None = None,
    reuse: RunName | Sequence[RunName] = (),
    fresh: bool = False,
    log: str | None = None,
    **settings: Any,
) -> Search:
    """Search policy settings of RAISE, as for `raysift.raise_`, plus a section such as `search={"trials": 8}`."""
    common = {"method": "raise", "budget": budget, "model": model, "seed": seed, "reuse": reuse}
    given = {"pool": pool, "target": target}
    if is_ray_dataset(pool):
        raise ConfigError("search: a ray.data.Dataset cannot be the pool here. Write it first, and name the files.")
    with begin("search", in_section("raise", settings) | common, given, run, fresh, log) as (opened, config):
        from raysift.jobs.commands.search import find_settings

        found = Search(opened, find_settings(opened, config))
        opened.console.line("done", repr(found))
        return found


def rescore(
    source: RunName,
    target: Data,
    *,
    budget: str | int | None = None,
    run: RunName | None = None,
    reuse: RunName | Sequence[RunName] = (),
    log: str | None = None,
    **settings: Any,
) -> Selection:
    """Select for other targets from the gradients that a run with `matching="store"` has kept, without a pass over the rows.

    `source` is that run. `settings` may change what the stored gradients do not depend on, such as `match={...}`. Without
    `run`: the source's name with `-rescored`.
    """
    from raysift.jobs.commands import rescore as rescoring

    name = rescoring.rescored_name(fspath(source)) if run is None else fspath(run)
    console, own = console_for(log), in_section(str(load_run(source).method), settings)
    with python_words(), tempfile.TemporaryDirectory(prefix="raysift-") as work:
        given = read_given("target", target, work)
        held = [given] if isinstance(given, Held) else []
        names = [given.place(name)] if isinstance(given, Held) else given
        with without_leftovers(OpenRun(name), held):
            opened, manifest = rescoring.rescore(
                *(fspath(source), names, name),
                budget=None if budget is None else str(budget),
                overrides=as_overrides(own),
                console=console,
                reuse=as_names(reuse) or [],
                start=lambda: start(console),
            )
    return Selection(Run(opened), manifest)


def explain(run: RunName, row_id: int | str, *, pairs: bool = True, text: bool = True) -> Explanation:
    """Why a run chose a row or not; `run` may also be a Selection or a Run, `row_id` the first digits of an id.

    For a run by gradient, `pairs` loads the model and tells which target pairs or examples pull most.
    """
    from raysift.jobs.explaining.explain import explain as look_up

    with python_words():
        return look_up(fspath(run), row_id, pairs=pairs, text=text)


def _by_name(methods: Sequence[str] | Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    if isinstance(methods, str):
        methods = [methods]
    return (
        {name: dict(one or {}) for name, one in methods.items()}
        if isinstance(methods, Mapping)
        else dict.fromkeys(methods)
    )


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}

"""`raysift win-rate`: two sides answer the same examples, a judge compares them (see raysift.pairwise.verdicts).

A side is a model, or the answers of a finished `raysift evaluate` (`sides.py`). See `judging.py` for judge and table.
"""

from __future__ import annotations

from raysift.config import CommonConfig, replayed
from raysift.errors import ConfigError
from raysift.evaluation.examples import read_examples, sample_examples
from raysift.jobs.cluster.session import own_session
from raysift.jobs.pairwise.judging import RESULT_FILE, count, judge
from raysift.jobs.pairwise.sides import AGAINST, OWN, Source, answer, answers_file
from raysift.jobs.runs import checks
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.models import computing, find_model
from raysift.jobs.runs.run import Run
from raysift.manifest import Manifest
from raysift.pairwise.rows import Question
from raysift.pairwise.settings import WinRateSettings
from raysift.pool.files import find_files, fingerprint_files
from raysift.records import ERROR, ID


def win_rate_command(config: CommonConfig, settings: WinRateSettings, console: Console) -> None:
    """Compare in a Ray session of its own, and show the table."""
    with own_session(console) as start:
        run = Run(config.run, console, config.reuse, start)
        manifest = compare(run, config, settings)
    show_win_rate(manifest, console)
    console.note(f"questions, answers and verdicts: {run.folder / RESULT_FILE}")


def compare(run: Run, config: CommonConfig, settings: WinRateSettings) -> Manifest:
    """Run all stages of a comparison; missing models, files or vLLM are reported before the first stage."""
    sources = _sources(config, settings)
    checks.check_run(run, config)
    for source in sources.values():
        if source.answers:
            answers_file(source.answers)
    for source in sources.values():
        if not source.answers:
            checks.check_models(config.model_copy(update={"model": source.model, "adapter": source.adapter}))
    checks.check_model(settings.judge_model)
    examples = sample_examples(read_examples(config.test, split=settings.split), settings.limit, config.seed)
    files = {"test": fingerprint_files(find_files(config.test))}
    identities = {name: source.identity(run, config) for name, source in sources.items()}
    judge_identity = computing(config, find_model(run, config, settings.judge_model))
    if settings.judge.backend == "vllm":
        from raysift.jobs.on_ray.generation import require_vllm

        require_vllm("judge", config.resources)
    with run.replayable(replayed(config.model_copy(update={"win_rate": settings}))):
        sides = {
            name: answer(run, config, settings, examples, name, source, files | identities[name])
            for name, source in sources.items()
        }
        questions = [Question(e, sides[OWN].answers[e.id], sides[AGAINST].answers[e.id]) for e in examples]
        inputs = files | {name: side.fingerprint for name, side in sides.items()} | {"judge": judge_identity}
        judged = judge(run, config, settings, questions, inputs)
        return count(run, settings, questions, judged, {name: source.title for name, source in sources.items()})


def show_win_rate(manifest: Manifest, console: Console) -> None:
    """Print the table of a finished comparison, its failures, and how many verdicts changed with the answers' order."""
    values = manifest.values
    total = values["total"]
    lines = [*(values["subsets"] or values["sets"])]
    lines += [total] if len(lines) > 1 else []
    compared = total["flipped"] is not None
    heads = [
        "set",
        "judged",
        "win/tie/lose",
        "in %",
        "failed",
        *(["flipped"] if compared else []),
        "score",
        "from",
        "to",
    ]
    rows = []
    for line in lines:
        ends = [line[end] for end in ("win", "tie", "lose")]
        shares = "/".join(f"{100 * count / line['n']:.0f}" for count in ends) if line["n"] else None
        counts = [line["n"], "/".join(map(str, ends)), shares, line["failed"]]
        counts += [line["flipped"]] if compared else []
        scores = [None if line[name] is None else round(line[name], 3) for name in ("score", "low", "high")]
        rows.append([line["name"], *counts, *scores])
    console.table("Win rate: score = 1 + (win - lose) / judged", heads, rows)
    console.note(f"win rate: of {values[OWN]} against {values[AGAINST]}; a score of 1 is even, 2 wins all, 0 loses all")
    if values["failed"]:
        first = values["failed"][0]
        console.note(f"win rate: {total['failed']} questions failed; the first ({first[ID]}): {first[ERROR]}")
    if total["flip_share"]:
        console.note(f"win rate: {total['flip_share']:.0%} of the verdicts changed with the order of the answers")


def _sources(config: CommonConfig, settings: WinRateSettings) -> dict[str, Source]:
    against = settings.against
    if not config.test:
        raise ConfigError("config: 'test' is missing. Name the examples: --test FILE...")
    if not (against.model or against.adapter or against.answers):
        raise ConfigError(
            "config: 'win_rate.against' is missing. Name the other side: --against-model, --against-adapter or "
            "--against-answers."
        )
    if settings.answers:
        # A replayed run names the default model even if none was given. Beside an adapter, it is the other side's base.
        is_base = against.adapter and not against.model
        named = config.model != CommonConfig.model_fields["model"].default and not is_base
        idle = "adapter" if config.adapter else "model" if named else None
        if idle:
            raise ConfigError(f"config: '{idle}' and 'win_rate.answers' are both set; a side is a model or answers.")
    return {
        OWN: Source(config.model, config.adapter, settings.answers),
        AGAINST: Source(against.model or config.model, against.adapter, against.answers),
    }

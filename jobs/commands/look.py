"""`raysift look POOL [--target FILE]`: what is in the files, and which methods can use them; no model, no Ray.

With `--model` as well, the model and Ray are used to say how far the target's pairs or examples agree. It is the only command
that prints row texts without being asked, since it is for looking at them. It can write a YAML of the settings that matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from raysift.config import CommonConfig, make_selector
from raysift.errors import ConfigError, RaysiftError
from raysift.evaluation.examples import read_examples, reference_answer
from raysift.jobs.runs.console import Console, printable
from raysift.methods import METHODS
from raysift.methods.gradient import GradientSelector
from raysift.pool.checks import REASONS
from raysift.pool.files import find_files
from raysift.pool.likeness import Sample, compare_samples, remarks, sample_of
from raysift.pool.pairs import read_pairs
from raysift.pool.survey import Survey, survey_pool
from raysift.reasons.agreement import BEFORE_WARMUP, tell_agreement
from raysift.records import Message
from raysift.storage import open_location

SHOWN_CHARACTERS = 160
TOP_SOURCES = 12


@dataclass(frozen=True)
class TargetLook:
    """What a target file holds, and the methods that can select for it."""

    file: str
    what: str
    methods: tuple[str, ...]
    language: Sample
    problem: str = ""


def look(
    config: CommonConfig,
    write: str | None,
    console: Console,
    settings_for: Callable[[str], CommonConfig] | None = None,
) -> None:
    """Print what is in the pool and the targets; `write` names the YAML file to make from it.

    `settings_for` gives the settings of a method; with it, the model computes how far a target's members agree.
    """
    if write and open_location(write).exists():
        raise ConfigError(f"look: '{write}' exists. Name another file with --write, or delete it.")
    found = survey_pool(find_files(config.pool), config.ingest)
    targets = [look_at_target(file) for file in config.target]
    show_survey(found, console)
    for target in targets:
        show_target(target, found, console)
    if settings_for is not None:
        show_agreement(targets, settings_for, console)
    methods = served_methods(targets)
    console.note(f"these files serve: {', '.join(methods)}")
    if write:
        open_location(write).write(starter_yaml(config, methods))
        console.note(f"settings written to {write}; raysift run {write} runs them")


def look_at_target(file: str) -> TargetLook:
    """Reads a target as pairs if its records have a chosen and a rejected answer, else as examples."""
    try:
        pairs = read_pairs(file)
        prompts = [_text(pair.prompt) for pair in pairs]
        problems = ", ".join(f"{count} {reason}" for reason, count in sorted(pairs.problems.items()))
        what = f"{pairs.pairs} preference pairs" + (f" ({problems} left out)" if problems else "")
        return TargetLook(file, what, ("rose",) if pairs.pairs else (), sample_of(prompts))
    except ConfigError:
        pass  # its records have no two answers
    except RaysiftError as error:
        return TargetLook(file, "", (), Sample(), str(error))
    try:
        examples = read_examples(file)
    except RaysiftError as error:
        return TargetLook(file, "", (), Sample(), str(error))
    texts = [_text(example.prompt) for example in examples]
    answered = sum(reference_answer(example) is not None for example in examples)
    what = f"{len(examples)} examples, {answered} with an answer"
    return TargetLook(file, what, ("less", "rds", "raise") if answered else (), sample_of(texts))


def served_methods(targets: Sequence[TargetLook]) -> list[str]:
    """Methods that can use these targets, best known first; without targets, the methods that need none."""
    by_target = [
        name for name in ("less", "rose", "rds", "raise") if targets and all(name in t.methods for t in targets)
    ]
    return by_target or ["mods", "quality", "coverage", "uniform", "longest"]


def show_survey(found: Survey, console: Console) -> None:
    """Print tables of what was read."""
    files = f"{found.files:,} file{'' if found.files == 1 else 's'}"
    layouts = ", ".join(f"{name} {count:,}" for name, count in found.layouts.most_common())
    console.note(f"{files}; layout: {layouts or 'none recognised'}")
    if not found.whole:
        console.note(f"only the first {found.rows:,} rows were read")
    lost = [[f"not kept: {reason}", count, REASONS.get(reason, "")] for reason, count in found.reasons.most_common()]
    rows = [["kept", found.kept, ""], ["exact duplicates", found.duplicates, ""], *lost, ["rows in", found.rows, ""]]
    console.table("Rows", ["", "rows", "why"], rows)
    for name, problem in found.bad_files.items():
        console.note(f"{name}: {problem}")
    shown = found.sources.most_common(TOP_SOURCES)
    others = found.sources.total() - sum(count for _, count in shown)
    if others:
        shown.append((f"{len(found.sources) - TOP_SOURCES} other sources", others))
    console.table("Sources", ["source", "rows"], shown)
    if found.characters:
        lengths = [[f"{share:.0%} of rows have at most", count] for share, count in found.characters.items()]
        console.table("Length in characters, prompt and answer", ["", "characters"], lengths)
        console.table(
            "Messages", ["in a row", "rows"], [[str(n), count] for n, count in sorted(found.turns.items())[:8]]
        )
    console.table("First rows", ["role", "text"], [[m["role"], _short(m["content"])] for s in found.samples for m in s])


def show_target(target: TargetLook, pool: Survey, console: Console) -> None:
    """Print what a target is, whether it is in the pool's language, and what is wrong with it."""
    if target.problem:
        console.note(f"target {target.file}: {target.problem}")
        return
    console.note(f"target {target.file}: {target.what}")
    for remark in remarks(target.file, compare_samples(pool.language, target.language)):
        console.note(remark)


def show_agreement(
    targets: Sequence[TargetLook], settings_for: Callable[[str], CommonConfig], console: Console
) -> None:
    """Load the model and say how far the gradients of the targets' pairs and examples agree, as the run of a method would."""
    from raysift.jobs.cluster.session import own_session
    from raysift.jobs.gradients.fresh_targets import fresh_agreement
    from raysift.jobs.gradients.targeting import read_targets, tell_drawn
    from raysift.jobs.runs.checks import check_models

    with own_session(console) as start:
        for name in (name for name, method in METHODS.items() if issubclass(method, GradientSelector)):
            files = [target.file for target in targets if name in target.methods]
            if not files:
                continue
            config = settings_for(name).model_copy(update={"target": files})
            selector: Any = make_selector(config)
            members = read_targets(config, selector)
            check_models(config)
            for note in filter(None, [*members.notes, tell_drawn(members, selector).removeprefix("targets: ")]):
                console.note(note)
            start()
            told = tell_agreement(fresh_agreement(config, selector, members, console.note))
            console.note(f"target {', '.join(files)}: {told} {BEFORE_WARMUP}")


def starter_yaml(config: CommonConfig, methods: Sequence[str]) -> str:
    """YAML of a run's settings to start from, each with a comment."""
    chosen: dict[str, tuple[Any, str]] = {
        "method": (methods[0], f"these files also serve: {', '.join(methods[1:])}" if methods[1:] else ""),
        "pool": (list(config.pool), "files, folders, globs or URIs"),
        "target": (list(config.target), "what the selection is to get better at"),
        "model": (config.model, "a folder, an id on the Hugging Face hub, smol, or nano (a toy for its own language)"),
        "budget": (config.budget, "a share (5%), rows (2000) or tokens (1.5Mtok)"),
        "run": (f"runs/{methods[0]}", "where results go"),
        "seed": (config.seed, "every random choice follows from it"),
        "output_format": (config.output_format, "messages, alpaca, sharegpt, original or parquet"),
        "train_on_selection": (False, "true: fine-tune the model on the selection"),
    }
    lines = []
    for name, (value, meaning) in chosen.items():
        if value == [] and name == "target":
            continue
        text = yaml.safe_dump(
            {"value": value}, allow_unicode=True, default_flow_style=isinstance(value, list), width=10**6
        )
        text = text.strip().removeprefix("{").removesuffix("}").replace("value", name, 1)
        lines.append(f"{text}  # {meaning}" if meaning else text)
    return "\n".join(lines) + "\n"


def _text(messages: Sequence[Message]) -> str:
    return " ".join(message.content for message in messages)


def _short(text: str) -> str:
    text = printable(" ".join(text.split()))
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."

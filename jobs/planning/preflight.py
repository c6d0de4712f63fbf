"""What would end a run early or make it worthless, found before it starts: problems end `raysift plan` with exit code 2."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from functools import singledispatch
from typing import Any, TypeVar

import numpy as np

from raysift.config import CommonConfig
from raysift.errors import ConfigError, RaysiftError
from raysift.evaluation.examples import read_examples, reference_answer
from raysift.jobs.gradients.given_checkpoints import find_checkpoints
from raysift.jobs.gradients.targeting import read_targets
from raysift.jobs.planning.facts import Facts
from raysift.jobs.planning.pool import PoolSample
from raysift.jobs.policy import stages as policy
from raysift.jobs.runs import checks
from raysift.jobs.runs.run import Run
from raysift.jobs.runs.samples import texts_of
from raysift.jobs.scoring import mods
from raysift.jobs.stages import row_budget
from raysift.methods import Selector
from raysift.methods.coverage import Coverage
from raysift.methods.gradient import GradientSelector
from raysift.methods.mods import Mods
from raysift.methods.quality import Quality
from raysift.methods.raise_policy import Raise
from raysift.methods.rds import Rds
from raysift.planning.cards import GIB
from raysift.planning.work import Work
from raysift.pool.likeness import compare_samples, evenly, remarks, sample_of
from raysift.records import MESSAGES, Pair
from raysift.settings.budget import parse_budget
from raysift.settings.memory import FEWEST_TOKENS, Need

T = TypeVar("T")

CUT_SHARE = 0.05
"""Of the rows; from here on a plan says that they are longer than the training reads."""
DISK_MARGIN = 1.2


class Problems:
    """Collects what is wrong, so that one call tells all of it."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def tried(self, check: Callable[[], T]) -> T | None:
        """The check's result; None if it found a problem."""
        try:
            return check()
        except RaysiftError as error:
            self.found.append(str(error))
            return None

    def refuse(self) -> None:
        """Raise if anything was found."""
        if self.found:
            lines = "\n".join(f"  {number}. {text}" for number, text in enumerate(self.found, 1))
            raise ConfigError(f"plan: this run would not work; {len(self.found)} to mend:\n{lines}")


@singledispatch
def members_of(selector: Selector, config: CommonConfig) -> list[Any]:
    """What the recipe checks before its first stage; returns the target's members, if it selects for one."""
    return []


@members_of.register
def _quality(selector: Quality, config: CommonConfig) -> list[Any]:
    checks.check_models(config, {"scorer": selector.config.scorer.scorer})
    return []


@members_of.register
def _coverage(selector: Coverage, config: CommonConfig) -> list[Any]:
    row_budget(config)
    checks.check_models(config, {"embedding": selector.config.embedding.model})
    return []


@members_of.register
def _mods(selector: Mods, config: CommonConfig) -> list[Any]:
    row_budget(config)
    settings = selector.config
    checks.check_models(config, {"scorer": settings.scorer.scorer, "embedding": settings.embedding.model})
    mods.check_room(config, settings)
    return []


@members_of.register(GradientSelector)
@members_of.register(Rds)
def _targeted(selector: Any, config: CommonConfig) -> list[Any]:
    if selector.picks_in_turn:
        row_budget(config)
    found = read_targets(config, selector)
    checks.check_models(config)
    if getattr(selector.config, "warmup_from", None):
        find_checkpoints(selector.config.warmup_from)
    return list(found.members)


@members_of.register
def _raise(selector: Raise, config: CommonConfig) -> list[Any]:
    row_budget(config)
    policy.check_input(config, selector.config)
    return [example for path in config.target for example in read_examples(path)]


def before(config: CommonConfig, selector: Selector, run: Run) -> list[Any]:
    """Check names and files, as the run would; returns the target's members, or raises with all that is wrong."""
    problems = Problems()
    problems.tried(lambda: checks.check_selection(run, config, False))
    members = problems.tried(lambda: members_of(selector, config))
    if not problems.found:
        problems.tried(lambda: template_works(config))
    problems.refuse()
    return members or []


def template_works(config: CommonConfig) -> None:
    """Raise if the model's tokenizer or its chat template cannot render a conversation."""
    from raysift.actors.language_model import load_tokenizer
    from raysift.templates import encode_conversation

    talk = [{"role": "user", "content": "What is 2 and 2?"}, {"role": "assistant", "content": "4"}]
    encode_conversation(load_tokenizer(config.model, config.trust_remote_code), talk, 10**6, config.train.template)


def after(
    facts: Facts,
    works: Sequence[Work],
    needs: Sequence[tuple[str, Need, float]],
    card: int | None,
    max_length: int,
) -> list[str]:
    """Notes on the pool and the target; raises with all that is wrong. `needs` holds stages on GPUs with the GPUs of each."""
    problems = Problems()
    problems.tried(lambda: parse_budget(facts.config.budget).rows_of(facts.pool.kept) if _in_rows(facts) else None)
    notes = lengths_notes(facts, max_length, problems.found)
    for stage, need, gpus in needs:
        room = int((card or 0) * (gpus if gpus < 1 else 1))
        least = need.bytes(FEWEST_TOKENS) - need.process
        if card and gpus and least > room * 0.95:
            problems.found.append(
                f"{stage}: a worker takes {least / GIB:.1f} GiB on its GPU with the shortest passes, and it has {room / GIB:.0f} "
                "GiB. Lower train.max_length, set train.quantization=4bit or resources.gradient_checkpointing=true, or take a "
                "larger GPU."
            )
    written = sum(work.written for work in works)
    if (free := free_bytes(facts.config.run)) is not None and written * DISK_MARGIN > free:
        problems.found.append(
            f"disk: the run writes about {written / GIB:.1f} GiB, and {free / GIB:.1f} GiB are free where "
            f"'{facts.config.run}' lies. Make room, or name another place with --run."
        )
    problems.refuse()
    return [*notes, *target_notes(facts.pool, facts.members)]


def _in_rows(facts: Facts) -> bool:
    return not parse_budget(facts.config.budget).counts_tokens


def lengths_notes(facts: Facts, max_length: int, problems: list[str]) -> list[str]:
    """What is said of rows that are longer than the model reads."""
    if not facts.lengths.size:
        return []
    longer = float(np.mean(facts.lengths > max_length))
    # The answer stands at the end: with fewer tokens than what precedes it, nothing of it is left.
    unseen = float(np.mean(facts.lengths - facts.labels >= max_length))
    if unseen > 0.5:
        problems.append(
            f"train.max_length={max_length}: {unseen:.0%} of the rows have no token of their answer left. Raise it."
        )
    if longer < CUT_SHARE:
        return []
    return [
        f"{longer:.0%} of the rows are longer than max_length={max_length} and are cut; {unseen:.0%} lose their whole answer"
    ]


def target_notes(pool: PoolSample, members: Sequence[Any]) -> list[str]:
    """Whether the target is in the pool's language, and whether its questions stand in the pool."""
    if not members:
        return []
    said = {
        message["content"].strip()
        for talk in pool.rows[MESSAGES].to_pylist()
        for message in talk
        if message["role"] == "user"
    }
    asked = [
        next((one.content.strip() for one in reversed(member.prompt) if one.role == "user"), "") for member in members
    ]
    found = sum(bool(text) and text in said for text in asked)
    notes = [f"{found} of {len(asked)} target questions stand in the sample of the pool itself"] if found else []
    texts = ["\n".join([*(one.content for one in member.prompt), _answer(member)]) for member in members]
    figures = compare_samples(sample_of(texts_of(pool.rows)), sample_of(evenly(texts)))
    return [*notes, *remarks("target", figures)]


def _answer(member: Any) -> str:
    return member.chosen if isinstance(member, Pair) else reference_answer(member) or ""


def free_bytes(run: str) -> int | None:
    """Free bytes of the disk on which a run's folder lies or will; None for an object store."""
    if "://" in run:
        return None
    place = os.path.abspath(run)
    while not os.path.exists(place):
        place = os.path.dirname(place)
    return shutil.disk_usage(place).free

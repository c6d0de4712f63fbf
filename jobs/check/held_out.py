"""What a check measures on, examples or preference pairs that the target does not hold, and what teaches the target's format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from raysift.config import CommonConfig, make_selector
from raysift.draws import seed_for, uniform_of
from raysift.errors import ConfigError, DataError
from raysift.evaluation.examples import read_examples, reference_answer
from raysift.evaluation.metrics import is_scored
from raysift.evaluation.target_answers import CONVERSATIONS, MOST_ANSWERS
from raysift.jobs.gradients.targeting import content_key, read_targets
from raysift.jobs.runs.checks import require_known_metrics
from raysift.methods.gradient import GradientSelector
from raysift.methods.rds import Rds
from raysift.pool.given_input import input_meta
from raysift.pool.pairs import read_pairs
from raysift.pool.row_ids import row_id
from raysift.records import ID, MESSAGES, META, Example, Message, Pair

Member = Pair | Example
FEWEST = 4
"""Fewer held-out examples measure nothing."""
TARGET, FILES = "target", "held-out files"


class HeldOut(NamedTuple):
    """Examples or pairs, apart from each other and from the target."""

    measured: list[Member]
    taught: list[Member]
    taught_from: str
    found: int
    """How many the files hold."""

    @property
    def are_pairs(self) -> bool:
        """Whether margins stand in for scores."""
        return isinstance(self.measured[0], Pair)

    @property
    def metric(self) -> str | None:
        """What is measured besides the loss; None where no example names a metric that is scored here."""
        if self.are_pairs:
            return "preference margin"
        return "score" if any(isinstance(one, Example) and is_scored(one.metric) for one in self.measured) else None


def read_held_out(config: CommonConfig, files: Sequence[str], taught: int) -> HeldOut:
    """Read and divide; refuses files of no use, and examples that the target holds too."""
    paths = list(files) or list(config.test)
    if not paths:
        raise ConfigError(
            "check: nothing is held out: the run has no 'test'. Name examples or pairs that are not in its target: "
            "--held-out FILE..."
        )
    target = target_members(config)
    members = _once(read_members(paths, _columns(config), config.evaluate.split))
    known = {answer_key(member) for member in target}
    if both := sum(answer_key(member) in known for member in members):
        raise DataError(
            f"check: {both} of {len(members)} held-out {_kind(members)} ({', '.join(paths)}) are in the run's target too, so "
            "their loss says what was selected for, not what was learned. Leave them out of one of the two."
        )
    _require_metrics(paths, members)
    own = [member for member in target if _answer(member)]
    source = own or members
    few = _drawn(source, min(taught, len(source)) if own else min(taught, len(members) // 4), config.seed, "taught")
    apart = members if own else [member for member in members if not any(member is one for one in few)]
    measured = _drawn(apart, config.evaluate.limit or MOST_ANSWERS, config.seed, "measured")
    if len(measured) < FEWEST:
        raise DataError(
            f"check: {len(members)} held-out {_kind(members)} with an answer, of which {len(measured)} can be measured on; "
            f"expected {FEWEST} or more. Name larger files: --held-out FILE..."
        )
    return HeldOut(measured, few, TARGET if own else FILES, len(members))


def read_members(paths: Sequence[str], columns: Mapping[str, str] | None, split: str | None) -> list[Member]:
    """The pairs or the examples of files, as far as they have an answer; refuses a mixture."""
    found: list[Member] = []
    for path in paths:
        try:
            found += list(read_pairs(path, columns))
        except ConfigError:  # its records are no pairs
            found += [example for example in read_examples(path, split=split) if _answer(example)]
    if len({type(member) for member in found}) > 1:
        raise ConfigError(
            f"check: {', '.join(paths)} hold examples and preference pairs, which have no figure in common. Name one kind."
        )
    return found


def target_members(config: CommonConfig) -> list[Member]:
    """The examples or pairs that the run selected for; none where it had no target."""
    selector = make_selector(config)
    if not config.target or not selector.takes_target:
        return []
    if isinstance(selector, GradientSelector | Rds):
        return list(read_targets(config, selector).members)
    return list(read_examples(config.target))


def conversations(members: Iterable[Member]) -> pa.Table:
    """Prompts with their right answers, as rows of a pool."""
    rows = [{ID: content_key(member), MESSAGES: _turns(member), META: input_meta(member)} for member in members]
    return pa.Table.from_pylist(rows, schema=CONVERSATIONS)


def answer_key(member: Member) -> int:
    """A number that depends on prompt and right answer alone, so that an example and a pair that say the same are the same."""
    return row_id([*member.prompt, Message("assistant", _answer(member))])


def keys_of(members: Iterable[Member]) -> list[int]:
    """What identifies them, in any order of files."""
    return sorted(map(content_key, members))


def _answer(member: Member) -> str:
    return member.chosen if isinstance(member, Pair) else reference_answer(member) or ""


def _turns(member: Member) -> list[dict[str, str]]:
    turns = [{"role": message.role, "content": message.content} for message in member.prompt]
    return [*turns, {"role": "assistant", "content": _answer(member)}]


def _once(members: Iterable[Member]) -> list[Member]:
    return list({content_key(member): member for member in members}.values())


def _drawn(members: Sequence[Member], count: int, seed: int, purpose: str) -> list[Member]:
    """So many of them, by seed and content, in the order of their content."""
    keys = np.array([content_key(member) for member in members], np.int64)
    first = np.lexsort((keys, uniform_of(keys, seed_for(seed, purpose))))[:count]
    return [members[place] for place in first[np.argsort(keys[first])]]


def _columns(config: CommonConfig) -> Mapping[str, str] | None:
    """The names that the target's pairs have for their fields; those held out have the same."""
    selector = make_selector(config)
    found: Any = getattr(selector.config, "targets", None)
    return getattr(found, "columns", None) or None


def _require_metrics(paths: Sequence[str], members: Sequence[Member]) -> None:
    metrics = {member.metric for member in members if isinstance(member, Example) and member.metric}
    require_known_metrics(", ".join(paths), metrics)


def _kind(members: Sequence[Member]) -> str:
    return "pairs" if members and isinstance(members[0], Pair) else "examples"


__all__ = ["HeldOut", "conversations", "keys_of", "read_held_out"]

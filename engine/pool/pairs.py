"""Preference files as a stream of pairs, with an account of every record that gives none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from raysift.errors import ConfigError, DataError
from raysift.pool.chunks import FilePlan, read_records
from raysift.pool.files import SourceFile, find_files
from raysift.pool.formats import preference, separator_hint
from raysift.pool.formats.layout import carried_of
from raysift.pool.formats.problem import RecordProblem
from raysift.pool.formats.turns import Turns
from raysift.pool.given_input import INPUT
from raysift.pool.parsing import renamed
from raysift.pool.row_ids import canonical_role
from raysift.records import Message, Pair

PAIR_PROBLEMS = {
    "identical": "Chosen and rejected are the same text: nothing is preferred.",
    "empty_chosen": "The chosen answer is empty or blank.",
    "empty_rejected": "The rejected answer is empty or blank.",
    "one_sided": "The chosen or the rejected answer is missing.",
    "no_prompt": "Nothing was asked before the answers.",
    "diverges_early": "The conversations differ before their last answer, or an answer is not the assistant's.",
    "unknown_role": "A message has a role that is none of the usual ones.",
    "wrong_type": "A field is missing or holds another type than expected.",
    "unsupported_content": "A content part is no text.",
    "not_json": "The line is not JSON.",
    "too_deep": "The record nests too deep.",
    "broken_utf8": "The text is not valid UTF-8.",
    "record_too_large": "The record is too large to be held in memory.",
}
MAX_PLACES = 20


class PairReader:
    """Iterates over the pairs of preference files; afterwards `pairs`, `problems` and `places` tell what was met.

    `pairs + sum(problems.values())` is the number of records read. `places` names the first records without a pair.
    """

    def __init__(
        self,
        files: list[SourceFile],
        columns: Mapping[str, str] | None = None,
        subtask: str | None = None,
        keep_identical: bool = False,
    ) -> None:
        self.files = files
        self.pairs = 0
        self.problems: Counter[str] = Counter()
        self.places: list[str] = []
        self._field_of = {column: field for field, column in (columns or {}).items()}
        self._subtask = subtask
        self._keep_identical = keep_identical

    def __iter__(self) -> Iterator[Pair]:
        self.pairs, self.problems, self.places = 0, Counter(), []
        for file in self.files:
            for place, record in read_records(file, self._check_columns):
                try:
                    if isinstance(record, RecordProblem):
                        raise record
                    pair = make_pair(renamed(record, self._field_of), self._subtask, self._keep_identical)
                except RecordProblem as problem:
                    self.problems[problem.reason] += 1
                    if len(self.places) < MAX_PLACES:
                        self.places.append(f"{file.name}, {place}: {problem.reason}")
                    continue
                self.pairs += 1
                yield pair

    def _check_columns(self, plan: FilePlan) -> None:
        if not plan.chunks:
            raise DataError(f"pairs: {plan.file.name} holds no records.")
        found = {self._field_of.get(column, column) for column in plan.columns}
        wanted = {"chosen", "rejected", *([self._subtask] if self._subtask else []), *self._field_of.values()}
        if missing := sorted(wanted - found):
            raise ConfigError(
                f"pairs: {plan.file.name} has no column for {missing} (found: {', '.join(sorted(plan.columns))}). "
                "Preference files need chosen and rejected; rose.targets.columns.chosen=NAME names another column."
                f"{separator_hint(plan.columns)}"
            )


def read_pairs(
    uri: str | Iterable[str],
    columns: Mapping[str, str] | None = None,
    subtask: str | None = None,
    keep_identical: bool = False,
) -> PairReader:
    """The preference pairs of files, folders or globs.

    `columns` maps a field (prompt, chosen, rejected, ...) to the column that holds it; `subtask` names the column that
    tells subtasks apart (none: the column `subtask` where there is one, else all pairs are of the subtask `all`).
    `keep_identical` gives pairs of equal answers too: official ROSE counts each as a zero in the mean of its subtask.
    """
    return PairReader(find_files([uri] if isinstance(uri, str) else list(uri)), columns, subtask, keep_identical)


def make_pair(record: dict[str, Any], subtask: str | None = None, keep_identical: bool = False) -> Pair:
    """The pair of a record; raises RecordProblem with one of PAIR_PROBLEMS."""
    prompt, chosen, rejected = preference.read_sides(record)
    if len(chosen) != 1 or len(rejected) != 1:
        raise RecordProblem("diverges_early", f"{len(chosen)} and {len(rejected)} turns after the common beginning")
    if any(canonical_role(turns[0][0]) != "assistant" for turns in (chosen, rejected)):
        raise RecordProblem("diverges_early", "an answer is not the assistant's")
    messages = _messages(prompt)
    if not any(message.content.strip() for message in messages if message.role != "assistant"):
        raise RecordProblem("no_prompt", "there is no message before the answers")
    better, worse = chosen[0][1], rejected[0][1]
    if not better.strip() or not worse.strip():
        raise RecordProblem("empty_rejected" if better.strip() else "empty_chosen", "an answer is blank")
    if better.strip() == worse.strip() and not keep_identical:
        raise RecordProblem("identical", "chosen and rejected are the same")
    name = record.get(subtask or "subtask")
    meta = carried_of(record, preference.LAYOUT.fields | {"rejected"})
    if record.get(INPUT):
        meta[INPUT] = record[INPUT]
    return Pair(messages, better, worse, subtask="all" if name is None else str(name), meta=meta)


def _messages(turns: Turns) -> tuple[Message, ...]:
    messages = []
    for role, content in turns:
        canonical = canonical_role(role)
        if canonical is None:
            raise RecordProblem("unknown_role", "a message has an unknown role")
        messages.append(Message(canonical, content))
    return tuple(messages)

"""Evaluation files: questions with checkable answers, in any kind of file that a pool may have.

    {"id": "gsm8k-00000", "task": "gsm8k", "subset": null, "split": "test", "prompt": "Henry and 3 of ...",
     "reference": "14", "choices": null, "answer_index": null, "metric": "numeric_match", "meta": {}}

`prompt` is a text or a list of messages and alone is required; `question` and `answer` are other names for it and for
`reference`. `task` defaults to the file's name, `id` to a hash of the content. A record of a pool's layout (Alpaca,
messages, ...) is an example whose reference is its last answer.

Only a test needs a `metric`. One that is scored here needs its `reference`, or its `choices` and `answer_index`; other metrics
are kept, and the evaluation counts them as not scored.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from raysift.errors import ConfigError, DataError
from raysift.evaluation.metrics import CHOICE_METRICS, METRICS
from raysift.pool.chunks import read_records
from raysift.pool.files import find_files
from raysift.pool.formats import LAYOUTS, preference
from raysift.pool.formats.layout import Layout, carried_of
from raysift.pool.formats.problem import RecordProblem
from raysift.pool.given_input import INPUT
from raysift.pool.json_text import load
from raysift.pool.row_ids import canonical_role, row_id
from raysift.records import ROLES, Example, Message

OTHER_NAMES = {"question": "prompt", "answer": "reference"}
OF_EXAMPLES = frozenset({"reference", "choices", "answer_index", "metric"})
TOLD = ("task", "subset", "split")
FIELDS = ("id", *TOLD, "prompt", "reference", "choices", "answer_index", "metric", "meta")

Record = Mapping[str, Any]


def read_examples(
    uri: str | Sequence[str], split: str | None = None, limit: int | None = None, scored: bool = False
) -> list[Example]:
    """All examples of files, folders or globs; of one `split`, at most `limit` of each task. `scored` asks for a metric."""
    try:
        return _read([uri] if isinstance(uri, str) else uri, split, limit, scored)
    except (ConfigError, DataError) as error:
        name, _, reason = str(error).partition(": ")
        if name == "examples":
            raise
        raise (
            type(error)(f"examples: {reason}") if type(error) is ConfigError else DataError(f"examples: {reason}")
        ) from error


def _read(sources: Sequence[str], split: str | None, limit: int | None, scored: bool) -> list[Example]:
    files = find_files(sources)
    found: list[Example] = []
    seen: dict[str, str] = {}
    alike: Counter[str] = Counter()
    splits: set[str] = set()
    for file in files:
        for place, record in read_records(file):
            where = f"{file.name}, {place}"
            if isinstance(record, RecordProblem):
                raise DataError(f"examples: {where}: {record.message} ({record.reason}).")
            example = parse_example(record, where, file.stem.split(".")[0])
            if scored and not example.metric:
                raise _missing(record, "metric", where)
            if not record.get("id"):
                alike[example.id] += 1
                again = alike[example.id]
                example = replace(example, id=f"{example.id}-{again}") if again > 1 else example
            if example.id in seen:
                raise DataError(
                    f"examples: {where}: id '{example.id}' stands already in {seen[example.id]}; ids must be unique."
                )
            seen[example.id] = where
            splits.add(example.split or "none")
            if split is None or example.split == split:
                found.append(example)
    if not found:
        detail = f"none of split '{split}' (found: {', '.join(sorted(splits))})" if seen else "no record"
        raise DataError(f"examples: {', '.join(file.name for file in files)}: {detail}.")
    return sample_examples(found, limit)


def sample_examples(examples: Sequence[Example], limit: int | None, seed: int = 0) -> list[Example]:
    """At most `limit` of each task, drawn by a hash of seed and id, in their order: files are sorted by subset."""
    if limit is None:
        return list(examples)
    by_task: dict[str, list[Example]] = {}
    for example in examples:
        by_task.setdefault(example.task, []).append(example)
    kept: set[str] = set()
    for members in by_task.values():
        kept.update(e.id for e in sorted(members, key=lambda e: (example_key(f"{seed}\x00{e.id}"), e.id))[:limit])
    return [example for example in examples if example.id in kept]


def example_key(text: str) -> int:
    """The int64 under which an example travels through an actor."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "big", signed=True)


def parse_example(record: Record, where: str, default_task: str = "all") -> Example:
    """A record as an Example; raises DataError with the place and the field, never with the text."""
    layout = _pool_layout(record)
    if layout:
        return _from_conversation(record, layout, where, default_task)
    record = {OTHER_NAMES.get(k, k) if OTHER_NAMES.get(k) not in record else k: value for k, value in record.items()}
    choices = _loaded(record.get("choices"))
    if choices is not None and not (isinstance(choices, list) and all(isinstance(choice, str) for choice in choices)):
        raise _wrong(where, "choices", choices, "a list of texts or null")
    answer_index = _loaded(record.get("answer_index"))
    if answer_index is not None and (not isinstance(answer_index, int) or isinstance(answer_index, bool)):
        raise _wrong(where, "answer_index", answer_index, "a whole number or null")
    prompt, reference = _prompt(record.get("prompt"), where), _text(record, "reference", where)
    example = Example(
        id=_text(record, "id", where) or _content_id(prompt, reference or ""),
        prompt=prompt,
        metric=_text(record, "metric", where) or "",
        reference=reference,
        choices=tuple(choices) if choices else None,
        answer_index=answer_index,
        meta=_meta(record.get("meta"), where),
        **_told(record, where, default_task),
    )
    require_answerable(example, where)
    return example


def _pool_layout(record: Record) -> Layout | None:
    """The layout of a pool's record; None for examples, and for preferences, which have two answers."""
    names = frozenset(record)
    if not names.isdisjoint(OF_EXAMPLES):
        return None
    fitting = next((layout for layout in LAYOUTS.values() if layout.fits(names)), None)
    return None if fitting is preference.LAYOUT else fitting


def _from_conversation(record: Record, layout: Layout, where: str, default_task: str) -> Example:
    try:
        turns, *more = layout.read(dict(record))
    except RecordProblem as problem:
        raise DataError(f"examples: {where}: {problem.message} ({problem.reason}).") from None
    if more:
        raise DataError(f"examples: {where}: the record holds {len(more) + 1} conversations, expected one.")
    messages = []
    for role, content in turns:
        known = canonical_role(role)
        if known is None:
            raise DataError(f"examples: {where}: a message's role is not one of {', '.join(ROLES)}.")
        messages.append(Message(known, content))
    answered = bool(messages) and messages[-1].role == "assistant"
    prompt = tuple(messages[:-1] if answered else messages)
    if not any(message.content.strip() for message in prompt):
        raise DataError(f"examples: {where}: nothing is asked before the answer.")
    reference = messages[-1].content if answered else None
    meta = carried_of(dict(record), layout.fields | {"id", *TOLD})
    if layout.inputs and (given := layout.inputs(dict(record))[0]):
        meta[INPUT] = given
    return Example(
        id=_text(record, "id", where) or _content_id(prompt, reference or ""),
        prompt=prompt,
        metric="",
        reference=reference,
        meta=meta,
        **_told(record, where, default_task),
    )


def _content_id(prompt: Sequence[Message], answer: str) -> str:
    return f"{row_id([*prompt, Message('assistant', answer)]) % 2**64:016x}"


def _told(record: Record, where: str, default_task: str) -> dict[str, Any]:
    told = {name: _text(record, name, where) for name in TOLD}
    return told | {"task": told["task"] or default_task}


def require_answerable(example: Example, where: str = "") -> None:
    """Refuse an example without what its metric compares with."""
    place = where or f"example '{example.id}'"
    if example.metric in CHOICE_METRICS:
        if not example.choices or len(example.choices) < 2:
            raise DataError(f"examples: {place}: field 'choices': metric '{example.metric}' needs two or more.")
        if example.answer_index is None or not 0 <= example.answer_index < len(example.choices):
            raise DataError(
                f"examples: {place}: field 'answer_index' is {example.answer_index}, expected 0 to "
                f"{len(example.choices) - 1} (there are {len(example.choices)} choices)."
            )
        if any(not choice.strip() for choice in example.choices):
            raise DataError(f"examples: {place}: field 'choices': a choice is empty; its probability has no meaning.")
    elif example.metric in METRICS and not (example.reference or "").strip():
        raise DataError(f"examples: {place}: field 'reference' is empty; metric '{example.metric}' compares with it.")


def reference_answer(example: Example) -> str | None:
    """The right answer in words: the right choice, or the reference; None where the example has neither."""
    if example.choices and example.answer_index is not None:
        return example.choices[example.answer_index]
    return example.reference


def _prompt(prompt: Any, where: str) -> tuple[Message, ...]:
    if isinstance(found := _loaded(prompt), list):  # also the text of a list, as a cell holds it
        prompt = found
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list) or not prompt:
        raise _wrong(where, "prompt", prompt, "a text or a list of messages")
    for message in prompt:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            raise _wrong(where, "prompt", message, "messages with a role and a content")
        if message.get("role") not in ROLES:
            raise DataError(f"examples: {where}: field 'prompt': a message's role is not one of {', '.join(ROLES)}.")
    if not any(message["content"].strip() for message in prompt):
        raise DataError(f"examples: {where}: field 'prompt' is empty.")
    return tuple(Message(message["role"], message["content"]) for message in prompt)


def _meta(meta: Any, where: str) -> dict[str, Any]:
    meta = _loaded(meta)  # Parquet and CSV files carry it as text
    if meta is not None and not isinstance(meta, Mapping):
        raise _wrong(where, "meta", meta, "an object or null")
    return dict(meta or {})


def _text(record: Record, name: str, where: str) -> str | None:
    """A field that holds text, if any; an empty cell of a CSV file is none."""
    value = record.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool) and name in ("id", "reference"):
        return str(value)
    if value is not None and not isinstance(value, str):
        raise _wrong(where, name, value, "a text")
    return value or None


def _loaded(value: Any) -> Any:
    """The value, or what a cell of a CSV file holds of it as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return load(value) if value else None
    except ValueError:
        return value


def _missing(record: Record, name: str, where: str) -> DataError:
    return DataError(f"examples: {where}: field '{name}' is missing or empty (found: {', '.join(sorted(record))}).")


def _wrong(where: str, name: str, found: Any, expected: str) -> DataError:
    return DataError(f"examples: {where}: field '{name}' is a {_kind(found)}, expected {expected}.")


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__

"""Evaluation files: questions with checkable answers, one record each, in JSONL, JSON or Parquet.

    {"id": "gsm8k-00000", "task": "gsm8k", "subset": null, "split": "test", "prompt": "Henry and 3 of ...",
     "reference": "14", "choices": null, "answer_index": null, "metric": "numeric_match", "meta": {}}

`prompt` is a text or a list of messages. `id`, `prompt` and `metric` are required; `task` defaults to the file's name.
A metric that is scored here needs its `reference`, or its `choices` and `answer_index`; other metrics are kept, and the
evaluation counts them as not scored.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raysift.errors import DataError
from raysift.evaluation.metrics import CHOICE_METRICS, METRICS
from raysift.records import ROLES, Example, Message
from raysift.storage import Location, open_location

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
FIELDS = ("id", "task", "subset", "split", "prompt", "reference", "choices", "answer_index", "metric", "meta")

Record = Mapping[str, Any]


def read_examples(
    uri: str | Location | Sequence[str | Location], split: str | None = None, limit: int | None = None
) -> list[Example]:
    """All examples of a file, a folder of files, or several of them; of one `split`, at most `limit` of each task."""
    places = [uri] if isinstance(uri, str | Location) else list(uri)
    files = [file for place in places for file in example_files(open_location(place))]
    found: list[Example] = []
    seen: dict[str, str] = {}
    splits: set[str] = set()
    for file in files:
        for where, record in _records(file):
            example = parse_example(record, where, default_task=file.name.split(".")[0])
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
        raise DataError(f"examples: {', '.join(map(str, files))}: {detail}.")
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


def parse_example(record: Any, where: str, default_task: str = "all") -> Example:
    """A record as an Example; raises DataError with the place and the field, never with the text."""
    if not isinstance(record, Mapping):
        raise DataError(f"examples: {where}: found a {_kind(record)}, expected an object with {', '.join(FIELDS)}.")
    choices = record.get("choices")
    if choices is not None and not (isinstance(choices, list) and all(isinstance(choice, str) for choice in choices)):
        raise _wrong(where, "choices", choices, "a list of texts or null")
    answer_index = record.get("answer_index")
    if answer_index is not None and (not isinstance(answer_index, int) or isinstance(answer_index, bool)):
        raise _wrong(where, "answer_index", answer_index, "a whole number or null")
    example = Example(
        id=_text(record, "id", where),
        task=_optional_text(record, "task", where) or default_task,
        prompt=_prompt(record.get("prompt"), where),
        metric=_text(record, "metric", where),
        subset=_optional_text(record, "subset", where),
        split=_optional_text(record, "split", where),
        reference=_optional_text(record, "reference", where),
        choices=tuple(choices) if choices else None,
        answer_index=answer_index,
        meta=_meta(record.get("meta"), where),
    )
    require_answerable(example, where)
    return example


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


def example_files(place: Location) -> list[Location]:
    """The file itself, or those of a folder that are read."""
    if not place.exists():
        raise DataError(f"examples: there is no '{place}'. Expected a file or a folder of {', '.join(SUFFIXES)}.")
    files = place.files() if place.is_folder() else [place]
    known = [file for file in files if file.name.endswith(SUFFIXES)]
    if not known:
        raise DataError(f"examples: '{place}' holds none of {', '.join(SUFFIXES)}.")
    return known


def _records(file: Location) -> Iterator[tuple[str, Any]]:
    """Each record with its place, as an error message names it."""
    if file.name.endswith(".parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(file.path, filesystem=file.fs)
        except pa.ArrowInvalid as error:
            raise DataError(f"examples: {file}: not a Parquet file ({error}).") from error
        for number, record in enumerate(table.to_pylist(), start=1):
            yield f"{file}, record {number}", record
        return
    data = file.read_bytes()
    try:
        text = (gzip.decompress(data) if file.name.endswith(".gz") else data).decode("utf-8-sig")
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise DataError(f"examples: {file}: not UTF-8 text ({type(error).__name__}: {error}).") from error
    if file.name.removesuffix(".gz").endswith(".jsonl"):
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield f"{file}, line {number}", _json(line, f"{file}, line {number}")
        return
    records = _json(text, str(file))
    if not isinstance(records, list):
        raise DataError(
            f"examples: {file}: found a {_kind(records)}, expected a list of records. One record a line is .jsonl."
        )
    for number, record in enumerate(records, start=1):
        yield f"{file}, record {number}", record


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"examples: {where}: not JSON ({error}).") from None


def _prompt(prompt: Any, where: str) -> tuple[Message, ...]:
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
    if isinstance(meta, str):  # Parquet files carry it as text
        meta = _json(meta, f"{where}, field 'meta'") if meta.strip() else None
    if meta is not None and not isinstance(meta, Mapping):
        raise _wrong(where, "meta", meta, "an object or null")
    return dict(meta or {})


def _text(record: Record, name: str, where: str) -> str:
    value = _optional_text(record, name, where)
    if not value:
        raise DataError(f"examples: {where}: field '{name}' is missing or empty (found: {', '.join(sorted(record))}).")
    return value


def _optional_text(record: Record, name: str, where: str) -> str | None:
    value = record.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool) and name in ("id", "reference"):
        return str(value)
    if value is not None and not isinstance(value, str):
        raise _wrong(where, name, value, "a text")
    return value


def _wrong(where: str, name: str, found: Any, expected: str) -> DataError:
    return DataError(f"examples: {where}: field '{name}' is a {_kind(found)}, expected {expected}.")


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__

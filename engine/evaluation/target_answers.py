"""The right answers of a target: the reference answer of an example, the chosen answer of a pair."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from raysift.errors import ConfigError
from raysift.evaluation.examples import example_key, read_examples, reference_answer
from raysift.pool.pairs import read_pairs
from raysift.records import ID, MESSAGE, MESSAGES, META, Message

MOST_ANSWERS = 256
"""More would slow every cell of a comparison and hardly change a mean loss."""

CONVERSATIONS = pa.schema([(ID, pa.int64()), (MESSAGES, pa.list_(MESSAGE)), (META, pa.string())])


def target_conversations(paths: Sequence[str]) -> pa.Table:
    """Prompts with their right answers, at most MOST_ANSWERS of them, drawn by content."""
    found = [conversation for path in paths for conversation in _read(path)]
    keyed = {example_key("\x00".join(f"{m.role}\x01{m.content}" for m in one)): one for one in found}
    rows = [
        {ID: key, MESSAGES: [{"role": m.role, "content": m.content} for m in one], META: "{}"}
        for key, one in sorted(keyed.items())[:MOST_ANSWERS]
    ]
    return pa.Table.from_pylist(rows, schema=CONVERSATIONS)


def _read(path: str) -> list[tuple[Message, ...]]:
    try:
        return [(*pair.prompt, Message("assistant", pair.chosen)) for pair in read_pairs(path)]
    except ConfigError:  # its records are no pairs
        pass
    answered = [(example.prompt, reference_answer(example)) for example in read_examples(path)]
    return [(*prompt, Message("assistant", answer)) for prompt, answer in answered if answer]

"""Rows, pairs and examples: the one place that spells column names and Arrow schemas.

A *row* is a conversation of the pool. A *pair* is a preference: one prompt, a better and a worse answer. An *example*
is a question of an evaluation set. All three are keyed by text, never by position.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

ID = "id"
SOURCE = "source"
MESSAGES = "messages"
META = "meta"
RAW = "raw"
FILE = "file"
TOOLS = "tools"
POSITION = "position"
SCORE = "score"
RANK = "rank"
ORDER = "order"
FATE = "fate"
RADIUS = "radius"
ABOVE_NULL = "above_null"
ERROR = "error"
REASON = "reason"
TOKENS = "n_tokens"
RESPONSE_TOKENS = "n_response_tokens"
RESPONSE_CHARS = "n_response_chars"

ROLES = ("system", "user", "assistant", "tool")

MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])

ROWS = pa.schema(
    [
        pa.field(ID, pa.int64(), nullable=False),
        pa.field(SOURCE, pa.string(), nullable=False),
        pa.field(MESSAGES, pa.list_(MESSAGE), nullable=False),
        pa.field(META, pa.string()),  # JSON text of every column that is not part of the conversation
        pa.field(RAW, pa.string()),  # the record as it stood in a text file; null where messages + meta hold everything
    ]
)

KEPT_ROWS = ROWS.append(pa.field(FILE, pa.string(), nullable=False)).append(
    pa.field(POSITION, pa.int64(), nullable=False)  # as in REJECTED
)
"""Rows as ingest keeps them: with their place in the pool."""

REJECTED = pa.schema(
    [
        pa.field(ID, pa.int64()),  # null if the record never became a conversation
        pa.field(SOURCE, pa.string()),
        pa.field(FILE, pa.string(), nullable=False),
        pa.field(POSITION, pa.int64(), nullable=False),  # line in JSONL, else the record's number, both from 1
        pa.field(REASON, pa.string(), nullable=False),  # one of raysift.pool.checks.REASONS
        pa.field("message", pa.string()),
        pa.field(RAW, pa.string()),
    ]
)


ChatMessage = dict[str, str]
"""A turn as chat templates and tables hold it, with the keys `role` and `content`."""


@dataclass(frozen=True)
class Message:
    """One turn; `role` is one of ROLES."""

    role: str
    content: str


@dataclass(frozen=True)
class Pair:
    """A preference: after `prompt`, `chosen` is better than `rejected`."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    subtask: str = "all"
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Example:
    """A question with a checkable answer; `metric` names the check (see raysift.evaluation.metrics.METRICS)."""

    id: str
    task: str
    prompt: tuple[Message, ...]
    metric: str
    subset: str | None = None
    split: str | None = None
    reference: str | None = None
    choices: tuple[str, ...] | None = None
    answer_index: int | None = None
    meta: dict[str, Any] = field(default_factory=dict)

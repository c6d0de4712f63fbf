"""Which conversations are rows: the settings of ingest, and checks over whole batches at once.

A record is *failed* when it could not be understood and *rejected* when it was understood and is of no use. Both are
stored with one of REASONS; nothing is dropped in silence.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from raysift.records import ROLES
from raysift.settings.base import Settings

REASONS = {
    "not_json": "The line is not JSON.",
    "broken_utf8": "The text is not valid UTF-8 or holds half a surrogate pair.",
    "wrong_type": "A field is missing or holds another type than its layout says.",
    "record_too_large": "The record is too large to be held in memory.",
    "too_deep": "Lists and objects lie in one another more than 500 deep.",
    "one_sided": "A preference without its chosen or its rejected answer.",
    "unsupported_content": "A content part is no text (an image, audio).",
    "unknown_role": "A message has a role that is none of system, user, assistant, tool, nor a usual name of one.",
    "no_messages": "The conversation has no message.",
    "no_assistant": "Nobody answers: no message of the assistant.",
    "ends_with_user": "The conversation does not end with a message of the assistant.",
    "empty_response": "The last answer is empty or blank.",
    "empty_prompt": "Nothing was asked: no message with text before the last answer.",
    "too_long": "The conversation has more characters than `max_chars`.",
    "too_short": "The last answer has fewer characters than `min_response_chars`.",
    "duplicate": "The same conversation stands earlier in the pool.",
}
FAILURES = frozenset({"not_json", "broken_utf8", "wrong_type", "record_too_large", "too_deep", "one_sided"})

ASSISTANT = ROLES.index("assistant")


class IngestConfig(Settings):
    """How a pool becomes rows."""

    format: str = "auto"
    """Layout of the records (see raysift.pool.formats.LAYOUTS); `auto` recognises it, file by file."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Field of the layout to column of the files, where names differ: `{"instruction": "question"}`."""
    source: str | None = None
    """Column that names a row's source, or the name itself; none: the column `source`, else the file's name."""
    on_bad_file: Literal["stop", "quarantine"] = "stop"
    """A file that cannot be read ends the run; `quarantine` leaves it out whole, and the report names it."""
    max_failed_share: float = Field(0.5, ge=0, le=1)
    """A file of which a larger share of records cannot be understood counts as one that cannot be read."""
    trailing_user: Literal["reject", "trim"] = "reject"
    """A conversation that does not end with an answer: reject it, or cut what comes after the last answer."""
    allow_empty_response: bool = False
    """Keep rows whose last answer is blank. They have nothing to learn from, and some scores are undefined for them."""
    min_response_chars: int = Field(0, ge=0)
    """Fewest characters of the last answer; 0 sets no bound."""
    max_chars: int | None = Field(200_000, ge=1)
    """Most characters of a conversation, some 50,000 tokens by default; none sets no bound."""
    keep_raw: bool = True
    """Keep each record's own text beside the row, so that a selected row can be written back byte for byte. Without it
    the rows take about half the space, and `original` output is rebuilt from the messages."""


def trim_trailing(
    codes: npt.NDArray[np.int8], offsets: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Which messages stay when each conversation is cut after its last answer, and the offsets then.

    A conversation without any answer stays as it is, to be rejected for that.
    """
    last = _last_answer(codes, offsets)
    ends = np.where(last >= 0, last + 1, offsets[1:])
    message = np.arange(len(codes))
    row = np.searchsorted(offsets, message, side="right") - 1
    keep = message < ends[row]
    return keep, np.concatenate([[0], np.cumsum(ends - offsets[:-1])])


def find_reasons(
    codes: npt.NDArray[np.int8], contents: pa.Array, offsets: npt.NDArray[np.int64], config: IngestConfig
) -> npt.NDArray[np.object_]:
    """The first reason that speaks against each conversation, or None.

    `codes` are positions in records.ROLES, -1 for an unknown role; conversation i holds the messages offsets[i] to
    offsets[i + 1].
    """
    starts, ends = offsets[:-1], offsets[1:]
    chars = pc.utf8_length(contents).to_numpy(zero_copy_only=False).astype(np.int64)
    blank = (chars == 0) | pc.utf8_is_space(contents).to_numpy(zero_copy_only=False)
    answer = _last_answer(codes, offsets)
    place = np.maximum(answer, 0)
    asked = np.concatenate([[0], np.cumsum((codes != ASSISTANT) & ~blank)])
    answer_chars = chars[place] if len(chars) else np.zeros(len(starts), np.int64)
    answer_blank = blank[place] if len(blank) else np.ones(len(starts), bool)
    against: list[tuple[str, npt.NDArray[np.bool_]]] = [
        ("no_messages", ends == starts),
        ("unknown_role", _sum_rows(codes < 0, offsets) > 0),
        ("no_assistant", answer < 0),
        ("ends_with_user", answer != ends - 1),
        ("empty_response", answer_blank & (not config.allow_empty_response)),
        ("empty_prompt", asked[place] == asked[starts]),
        ("too_short", answer_chars < config.min_response_chars),
    ]
    if config.max_chars is not None:
        against.append(("too_long", _sum_rows(chars, offsets) > config.max_chars))
    reasons: npt.NDArray[np.object_] = np.full(len(starts), None, object)
    for reason, holds in reversed(against):
        reasons[holds] = reason
    return reasons


def _last_answer(codes: npt.NDArray[np.int8], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Index of each conversation's last message of the assistant, -1 where there is none."""
    if not len(codes):
        return np.full(len(offsets) - 1, -1)
    latest = np.maximum.accumulate(np.where(codes == ASSISTANT, np.arange(len(codes)), -1))
    found = latest[np.maximum(offsets[1:] - 1, 0)]
    return np.where((found >= offsets[:-1]) & (offsets[1:] > offsets[:-1]), found, -1)


def _sum_rows(values: npt.NDArray[np.generic], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    total = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    sums: npt.NDArray[np.int64] = total[offsets[1:]] - total[offsets[:-1]]
    return sums

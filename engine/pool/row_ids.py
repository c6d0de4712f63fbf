"""Row ids: a 64-bit hash of what was said, so that one conversation has one id in every format, file and run.

A message is spelt `role:n:content`, where n is the length of the content in UTF-8 bytes: with the length in front no
content can imitate a boundary. The id is the first 8 bytes of BLAKE2b over the messages' spellings in order, read as a
little-endian signed integer. Nothing is trimmed or folded: a conversation that differs in one space is another one.

Two different conversations share an id with a probability of about n^2 / 2^65: 3 in a million for 10 million rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raysift.records import Message

ROLE_NAMES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "bing": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "tool_response": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
    "ipython": "tool",
}


def canonical_role(name: str) -> str | None:
    """One of records.ROLES for any usual name of it (`human`, `GPT`, `observation`), or None for a strange one."""
    return ROLE_NAMES.get(name.strip().lower())


def row_id(messages: Iterable[Message]) -> int:
    """The id of a conversation whose roles are canonical."""
    spelling = blake2b(digest_size=8)
    for message in messages:
        content = message.content.encode("utf-8")
        spelling.update(f"{message.role}:{len(content)}:".encode() + content)
    return int.from_bytes(spelling.digest(), "little", signed=True)


def row_ids(
    roles: pa.Array, contents: pa.Array, offsets: npt.NDArray[np.int64] | Sequence[int]
) -> npt.NDArray[np.int64]:
    """`row_id` of many conversations at once; conversation i holds the messages offsets[i] to offsets[i + 1]."""
    lengths = pc.cast(pc.binary_length(contents), pa.large_string())
    spelt = pc.binary_join_element_wise(
        pc.cast(roles, pa.large_string()),
        lengths,
        pc.cast(contents, pa.large_string()),
        pa.scalar(":", pa.large_string()),
    )
    _, starts, data = spelt.buffers()
    # Messages of one conversation lie side by side, so the bytes to hash are one slice of the buffer.
    ends = np.frombuffer(starts, np.int64, len(spelt) + 1 + spelt.offset)[spelt.offset :]
    bounds = ends[np.asarray(offsets)].tolist()
    text = memoryview(data) if data is not None else memoryview(b"")
    digests = [blake2b(text[start:end], digest_size=8).digest() for start, end in pairwise(bounds)]
    return np.frombuffer(b"".join(digests), "<i8").astype(np.int64)

"""How many tokens a conversation can have at most, known from its bytes alone: a token stands for one byte at least.

    tokens <= bytes of all contents + AROUND x messages + PREAMBLE

The last two are for what chat templates write: marks around each message, and a system prompt before the first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysift.records import Example, Pair

LONGEST = "most_tokens"
"""Name of the bound among the values of a stage."""
AROUND, PREAMBLE = 16, 256


def most_tokens(messages: pa.ListArray | pa.ChunkedArray) -> int:
    """The bound for the longest of these conversations; 0 if there are none."""
    most = 0
    for part in messages.chunks if isinstance(messages, pa.ChunkedArray) else [messages]:
        if len(part):
            sizes = pc.binary_length(pc.struct_field(part.flatten(), "content")).fill_null(0).to_numpy() + AROUND
            ends = np.cumsum(part.value_lengths().fill_null(0).to_numpy())
            sums = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])[np.concatenate([[0], ends])]
            most = max(most, int(np.diff(sums).max()) + PREAMBLE)
    return most


def most_tokens_of(target: Pair | Example) -> int:
    """The bound for a target's prompt with its longest answer."""
    if isinstance(target, Pair):
        answers: Sequence[str] = (target.chosen, target.rejected)
    else:
        answers = (target.reference or "", *(target.choices or ()))
    sizes = [len(message.content.encode()) + AROUND for message in target.prompt]
    return sum(sizes) + max(len(answer.encode()) for answer in answers) + AROUND + PREAMBLE

"""Texts that are the same but for case, spaces, quotes and stops: duplicates that an exact comparison leaves.

Other signs stay: `1 + 1` and `1 - 1` are different questions.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc


def plain_texts(texts: pa.Array) -> pa.Array:
    """Each text in lower case, every run of spaces, quotes and stops as one space."""
    spaced = pc.replace_substring_regex(
        pc.utf8_lower(texts), r"""[\s\pZ.,;:!?"'\x{201c}\x{201d}\x{2018}\x{2019}\x{2026}]+""", " "
    )
    return pc.utf8_trim_whitespace(spaced)


def text_keys(texts: pa.Array) -> list[bytes | None]:
    """A short hash of each plain text; None where nothing is left of it, since then nothing tells texts apart."""
    found = plain_texts(texts).to_pylist()
    return [hashlib.blake2b(text.encode(), digest_size=8).digest() if text else None for text in found]


def twins_of(keys: Iterable[bytes | None], ids: Iterable[int]) -> dict[int, int]:
    """For each row whose key occurred before: its id, and the id of the first row with that key."""
    first: dict[bytes, int] = {}
    found: dict[int, int] = defaultdict(int)
    for key, row_id in zip(keys, ids, strict=True):
        if key is not None and first.setdefault(key, row_id) != row_id:
            found[row_id] = first[key]
    return dict(found)

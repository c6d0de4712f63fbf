"""Row ids: the same number from one conversation or from columns, and no two spellings that collide."""

import numpy as np
import pyarrow as pa
import pytest

from raysift.pool.row_ids import canonical_role, row_id, row_ids
from raysift.records import ROLES, Message


def _columns(conversations):
    roles = pa.array([m.role for c in conversations for m in c], pa.string())
    contents = pa.array([m.content for c in conversations for m in c], pa.string())
    return roles, contents, np.cumsum([0] + [len(c) for c in conversations])


CONVERSATIONS = [
    [Message("user", "Hi"), Message("assistant", "Hello")],
    [Message("system", ""), Message("user", "日本語 ünï \U0001f600"), Message("assistant", "a:b:3:c")],
    [],
    [Message("user", "x\x00y\n"), Message("assistant", " ")],
]


def test_columns_give_the_ids_of_single_conversations():
    assert row_ids(*_columns(CONVERSATIONS)).tolist() == [row_id(c) for c in CONVERSATIONS]


def test_ids_do_not_change_with_the_offset_or_width_of_the_arrays():
    roles, contents, offsets = _columns(CONVERSATIONS)
    shifted = (pa.concat_arrays([roles[:1], roles])[1:], pa.concat_arrays([contents[:1], contents])[1:])
    wide = (roles.cast(pa.large_string()), contents.cast(pa.large_string()))
    assert row_ids(*shifted, offsets).tolist() == row_ids(*wide, offsets).tolist() == [row_id(c) for c in CONVERSATIONS]


def test_ids_are_stable_over_versions():
    # Computed once with hashlib.blake2b(b"user:2:Hiassistant:5:Hello", digest_size=8), little-endian, signed.
    import hashlib

    digest = hashlib.blake2b(b"user:2:Hiassistant:5:Hello", digest_size=8).digest()
    assert row_id(CONVERSATIONS[0]) == int.from_bytes(digest, "little", signed=True) == -4268144260342349066


@pytest.mark.parametrize(
    "other",
    [
        [Message("user", "Hi"), Message("assistant", "Hello ")],
        [Message("assistant", "Hi"), Message("user", "Hello")],
        [Message("user", "Hiassistant:5:Hello")],
        [Message("user", "Hi"), Message("assistant", ""), Message("assistant", "Hello")],
        [Message("user", "H"), Message("assistant", "iHello")],
    ],
)
def test_conversations_that_differ_in_any_way_have_other_ids(other):
    assert row_id(other) != row_id(CONVERSATIONS[0])


def test_usual_role_names_become_one_of_four():
    assert [canonical_role(name) for name in ("human", "GPT", "observation", "function_call", " System ")] == [
        "user", "assistant", "tool", "assistant", "system",
    ]  # fmt: skip
    assert canonical_role("narrator") is None
    assert all(canonical_role(role) == role for role in ROLES)

"""Chat messages: `{"messages": [{"role": "user", "content": ...}, ...]}`, content as text or as a list of parts.

A KTO record (messages and a boolean `label`) is a conversation whose label is carried through in meta.
"""

from __future__ import annotations

from raysift.pool.formats.layout import Layout, Record, needs
from raysift.pool.formats.turns import Turns, read_turns, with_system


def read(record: Record) -> list[Turns]:
    return [with_system(record.get("system"), read_turns(record.get("messages"), "messages"))]


LAYOUT = Layout(name="messages", needs=needs("messages"), fields=frozenset({"messages", "system"}), read=read)

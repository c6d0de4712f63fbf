"""What LLaMA-Factory must be told of a file of records: which columns hold what, and how roles are spelt.

Records that came from somebody else are described by what they hold. Where LLaMA-Factory cannot read them (content that is
no text, two spellings of one role, a layout that it does not know) there is no entry: a wrong one would train on the wrong text.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import orjson

from raysift.pool.row_ids import canonical_role

Entry = dict[str, Any]

ALPACA = {"prompt": "instruction", "query": "input", "response": "output", "system": "system", "history": "history"}
PROMPTS = ({"prompt": "prompt", "response": "completion"}, {"prompt": "prompt", "response": "response"})
TURNS = ("messages", "conversations", "conversation")
SPELLINGS = (("role", "content"), ("from", "value"))
TAG_OF = {"user": "user_tag", "assistant": "assistant_tag", "system": "system_tag", "tool": "observation_tag"}
CALLS = ("function_call", "tool_call")
OUR_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
    "observation_tag": "tool",
}


class RecordShape:
    """Looks at records one by one; `entry` is what they have in common."""

    def __init__(self) -> None:
        self._fields: dict[str, set[str]] = defaultdict(set)
        self._turns: set[tuple[str, str]] = set()
        self._roles: dict[str, set[str]] = defaultdict(set)
        self._plain = True

    def look_at(self, text: bytes) -> None:
        """Note the fields of a record and the roles of its turns."""
        try:
            record = orjson.loads(text)
        except orjson.JSONDecodeError:  # a number or a depth that only Python's reader takes
            self._plain = False
            return
        for field, value in record.items():
            self._fields[field].add(type(value).__name__)
        for turn in next((record[field] for field in TURNS if isinstance(record.get(field), list)), []):
            self._look_at_turn(turn)

    @property
    def fields(self) -> list[str]:
        """All fields that were seen."""
        return list(self._fields)

    def entry(self, file: str) -> Entry | None:
        """The entry for a file of these records, or None where LLaMA-Factory cannot read them."""
        if not self._plain:
            return None
        fields = {field for field, kinds in self._fields.items() if kinds <= {"str", "NoneType"}}
        extra = {name: name for name in ("system", "tools") if name in self._fields}
        if not extra.keys() <= fields:  # tools as objects, which it would leave out
            return None
        named = next((field for field in TURNS if field in self._fields), None)
        if named:
            if self._fields[named] != {"list"} or not (tags := self._tags()):
                return None
            return {"file_name": file, "formatting": "sharegpt", "columns": {"messages": named} | extra, "tags": tags}
        if "history" in self._fields and self._fields["history"] <= {"list", "NoneType"}:
            fields.add("history")
        for columns in (ALPACA, *PROMPTS):
            if {columns["prompt"], columns["response"]} <= fields:
                there = {part: column for part, column in columns.items() if column in fields}
                return {"file_name": file, "columns": there | extra}
        return None

    def _look_at_turn(self, turn: Any) -> None:
        spelling = next((pair for pair in SPELLINGS if isinstance(turn, dict) and pair[0] in turn), None)
        role, content = (turn.get(key) for key in spelling) if spelling else (None, None)
        kind = canonical_role(role) if isinstance(role, str) else None
        if not spelling or not kind or not isinstance(content, str) or turn.get("tool_calls"):
            self._plain = False
            return
        self._turns.add(spelling)
        self._roles["call" if role in CALLS else kind].add(str(role))

    def _tags(self) -> dict[str, str] | None:
        if len(self._turns) != 1 or any(len(names) > 1 for names in self._roles.values()):
            return None
        ((role, content),) = self._turns
        tags = {"role_tag": role, "content_tag": content}
        tags |= {"function_tag" if kind == "call" else TAG_OF[kind]: name for kind, (name,) in self._roles.items()}
        return tags

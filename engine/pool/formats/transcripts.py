"""Transcripts in one text, as in HH-RLHF: `\\n\\nHuman: ...\\n\\nAssistant: ...`."""

from __future__ import annotations

import re

from raysift.pool.formats.turns import Turns

TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):[ ]?")
ROLES = {"Human": "user", "Assistant": "assistant"}


def is_transcript(text: str) -> bool:
    """Whether a text starts with a turn of the human."""
    return text.lstrip("\n").startswith("Human:")


def read_transcript(text: str) -> Turns:
    """The turns of a transcript, without the blanks around them."""
    parts = TURN.split("\n\n" + text.lstrip("\n"))
    return [(ROLES[name], said.strip()) for name, said in zip(parts[1::2], parts[2::2], strict=True)]

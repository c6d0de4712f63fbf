"""The questions of a run's target and test set, to see whether they stand in the pool word for word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysift.config import CommonConfig, make_selector
from raysift.errors import RaysiftError
from raysift.evaluation.examples import read_examples
from raysift.report.twins import plain_texts

TARGET, TEST = "target", "test set"
FEWEST_CHARACTERS = 16
"""Shorter questions, such as a greeting, stand in any pool."""


@dataclass
class Asked:
    """Plain questions of one kind, and where they were found."""

    questions: pa.Array
    found: set[int] = field(default_factory=set)
    """Numbers of the questions that some row asks."""
    ids: list[int] = field(default_factory=list)
    """Rows that ask them."""

    def look(self, ids: np.ndarray, plain: pa.Array) -> None:
        """Note the rows whose plain question is one of these."""
        at = pc.index_in(plain, value_set=self.questions)
        self.found.update(at.drop_null().to_pylist())
        self.ids += ids[at.is_valid().to_numpy(zero_copy_only=False)].tolist()


def questions_of(config: CommonConfig | None) -> dict[str, pa.Array]:
    """Plain questions of target and test set; nothing of files that are gone or cannot be read any more."""
    if config is None:
        return {}
    found = {}
    for name, paths in ((TARGET, config.target), (TEST, config.test)):
        try:
            texts = [_last_question(member.prompt) for path in paths for member in _members(config, name, path)]
        except (RaysiftError, OSError):
            continue
        plain = plain_texts(pa.array(texts, pa.string())).unique()
        plain = plain.filter(pc.greater_equal(pc.utf8_length(plain), FEWEST_CHARACTERS))
        if len(plain):
            found[name] = plain
    return found


def _members(config: CommonConfig, name: str, path: str) -> Sequence[Any]:
    read = getattr(make_selector(config), "read_target", None) if name == TARGET and config.method else None
    return read(path).members if read else read_examples(path)  # type: ignore[no-any-return]


def _last_question(prompt: Sequence[Any]) -> str:
    return next((message.content for message in reversed(prompt) if message.role == "user"), "")

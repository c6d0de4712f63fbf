"""The settings of a comparison: methods or rows of your own, which are trained and tested under one recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator

from raysift.settings.base import Settings

UNIFORM, LONGEST, BASE = "uniform", "longest", "base model"
YARDSTICKS = (UNIFORM, LONGEST)
"""Part of every comparison, since a method that does not beat them is not worth its cost."""
ROWS = "rows"
NAME = re.compile(r"[A-Za-z0-9][\w .+=%-]{0,39}")


class CompareSettings(Settings):
    """What `raysift compare` compares, and how often."""

    methods: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """By name: the settings in which a method differs from the shared ones (`method` defaults to the name), or `rows: FILES`
    to train on all rows of files of your own. A list of methods does, too. Yardsticks and the base model always join."""
    runs: list[str] = Field(default_factory=list)
    """Finished runs whose selections are compared; runs of one method are its seeds. The first names what others lack."""
    seeds: int = Field(3, ge=1, le=1000)
    """Seeds under which every method selects, trains and is tested; with fewer than 3 the result is indicative."""
    selections: int | None = Field(None, ge=1)
    """Selections of each method but `uniform`: beyond them a seed trains on the first selection again. Default: one a seed.
    Fewer save time, and the intervals then tell nothing of how much selections of other seeds differ."""
    training_seeds: int = Field(1, ge=1, le=1000)
    """Trainings for each seed; 2 or more tell the spread of the training apart from that of the selection."""
    gain: float = Field(0.01, gt=0, lt=1)
    """The difference in score that more seeds should be able to tell; it decides how many of them a verdict names."""
    loss_on: list[str] = Field(default_factory=list)
    """Files of examples or pairs whose (chosen) answers give the loss on the target. Default: `target`."""

    @field_validator("runs", "loss_on", mode="before")
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:
        return [given] if isinstance(given, str) else given

    @field_validator("methods", mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        if isinstance(given, str):
            given = [name.strip() for name in given.split(",") if name.strip()]
        if isinstance(given, list | tuple) and all(isinstance(name, str) for name in given):
            given = dict.fromkeys(given)
        return (
            {name: {} if own is None else own for name, own in given.items()} if isinstance(given, Mapping) else given
        )

    @field_validator("methods")
    @classmethod
    def _names_make_folders(cls, methods: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name in methods:
            if not NAME.fullmatch(name) or name == BASE:
                raise ValueError(
                    f"'{name}' cannot name something to compare: expected letters, digits, blanks and . _ + = % -, at most 40, "
                    f"and not '{BASE}'"
                )
        return methods

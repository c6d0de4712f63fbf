"""The trials of a policy search: which settings are tried, how a trial is judged, and which is best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import ValidationError

from raysift.draws import seed_for
from raysift.errors import ConfigError
from raysift.policy.search_settings import PLACES, SearchSettings
from raysift.policy.settings import RaiseConfig
from raysift.settings.training import TrainConfig

TrialSettings = dict[str, Any]
"""Searched settings by name, as plain JSON values."""

OWN = 0
"""Number of the trial with the run's own settings."""

ALL_ROUNDS, STOPPED, FAILED = "all rounds", "stopped early", "failed"


@dataclass(frozen=True)
class TrialResult:
    """The result of a trial."""

    number: int
    settings: TrialSettings
    performances: list[float]
    """Final performance of each finished round, on the rows that the policy sees."""
    reports: list[float | None] = field(default_factory=list)
    """Final performance of each finished round, on the rows that the policy never sees."""
    seconds: list[float] = field(default_factory=list)
    reason: str | None = None
    """Why the trial failed."""
    folder: str | None = None
    """The folder of its rounds."""

    def state(self, rounds: int) -> str:
        """ALL_ROUNDS, STOPPED or FAILED."""
        if self.reason is not None:
            return FAILED
        return ALL_ROUNDS if len(self.performances) >= rounds else STOPPED


def searched_values(search: SearchSettings, config: RaiseConfig) -> dict[str, list[Any]]:
    """The values of each setting that is searched and has an effect."""
    values: dict[str, list[Any]] = {
        name: found for name, found in search.space.model_dump(mode="json").items() if found
    }
    if config.learning.advantage != "gae":
        values.pop("critic_rate", None)
    if config.policy.exploration == "none":
        values.pop("temperature", None)
    return values


def draw_trials(search: SearchSettings, config: RaiseConfig, train: TrainConfig, seed: int) -> list[TrialSettings]:
    """The settings of each trial, all distinct; the run's own come first."""
    values = searched_values(search, config)
    for name, found in values.items():
        for value in found:
            apply_settings({name: value}, config, train)
    own = {name: _current(name, config, train) for name in values}
    total = math.prod(len(found) for found in values.values())
    if search.sampler == "grid":
        numbers = list(range(total))
    else:
        rng = np.random.default_rng(seed_for(seed, "search"))
        numbers = rng.choice(total, min(total, search.trials), replace=False).tolist()
    others = [point for point in (_point(number, values) for number in numbers) if point != own]
    if search.sampler == "grid" and len(others) >= search.trials:
        raise ConfigError(
            f"search: the grid has {len(others)} points besides the run's own settings, search.trials is {search.trials}. "
            f"Set search.trials={len(others) + 1}, or give search.space fewer values."
        )
    return [own, *others[: search.trials - 1]]


def apply_settings(
    settings: Mapping[str, Any], config: RaiseConfig, train: TrainConfig
) -> tuple[RaiseConfig, TrainConfig]:
    """The run's settings with `settings` put in."""
    values: dict[str, Any] = {"raise": config.model_dump(mode="json"), "train": train.model_dump(mode="json")}
    for name, value in settings.items():
        *sections, last = PLACES[name]
        place = values
        for section in sections:
            place = place[section]
        place[last] = value
    try:
        return RaiseConfig.model_validate(values["raise"]), TrainConfig.model_validate(values["train"])
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise ConfigError(f"search: '{where}' cannot be {problem['input']!r}: {problem['msg']}.") from None


def as_overrides(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings by their command-line names."""
    return {".".join(PLACES[name]): value for name, value in settings.items()}


def criterion(performances: Sequence[float], last_rounds: int) -> float:
    """The criterion of a trial so far: its mean performance over the last rounds."""
    return float(np.mean(performances[-last_rounds:]))


def best_of(outcomes: Sequence[TrialResult], search: SearchSettings) -> TrialResult | None:
    """The trial with the highest criterion among those with all rounds; ties go to the lower number.

    Trials stopped early had a lower criterion than others at that point, and criteria of different rounds are not comparable.
    """
    whole = [outcome for outcome in outcomes if outcome.state(search.rounds) == ALL_ROUNDS]
    return max(whole, key=lambda o: (criterion(o.performances, search.last_rounds), -o.number), default=None)


def _current(name: str, config: RaiseConfig, train: TrainConfig) -> Any:
    value: Any = {"raise": config.model_dump(mode="json"), "train": train.model_dump(mode="json")}
    for part in PLACES[name]:
        value = value[part]
    return value


def _point(number: int, values: Mapping[str, Sequence[Any]]) -> TrialSettings:
    """The point of the space with this number, read as mixed-base digits."""
    point = {}
    for name, found in values.items():
        number, digit = divmod(number, len(found))
        point[name] = found[digit]
    return point

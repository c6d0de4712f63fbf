"""`plan.json`: what a plan says, stage by stage."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raysift.errors import ConfigError
from raysift.storage import open_location

PLAN = "plan.json"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Seconds(_Part):
    """A forecast of time."""

    low: float
    likely: float
    high: float


class PlannedStage(_Part):
    """What a stage will take."""

    stage: str
    rows: int
    kept: int
    tokens: int
    device: str
    workers: int
    seconds: Seconds
    host: int
    """Peak bytes of the largest worker; 0 for a stage without workers."""
    gpu: int
    written: int
    restart_s: float
    """Seconds that a kill in the middle costs, at most."""
    basis: str
    """`measured`, `guessed` (a length of answers, say), or `arithmetic`."""


class Cheaper(_Part):
    """A setting that saves time, and what it loses."""

    settings: list[str]
    loses: str
    seconds: float
    """Likely seconds of the whole run with it."""


class Plan(_Part):
    """What a run will take."""

    method: str
    model: str
    machine: str
    measured: bool
    """False for a described machine: arithmetic with its maker's figures."""
    settings: dict[str, Any]
    """Those of the run."""
    stages: list[PlannedStage]
    gpus: float = 0.0
    price: float | None = None
    """Dollars of a GPU-hour, or of a machine-hour without GPUs."""
    dollars: float | None = None
    bottleneck: str = ""
    cheaper: list[Cheaper] = Field(default_factory=list)
    solved: list[str] = Field(default_factory=list)
    """Settings that were changed to stay within the hours or dollars asked."""
    train_all_s: float | None = None
    """Likely seconds of training on the whole pool instead, by the run's recipe."""
    notes: list[str] = Field(default_factory=list)
    measuring_s: float = 0.0
    speeds: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """What was measured or computed of each part: seconds of a token, of loading, of a step; peak bytes."""
    starts: dict[str, float] = Field(default_factory=dict)
    """Seconds that pass before work begins, by what passes them."""

    @property
    def likely_s(self) -> float:
        """Likely seconds of all stages."""
        return sum(stage.seconds.likely for stage in self.stages)

    def total(self) -> Seconds:
        """Sums over the stages."""
        low, likely, high = (
            sum(getattr(stage.seconds, name) for stage in self.stages) for name in ("low", "likely", "high")
        )
        return Seconds(low=low, likely=likely, high=high)


def read_plan(path: str) -> Plan:
    """The plan in a file; raises ConfigError if it is none."""
    place = open_location(path)
    try:
        return Plan.model_validate_json(place.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"--plan: there is no '{path}'. `raysift plan METHOD ...` writes one.") from None
    except ValidationError as error:
        raise ConfigError(
            f"--plan: '{path}' is no plan ({error.errors()[0]['msg']}), or one of another version. Make it anew: raysift plan."
        ) from None

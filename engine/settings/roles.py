"""What the workers of each stage ask for: by role, so that tokenisers hold no GPU and trainings hold whole ones."""

from __future__ import annotations

import math
from typing import Any, Protocol

from pydantic import Field, field_validator, model_validator

from raysift.settings.base import Settings
from raysift.settings.cluster import Cluster

ON_CPUS = frozenset({"tokenise", "reduce", "driver"})
"""Roles that load no model: they never ask for a GPU."""
TRAIN, LEARN = "train", "learn"
"""A fine-tune, whose workers share out each batch; trainings of a policy side by side, which ask for the same."""


class Role(Settings):
    """Workers of one role. A number in its place stands for `workers`; what is None follows from the cluster."""

    workers: int | None = Field(default=None, ge=0)
    """Maximum workers at a time. None: `resources.workers`, or as many as fit."""
    cpus: float | None = Field(default=None, gt=0)
    """CPUs per worker. None: `resources.cpus_per_worker`."""
    gpus: float | None = Field(default=None, ge=0)
    """GPUs per worker; a fraction lets workers share one. None: `resources.gpus_per_worker`, or one if the cluster has GPUs."""
    gib: float | None = Field(default=None, ge=0)
    """Memory in GiB that Ray reserves for a worker. None: `resources.worker_gib`."""

    @model_validator(mode="before")
    @classmethod
    def _number(cls, given: Any) -> Any:
        return {"workers": given} if isinstance(given, int | float) and not isinstance(given, bool) else given


class WorkerRole(Role):
    """Workers of a stage that needs one at least."""

    workers: int | None = Field(default=None, ge=1)


class TrainRole(Role):
    """Workers of a fine-tune, which share out each batch. None: one per GPU, or one on CPUs; 0 trains in the calling process.

    A training under RAISE's policy has a power of two of them, at most 8; more trainings of a round run side by side.
    """

    least: int | None = Field(default=None, ge=1)
    """If set, training is elastic between so many workers and `workers`; the effective batch stays the same."""

    @field_validator("gpus")
    @classmethod
    def _whole(cls, gpus: float | None) -> float | None:
        if gpus is not None and gpus != int(gpus):
            raise ValueError(
                "a training takes whole GPUs, since two of its workers cannot share one; fractions are for others"
            )
        return gpus


class Asked(Protocol):
    """What resolving reads of the resources; the settings of each role lie beside these under its name."""

    @property
    def workers(self) -> int | None: ...
    @property
    def cpus_per_worker(self) -> float | None: ...
    @property
    def worker_gib(self) -> float | None: ...
    @property
    def gpus_per_worker(self) -> float | None: ...
    @property
    def gpus(self) -> int | None: ...
    @property
    def device(self) -> str: ...


def resolve(asked: Asked, role: str, cluster: Cluster, small: bool) -> dict[str, Any]:
    """Workers of a role and what each asks for: the role's own settings, then the general ones, then what the cluster has.

    A `small` model gets no GPU unless one is asked for.
    """
    own = role_of(asked, role)
    without_model = role in ON_CPUS
    cpus, gib = (None, None) if without_model else (asked.cpus_per_worker, asked.worker_gib)
    gpus = 0.0 if without_model else gpus_of(asked, role, cluster, small)
    found: dict[str, Any] = {
        "workers": own.workers if own.workers is not None and role != LEARN else asked.workers,
        "cpus_per_worker": own.cpus or cpus,
        "worker_gib": gib if own.gib is None else own.gib,
        "gpus_per_worker": gpus,
    }
    if role == TRAIN and own.workers is None:
        fitting = int(cluster.most_gpus / gpus) if gpus else 1
        found["workers"] = max(1, min(fitting, asked.workers or fitting))
    return found


def gpus_of(asked: Asked, role: str, cluster: Cluster, small: bool) -> float:
    """GPUs of each worker: as asked for, or one where there are GPUs and the model gains by it."""
    own = role_of(asked, role)
    given = own.gpus if own.gpus is not None else asked.gpus_per_worker
    if asked.device == "cpu" or asked.gpus == 0:
        return 0.0
    if given is not None:
        return float(math.ceil(given)) if role in (TRAIN, LEARN) else given
    if small or not cluster.most_gpus:
        return 0.0
    if asked.device == "spread":
        return max((machine.gpus for machine in cluster.machines), default=0.0) or 1.0
    return 1.0


def role_of(asked: Asked, role: str) -> Role:
    """The settings of a role."""
    found: Role = getattr(asked, TRAIN if role == LEARN else role)
    return found

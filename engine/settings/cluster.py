"""What a cluster has for workers now, and what may still join it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """One machine of a cluster, as Ray counts it."""

    cpus: float
    gpus: float = 0.0
    memory: int = 0

    def holds(self, cpus: float, gpus: float) -> bool:
        """Whether a worker that asks for so much fits on it while it is empty."""
        return self.cpus + 1e-6 >= cpus and self.gpus + 1e-6 >= gpus


@dataclass(frozen=True)
class Cluster:
    """The machines of a cluster; `most_cpus` and `most_gpus` count those that may still join."""

    machines: tuple[Machine, ...] = ()
    most_cpus: float = 0.0
    most_gpus: float = 0.0

    @property
    def cpus(self) -> float:
        """CPUs that are there now."""
        return sum(machine.cpus for machine in self.machines)

    @property
    def gpus(self) -> float:
        """GPUs that are there now."""
        return sum(machine.gpus for machine in self.machines)

    def holds(self, cpus: float, gpus: float) -> bool:
        """Whether one worker that asks for so much could start now or, at the latest, when the others have ended."""
        return any(machine.holds(cpus, gpus) for machine in self.machines)

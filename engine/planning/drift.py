"""How a run goes against its plan.

drift      seconds so far / planned seconds of the same work; of a stage in progress the share that is done counts
the end    now + drift x planned seconds of what is left
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

LEAST_S = 5.0
"""Planned seconds below which nothing is said of drift: starts of processes vary by as much."""


@dataclass
class Course:
    """Planned seconds of each stage, and what was spent on those that are done."""

    planned: Mapping[str, float]
    spent: dict[str, float] = field(default_factory=dict)
    skipped: set[str] = field(default_factory=set)

    def drift(self, stage: str = "", projected: float = 0.0) -> float | None:
        """Spent over planned, with a stage in progress as if done in `projected` seconds; None if too little is known."""
        known = dict(self.spent) | ({stage: projected} if projected else {})
        planned = sum(self.planned[name] for name in known if name in self.planned)
        spent = sum(seconds for name, seconds in known.items() if name in self.planned)
        return spent / planned if planned >= LEAST_S else None

    def ahead(self, stage: str = "", projected: float = 0.0) -> float:
        """Seconds of the stages that have not begun, at the present drift."""
        pace = self.drift(stage, projected) or 1.0
        closed = {*self.spent, *self.skipped, stage}
        return pace * sum(seconds for name, seconds in self.planned.items() if name not in closed)

    def over(self, stage: str = "", projected: float = 0.0) -> float:
        """What all the work will take, over what was planned for it."""
        planned = sum(seconds for name, seconds in self.planned.items() if name not in self.skipped)
        spent = sum(seconds for name, seconds in self.spent.items() if name in self.planned)
        own = projected if stage in self.planned else 0.0
        return (spent + own + self.ahead(stage, projected)) / planned if planned else 1.0

"""What a run tells whoever follows it, such as a plan that it is compared with."""

from __future__ import annotations

from typing import Protocol

from raysift.errors import StageError
from raysift.jobs.runs.progress import Bar


class Follow(Protocol):
    """Compares a run with its plan: at the start, the course and the end of each stage."""

    def begin(self, stage: str) -> None: ...
    def look(self, bar: Bar) -> None: ...
    def stopped(self) -> StageError | None:
        """Why the stage was interrupted, if it was this object that did so."""
        ...

    def end(self, stage: str, seconds: float) -> None:
        """Called when the stage is finished and written; may raise."""
        ...

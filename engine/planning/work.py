"""The work of one stage, and the time it takes on its workers.

    seconds      start + work                            one worker, or one block of rows
                 start + start + (work - start) / n      n workers: a pool starts with one and grows; the others need as long to
                                                         start as the first, and it works meanwhile
                 start + work / n                        workers that all start at once, as those with GPUs do

A forecast has a low and a high figure beside the likely one; how far apart they are depends on where the figures come from.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SPREAD = {"measured": (0.8, 1.35), "guessed": (0.5, 2.0), "arithmetic": (0.6, 2.0)}
"""Low and high of a likely time: of rows that were measured, of lengths of answers that nobody knows, of a described card."""


@dataclass(frozen=True)
class Work:
    """What a stage has to do."""

    stage: str
    rows: float
    kept: float
    tokens: float = 0.0
    """That the model reads, once for each pass over a row."""
    start_s: float = 0.0
    """Until the first row is answered: processes, libraries, weights."""
    worker_s: float = 0.0
    """Of one worker for all rows."""
    workers: int = 1
    blocks: int = 1
    """Pieces that workers share out; more workers than pieces find nothing to do."""
    at_once: bool = False
    """Whether all workers start together."""
    gpus: float = 0.0
    """Held by all workers together."""
    device: str = "cpu"
    host: int = 0
    gpu: int = 0
    written: float = 0.0
    restart_s: float = 0.0
    """Work that is done again after a kill in the middle, besides the start."""
    basis: str = "measured"
    notes: tuple[str, ...] = field(default=())

    @property
    def busy(self) -> int:
        """Workers that find something to do."""
        return max(1, min(self.workers, self.blocks))


def seconds_of(work: Work) -> float:
    """Likely seconds of a stage."""
    busy = work.busy
    if busy == 1 or (not work.at_once and work.worker_s <= work.start_s):
        return work.start_s + work.worker_s
    if work.at_once:
        return work.start_s + work.worker_s / busy
    return 2 * work.start_s + (work.worker_s - work.start_s) / busy


def bounds_of(work: Work) -> tuple[float, float, float]:
    """Low, likely and high seconds; nothing is known of a start better than of what was measured."""
    likely, (low, high) = seconds_of(work), SPREAD[work.basis]
    return low * likely, likely, high * likely


def gpu_seconds(work: Work) -> float:
    """Seconds for which GPUs are held, summed over them."""
    return seconds_of(work) * work.gpus

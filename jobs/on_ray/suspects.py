"""Which of some rows ends the process that works on it: pieces of a batch, each tried in a process that may die of it.

A piece that a process survives is innocent. One whose process ended is halved; a row left alone is tried ALONE times. It is at
fault if none of these processes came back and others of its batch did no harm. The one who asks writes this object down
before each trial, because only the next process can say how it ended.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

ALONE = 3  # trials of a row by itself, all of which must end its process


@dataclass
class Suspects:
    """The rows of a batch by their places, and what the trials so far have shown."""

    rows: int
    spare: int
    """Ends of processes that are borne beyond those which finding a row takes."""
    pending: list[tuple[int, int]] = field(default_factory=list)
    """Pieces to try, from and to; the next one last."""
    ends: int = 0
    ends_alone: int = 0
    innocent: int = 0
    guilty: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, rows: int, spare: int) -> Suspects:
        """All rows are suspected: a process ended in their batch."""
        found = cls(rows, spare)
        found._halve((0, rows))
        return found

    @classmethod
    def from_dict(cls, known: dict[str, Any]) -> Suspects:
        """What `as_dict` gave."""
        return cls(**known | {"pending": [(first, end) for first, end in known["pending"]]})

    def as_dict(self) -> dict[str, Any]:
        """For a note to the next process."""
        return asdict(self)

    @property
    def next(self) -> tuple[int, int] | None:
        """The piece to try next; None if all is known."""
        return self.pending[-1] if self.pending and not self.is_not_of_rows else None

    @property
    def is_not_of_rows(self) -> bool:
        """Whether something else ends the processes: rows die whichever it is, or there is no end of it."""
        taken = (self.rows.bit_length() + ALONE) * (len(self.guilty) + 1)
        return (len(self.guilty) > 1 and not self.innocent) or self.ends > taken + self.spare

    def passed(self) -> None:
        """The process has survived the piece."""
        first, end = self.pending.pop()
        self.innocent += end - first
        self.ends_alone = 0

    def died(self) -> None:
        """The process ended in the piece."""
        first, end = self.pending.pop()
        self.ends += 1
        if end - first > 1:
            self._halve((first, end))
            return
        self.ends_alone += 1
        if self.ends_alone < ALONE:
            self.pending.append((first, end))
        else:
            self.guilty.append(first)
            self.ends_alone = 0

    def _halve(self, piece: tuple[int, int]) -> None:
        first, end = piece
        middle = (first + end + 1) // 2
        self.pending += [(middle, end), (first, middle)] if end - first > 1 else [piece]

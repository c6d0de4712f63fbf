"""Where the elements of a huge JSON array begin and end, found block by block without parsing it.

A quote counts unless an odd number of backslashes stands before it; brackets and commas count outside of quotes; a
comma at depth one parts two elements. Three passes of numpy over each block, a few hundred megabytes a second, and the
memory of a block. Up to the first syntax error of a file the cuts are right, so that the element which holds the error
fails to parse, and can be named.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

QUOTE, BACKSLASH, COMMA = 34, 92, 44
STEP = np.zeros(256, np.int8)
STEP[[ord("{"), ord("[")]] = 1
STEP[[ord("}"), ord("]")]] = -1
# `bytes.translate` looks a byte up three times as fast as numpy's indexing does.
MARKS = bytes(int(STEP[code] != 0 or code == COMMA) for code in range(256))


class ArrayScanner:
    """Keeps what must be known from one block to the next: inside a string or not, depth, trailing backslashes."""

    def __init__(self, depth: int = 0) -> None:
        self.depth = depth
        self.in_string = False
        self.read = 0
        self.opened_at: int | None = None
        self.closed_at: int | None = None
        self._backslashes = 0

    def feed(self, block: bytes) -> npt.NDArray[np.int64]:
        """Offsets, counted from the first byte ever fed, of the commas at depth one within this block."""
        codes = np.frombuffer(block, np.uint8)
        quotes = self._real_quotes(codes)
        marks = np.flatnonzero(np.frombuffer(block.translate(MARKS), np.bool_))
        outside = (np.searchsorted(quotes, marks) + self.in_string) % 2 == 0
        marks = marks[outside]
        steps = STEP[codes[marks]]
        depths = self.depth + np.cumsum(steps, dtype=np.int64)
        if self.opened_at is None and len(marks):
            self.opened_at = self.read + int(marks[0])
        if self.closed_at is None:
            closing = np.flatnonzero((depths == 0) & (steps == -1))
            if len(closing):
                self.closed_at = self.read + int(marks[closing[0]])
                marks, depths, steps = marks[: closing[0]], depths[: closing[0]], steps[: closing[0]]
        else:
            marks, depths, steps = marks[:0], depths[:0], steps[:0]
        commas = marks[(steps == 0) & (depths == 1)] + self.read
        self.depth = int(depths[-1]) if len(depths) else self.depth
        self.in_string ^= bool(len(quotes) % 2)
        self.read += len(block)
        found: npt.NDArray[np.int64] = commas.astype(np.int64)
        return found

    def _real_quotes(self, codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Positions of the quotes that no odd run of backslashes escapes."""
        quotes = np.flatnonzero(codes == QUOTE)
        carried, size = self._backslashes, len(codes)
        doubtful = quotes[(quotes > 0) & (codes[np.maximum(quotes - 1, 0)] == BACKSLASH)]
        escaped = doubtful[:0]
        if len(doubtful):
            slashes = np.flatnonzero(codes == BACKSLASH)
            starts_run = np.ones(len(slashes), bool)
            starts_run[1:] = np.diff(slashes) != 1
            run_start = slashes[np.maximum.accumulate(np.where(starts_run, np.arange(len(slashes)), 0))]
            start = run_start[np.searchsorted(slashes, doubtful - 1)]
            length = doubtful - start + np.where(start == 0, carried, 0)
            escaped = doubtful[length % 2 == 1]
        if carried % 2 and len(quotes) and quotes[0] == 0:
            escaped = np.concatenate([[0], escaped])
        tail = size - len(codes.tobytes().rstrip(b"\\")) if size and codes[-1] == BACKSLASH else 0
        self._backslashes = tail + carried if tail == size else tail
        return np.setdiff1d(quotes, escaped, assume_unique=True) if len(escaped) else quotes


def split_elements(blocks: Iterable[bytes], depth: int = 1) -> Iterator[tuple[list[bytes], list[int]]]:
    """The elements of an array, as text with its blanks, and the offset at which each ends.

    With depth 1 the blocks are the inside of the array; with depth 0 they start before its bracket. The last element of
    the inside has no comma after it and comes last, also when it is blank.
    """
    scanner = ArrayScanner(depth)
    pending, base = b"", 0
    for block in blocks:
        before = scanner.closed_at
        commas = scanner.feed(block)
        if before is not None:
            continue
        data = pending + block
        if depth == 0 and base == 0 and scanner.opened_at is not None:
            base = scanner.opened_at + 1
            data = data[base:]
        if depth == 0 and base == 0:
            pending = data
            continue
        texts, ends, start = [], [], 0
        for end in (commas - base).tolist():
            texts.append(data[start:end])
            ends.append(base + end)
            start = end + 1
        if scanner.closed_at is not None:
            end = scanner.closed_at - base
            texts.append(data[start:end])
            ends.append(base + end)
            yield texts, ends
            pending, base = b"", scanner.closed_at
            continue
        pending, base = data[start:], base + start
        if texts:
            yield texts, ends
    if scanner.closed_at is None:
        yield [pending], [base + len(pending)]

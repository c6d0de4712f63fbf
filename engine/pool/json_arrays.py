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

from raysift.pool.files import MAX_RECORD_BYTES

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


class BrokenArray(Exception):
    """What stands at an offset is no part of an array; the elements before it are sound."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(reason)
        self.offset, self.reason = offset, reason


class _Element:
    """The pieces of an element that goes on over several blocks, dropped once they are too long to be held."""

    def __init__(self, most: int) -> None:
        self._most, self._pieces, self.length = most, [], 0  # type: tuple[int, list[bytes], int]

    def add(self, piece: bytes) -> None:
        self.length += len(piece)
        if self.length > self._most:
            self._pieces = []
        elif piece:
            self._pieces.append(piece)

    def close(self) -> bytes | None:
        """The whole element, None where it was too long; the next begins."""
        text = b"".join(self._pieces) if self.length <= self._most else None
        self._pieces, self.length = [], 0
        return text


def split_elements(
    blocks: Iterable[bytes], depth: int = 1, closed: bool = True, most: int = MAX_RECORD_BYTES
) -> Iterator[tuple[list[bytes | None], list[int]]]:
    """The elements of an array, as text with its blanks, and the offset at which each ends.

    With depth 1 the blocks are the inside of the array, which is `closed` where the bracket comes after them; with depth 0
    they start before its bracket. The last element of the inside has no comma after it and comes last, also when it is
    blank. None stands for an element of more than `most` bytes. Raises BrokenArray after the last sound element.
    """
    scanner, element = ArrayScanner(depth), _Element(most)
    start = 0 if depth else None  # of the element, once the bracket was seen
    for block in blocks:
        first, at = scanner.read, 0
        if scanner.closed_at is not None:
            _require_blank(block, first)
            continue
        ends = scanner.feed(block).tolist()
        if scanner.closed_at is not None:
            ends.append(scanner.closed_at)
        if start is None:
            if scanner.opened_at is None:
                continue
            start = scanner.opened_at + 1
            at = start - first
        texts: list[bytes | None] = []
        for end in ends:
            element.add(block[at : end - first])
            texts.append(element.close())
            at, start = end - first + 1, end + 1
        if texts:
            yield texts, ends
        if scanner.closed_at is not None:
            _require_blank(block[at:], first + at)
        else:
            element.add(block[at:])
    if scanner.closed_at is None:
        begun, last = start or 0, element.close()
        sound = depth == 1 and closed
        if sound or last is None or last.strip():
            yield [last], [scanner.read]
        if not sound:
            begun += len(last) - len(last.lstrip()) if last else 0
            raise BrokenArray(begun, "the array has no end: it breaks off in or after this element. Is the file whole?")


def _require_blank(text: bytes, offset: int) -> None:
    if rest := text.lstrip():
        raise BrokenArray(offset + len(text) - len(rest), "text after the end of the array; expected one array.")

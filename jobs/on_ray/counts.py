"""Workers' progress, reported to the driver through Ray's own key-value store: no actor, no port, no file.

Progress is only displayed. An error here never ends a stage, and no result depends on it.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Iterator

from raysift.jobs.on_ray.peaks import look_at_peaks, peaks_name
from raysift.jobs.runs.progress import Bar

TELL_EVERY_S = 0.5


class Count:
    """A worker's own count under a shared name, written at most twice a second.

    A worker with a name writes to the same count after a restart.
    """

    def __init__(self, name: str, worker: str = "") -> None:
        self._key = f"{name}/{worker or uuid.uuid4().hex}".encode()
        self._done, self._told = 0, float("-inf")

    def add(self, more: int) -> None:
        """Add to the number done."""
        self.set(self._done + more)

    def set(self, done: int, total: int | None = None, words: str = "") -> None:
        """Set the number done, and the total if the driver cannot know it."""
        self._done = done
        if time.monotonic() - self._told < TELL_EVERY_S and done != total:
            return
        self._told = time.monotonic()
        with contextlib.suppress(Exception):
            from ray.experimental.internal_kv import _internal_kv_put

            _internal_kv_put(self._key, json.dumps([done, total, words]).encode())


@contextlib.contextmanager
def counted(bar: Bar, already: int = 0) -> Iterator[str | None]:
    """Yields the name under which workers count, and shows the sum in the bar; None if nobody would see it."""
    if not bar.is_shown:
        yield None
        return
    name, over = f"raysift-progress-{uuid.uuid4().hex}", threading.Event()
    peaks, before = peaks_name(), 0
    with contextlib.suppress(Exception):
        before = _tokens(peaks)  # of earlier work of the stage, such as encoding for a training

    def watch() -> None:
        while not over.wait(TELL_EVERY_S):
            with contextlib.suppress(Exception):
                told = read_counts(name)
                totals = [total for _, total, _ in told if total is not None]
                words = next((said for _, _, said in told if said), "")
                done = already + sum(done for done, _, _ in told)
                bar.update(done, max(totals, default=None), words, _tokens(peaks) - before)

    watcher = threading.Thread(target=watch, name="raysift-progress", daemon=True)
    watcher.start()
    try:
        yield name
    finally:
        over.set()
        watcher.join()
        with contextlib.suppress(Exception):
            from ray.experimental.internal_kv import _internal_kv_del

            _internal_kv_del(name.encode(), del_by_prefix=True)


def read_counts(name: str) -> list[tuple[int, int | None, str]]:
    """Done, total and words of every worker that counts under this name."""
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_list

    values = [_internal_kv_get(key) for key in sorted(_internal_kv_list(name.encode()))]
    return [tuple(json.loads(value)) for value in values if value]


def _tokens(peaks: str | None) -> int:
    """Tokens that the workers of the stage have read so far."""
    return sum(told.get("tokens", 0) for told in look_at_peaks(peaks)) if peaks else 0

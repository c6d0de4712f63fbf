"""Workers' peak memory and tokens, told to the driver as counts are: through Ray's own key-value store.

Nothing depends on what is told, and an error here ends neither a worker nor a stage.
"""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Callable
from typing import Any

from raysift.jobs.runs.peaks import forget_peak, name_for_workers, peak_memory, this_process

TELL_EVERY_S, AT_ONCE = 1.0, 32  # short stages are told whole; long ones at most once a second


class Peak:
    """What this process tells under a stage's name."""

    def __init__(self, name: str) -> None:
        self._key = f"{name}/{this_process()}".encode()
        self._times, self._last, self.tokens = 0, float("-inf"), 0
        forget_peak()

    def tell(self, tokens: int = 0) -> None:
        """Tell the memory so far, and that so many more tokens were read."""
        self.tokens += tokens
        if self._times >= AT_ONCE and time.monotonic() - self._last < TELL_EVERY_S:
            return
        self._times, self._last = self._times + 1, time.monotonic()
        with contextlib.suppress(Exception):
            from ray.experimental.internal_kv import _internal_kv_put

            _internal_kv_put(self._key, json.dumps(peak_memory() | {"tokens": self.tokens}).encode())


_own: dict[str, Peak] = {}


def own_peak(name: str | None) -> Peak | None:
    """This process's account for a stage: one, whatever number of tasks and actors it serves."""
    if name is None:
        return None
    if name not in _own:
        _own.clear()  # those of earlier stages
        _own[name] = Peak(name)
    return _own[name]


def tell(name: str | None, tokens: int = 0) -> None:
    """Tell this process's peak under the name of a stage, if there is one."""
    if (peak := own_peak(name)) is not None:
        peak.tell(tokens)


def telling(work: Callable[..., Any]) -> Callable[..., Any]:
    """The function of a Ray task, which tells its process's peak when it ends."""
    name = peaks_name()
    if name is None:
        return work

    @functools.wraps(work)
    def told(*given: Any, **named: Any) -> Any:
        own_peak(name)
        try:
            return work(*given, **named)
        finally:
            tell(name)

    return told


def peaks_name() -> str | None:
    """The name under which workers of the stage that runs now tell; None outside stages."""
    return name_for_workers(read_peaks)


def read_peaks(name: str) -> list[dict[str, int]]:
    """What each worker told last; forgotten by Ray afterwards."""
    from ray.experimental.internal_kv import _internal_kv_del

    found = look_at_peaks(name)
    _internal_kv_del(name.encode(), del_by_prefix=True)
    return found


def look_at_peaks(name: str) -> list[dict[str, int]]:
    """What each worker told last."""
    import ray
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_list

    if not ray.is_initialized():
        return []
    values = [_internal_kv_get(key) for key in sorted(_internal_kv_list(name.encode()))]
    return [json.loads(value) for value in values if value]

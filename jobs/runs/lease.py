"""One driver at a time works in a run folder: `lease.json` there names it, and a thread renews it while the driver lives.

    token   random, of one holder          where, pid, born   the holder's process, so that others on its machine see it end
    beat    the holder's last sign of life, by its clock, which need not agree with ours

A lease is free once its holder has given it back, is known to be dead (same machine), or has shown no sign of life while we
looked on for STALE_S seconds. So a run killed with `kill -9` continues at once on its machine, and after a minute on another.

On a disk a lease is made by a hard link, which fails if there is one, and taken over under a lock on the old file. An object
store offers neither through pyarrow: there a driver writes its lease and looks SETTLE_S later whether it is still there. Two
drivers that pass even so see it at their next beat, and the one whose lease is gone ends before it commits anything.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from raysift.errors import ConfigError, StageError
from raysift.storage import Location

LEASE = "lease.json"
BEAT_S, STALE_S, LOOK_S, SETTLE_S = 15.0, 60.0, 1.0, 1.0

Holder = dict[str, Any]
Tell = Callable[[str], None]

_held: dict[tuple[int, str], Lease] = {}
_guard = threading.Lock()


class Lease:
    """Held from `take` until `release` was called as often; within a process, whoever takes it again shares it."""

    def __init__(self, folder: Location, tell: Tell = lambda words: None) -> None:
        self.tell = tell
        self.place, self.times = folder / LEASE, 1
        self.own: Holder = {"token": uuid.uuid4().hex, "host": socket.gethostname(), "since": time.time(), **process()}
        self.before: Holder | None = None
        """The dead holder that it was taken over from."""
        self.lost = False
        self._over = threading.Event()
        while not self._acquire():
            pass
        self._thread = threading.Thread(target=self._renew, name="raysift-lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give it back, unless another part of the process still holds it."""
        with _guard:
            self.times -= 1
            if self.times:
                return
            _held.pop(_key(self.place), None)
        self._over.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if self._is_own(read_holder(self.place)):
                self.place.delete()

    def require(self) -> None:
        """Raise if another driver has taken the run over, as it may from one that showed no sign of life."""
        if self.lost or self._is_of_another(read_holder(self.place)):
            raise StageError(
                f"run: another process has taken over {self.place.parent} while this one showed no sign of life for "
                f"{STALE_S:.0f} s. Nothing of it is lost: let that process finish, or run the command again after it."
            )

    def _acquire(self) -> bool:
        """Whether the run is ours now; raises if it is another's. False: what was found has changed, look again."""
        found = read_holder(self.place)
        if found and is_here(found):
            if is_alive(found):
                raise ConfigError(f"run: {self.place.parent} {describe(found)}")
        elif found and not self._shows_no_life(found):
            return False
        self.before = found
        self.own["beat"] = time.time()
        if self.place.is_local:
            return self._make() if found is None else self._replace(found)
        self.place.write(json.dumps(self.own))
        time.sleep(SETTLE_S)
        return self._is_own(read_holder(self.place))

    def _shows_no_life(self, found: Holder) -> bool:
        """Whether a holder on another machine, whose processes we cannot see, lets the time pass; raises if it is alive."""
        self.tell(
            f"waiting for up to {STALE_S:.0f} s to see whether process {found['pid']} on {found['host']} still works there"
        )
        end = time.monotonic() + STALE_S
        while time.monotonic() < end:
            time.sleep(LOOK_S)
            now = read_holder(self.place)
            if now is None or now["token"] != found["token"]:
                return False
            if now["beat"] != found["beat"]:
                raise ConfigError(f"run: {self.place.parent} {describe(now)}")
        return True

    def _make(self) -> bool:
        with self._written() as mine:
            try:
                os.link(mine, self.place.path)
            except FileExistsError:
                # A damaged file is no lease: it was left by a crash of the machine.
                if read_holder(self.place) is None:
                    self.place.delete()
                return False
        return True

    def _replace(self, found: Holder) -> bool:
        """Take the file's place while no other driver can: all lock the file that they found."""
        try:
            with open(self.place.path, "rb") as old:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(old, fcntl.LOCK_EX)
                same = os.path.samestat(os.fstat(old.fileno()), os.stat(self.place.path))
                if not same or (read_holder(self.place) or {}).get("token") != found["token"]:
                    return False
                with self._written() as mine:
                    os.replace(mine, self.place.path)
                return True
        except FileNotFoundError:
            return False

    @contextlib.contextmanager
    def _written(self) -> Iterator[str]:
        """The lease under a name of its own."""
        mine = self.place.parent / f".{LEASE}.{self.own['token']}"
        mine.write(json.dumps(self.own))
        try:
            yield mine.path
        finally:
            mine.delete()

    def _renew(self) -> None:
        while not self._over.wait(BEAT_S):
            with contextlib.suppress(OSError):  # the store may be away for a while
                if self._is_of_another(read_holder(self.place)):
                    self.lost = True
                    return
                self.own["beat"] = time.time()
                self.place.write(json.dumps(self.own))

    def _is_own(self, found: Holder | None) -> bool:
        return found is not None and found["token"] == self.own["token"]

    def _is_of_another(self, found: Holder | None) -> bool:
        """A lease that is gone is written again: no one takes a run over by deleting it."""
        return found is not None and not self._is_own(found)


def take(folder: Location, tell: Tell = lambda words: None) -> Lease:
    """The lease of a run folder, which exists; raises if another process holds it. `tell` is called before a longer wait."""
    with _guard:
        key = _key(folder / LEASE)
        if key in _held:
            _held[key].times += 1
        else:
            _held[key] = Lease(folder, tell)
        return _held[key]


def read_holder(place: Location) -> Holder | None:
    """What the file says; None if there is none, or none that can be read."""
    try:
        found = json.loads(place.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) and {"token", "where", "pid", "born", "beat"} <= found.keys() else None


def is_here(found: Holder) -> bool:
    """Whether the holder is, or was, a process that we could see."""
    return bool(found["where"] == process()["where"])


def is_alive(found: Holder) -> bool:
    """Whether the holder's process on this machine is the one that took the lease."""
    return bool(born(found["pid"]) == found["born"])


def describe(found: Holder) -> str:
    """Who holds the run, and what to do."""
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found["since"]))
    return (
        f"is in use by process {found['pid']} on {found['host']} since {since}. Wait until it ends and repeat the command, or "
        "name another folder with --run."
    )


def process() -> Holder:
    """What tells this process from all others: its machine (boot and namespace), its number, and its start."""
    boot = _read("/proc/sys/kernel/random/boot_id") or str(uuid.getnode())
    with contextlib.suppress(OSError):
        boot += os.readlink("/proc/self/ns/pid")  # containers count their processes anew
    return {"where": boot, "pid": os.getpid(), "born": born(os.getpid())}


def born(pid: int) -> str | None:
    """When a process started, in the system's own count; None if there is no such process (a zombie has ended)."""
    if os.path.isdir("/proc/self"):
        fields = (_read(f"/proc/{pid}/stat") or "").rpartition(")")[2].split()
        return fields[19] if fields and fields[0] not in "ZX" else None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "alive"


def _read(name: str) -> str | None:
    try:
        with open(name, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None


def _key(place: Location) -> tuple[int, str]:
    return os.getpid(), str(place)

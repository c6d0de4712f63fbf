"""Copies of remote files on a machine's disk: one for all processes, gone when nobody uses it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from raysift.storage import open_location
from raysift.store import local_files
from raysift.store.local_files import on_this_disk

pytest.importorskip("fsspec")


@pytest.fixture
def disk(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(local_files, "_IN_USE", [])
    return tmp_path


def copies(disk):
    return [file for file in disk.rglob("*") if file.is_file() and file.suffix not in (".used", ".made")]


def test_a_file_on_this_disk_is_taken_as_it_is(disk):
    place = open_location(disk / "a")
    place.write(b"a")
    assert on_this_disk(place) == place.path
    assert copies(disk) == [Path(place.path)]


def test_a_remote_file_is_copied_once_and_again_when_it_has_changed(disk):
    place = open_location("memory://bucket/local-files/one")
    place.write(b"first")
    path = on_this_disk(place)
    assert Path(path).read_bytes() == b"first"
    inode = Path(path).stat().st_ino
    assert on_this_disk(place) == path and Path(path).stat().st_ino == inode
    place.write(b"second and longer")
    assert Path(on_this_disk(place)).read_bytes() == b"second and longer"
    assert len(copies(disk)) == 2  # this process uses both


def test_a_copy_that_no_process_uses_goes_when_the_next_is_made(disk):
    one, other = (open_location(f"memory://bucket/local-files/{name}") for name in ("left", "next"))
    for place in (one, other):
        place.write(b"content")
    left = Path(on_this_disk(one))
    holds = (
        "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_SH); print(1, flush=True); input()"
    )
    command = [sys.executable, "-c", holds, str(left.with_suffix(".used"))]
    user = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert user.stdout is not None and user.stdout.readline()
    local_files._IN_USE.pop().close()
    on_this_disk(other)
    assert left.exists() and on_this_disk(one) == str(left)  # another process uses it, and this one may too
    local_files._IN_USE.pop().close()
    user.communicate(b"\n")
    local_files._IN_USE.pop().close()
    last = open_location("memory://bucket/local-files/last")
    last.write(b"content")
    path = on_this_disk(last)
    assert copies(disk) == [Path(path)]

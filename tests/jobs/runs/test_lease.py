"""One driver at a time in a run folder: refused while another lives, free at once when it is dead, whatever killed it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from raysift.errors import ConfigError, StageError
from raysift.jobs.runs import lease
from raysift.jobs.runs.lease import LEASE, Lease, read_holder, take
from raysift.jobs.runs.run import Run, StageResult
from raysift.storage import Location, open_location

# Where the tests run in the background, shells let them ignore Ctrl-C, and what they start inherits that.
HOLD = """
import signal, sys, time
from raysift.errors import ConfigError
from raysift.jobs.runs.lease import take
from raysift.storage import open_location
signal.signal(signal.SIGINT, signal.default_int_handler)
folder = open_location(sys.argv[1])
while not (folder / "go").exists():
    time.sleep(0.001)
try:
    held = take(folder)
except ConfigError as error:
    print("refused", flush=True)
else:
    try:
        print("held", flush=True)
        time.sleep(120)
    finally:
        held.release()
"""

STAGE = """
import sys, time
from raysift.errors import ConfigError
from raysift.jobs.runs.run import Run, StageResult
run = Run(sys.argv[1])
def body(folder):
    print("working", flush=True)
    while not (folder / "end").exists():
        time.sleep(0.01)
    return StageResult(counts={"kept": 1})
run.stage("ingest", {}, {}, body)
print("done", flush=True)
"""


@pytest.fixture
def started():
    """Start a process that runs code on a folder; it ends with the test."""
    running = []

    def start(code, folder):
        process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()


def said(process):
    return process.stdout.readline().strip()


def test_a_second_driver_is_told_who_works_there_since_when_and_what_to_do(tmp_path, started):
    (tmp_path / "go").touch()
    other = started(HOLD, tmp_path)
    assert said(other) == "held"
    with pytest.raises(ConfigError, match=rf"is in use by process {other.pid} on .* since \d{{4}}-.*--run"):
        take(open_location(tmp_path))
    other.send_signal(signal.SIGINT)
    other.wait()
    assert not (tmp_path / LEASE).exists(), "given back, also after Ctrl-C"
    take(open_location(tmp_path)).release()
    assert not (tmp_path / LEASE).exists() and sorted(os.listdir(tmp_path)) == ["go"]


def test_after_kill_9_the_run_is_free_at_once_for_exactly_one_of_many(tmp_path, started):
    (tmp_path / "go").touch()
    dead = started(HOLD, tmp_path)
    assert said(dead) == "held"
    dead.kill()
    dead.wait()
    assert (tmp_path / LEASE).exists()
    (tmp_path / "go").unlink()
    rivals = [started(HOLD, tmp_path) for _ in range(4)]
    (tmp_path / "go").touch()
    told = [said(rival) for rival in rivals]
    assert sorted(told) == ["held", *["refused"] * 3]
    held = rivals[told.index("held")]
    assert read_holder(open_location(tmp_path) / LEASE)["pid"] == held.pid


def test_threads_of_one_process_share_the_run_and_the_last_one_gives_it_back(tmp_path):
    one, two = take(open_location(tmp_path)), take(open_location(tmp_path))
    assert one is two
    one.release()
    assert (tmp_path / LEASE).exists()
    two.release()
    assert not (tmp_path / LEASE).exists()


def elsewhere(folder, **changed):
    """The lease of a process on another machine."""
    found = {"token": "t", "host": "other", "where": "other boot", "pid": 7, "born": "1", "since": 0.0}
    (folder / LEASE).write_text(json.dumps(found | {"beat": time.time()} | changed))


def test_on_another_machine_only_a_sign_of_life_counts_whatever_its_clock_says(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "LOOK_S", 0.01)
    monkeypatch.setattr(lease, "STALE_S", 0.2)
    told = []
    for clock in (0.0, time.time() + 10**6):
        elsewhere(tmp_path, beat=clock)
        held = take(open_location(tmp_path), told.append)
        assert held.before["host"] == "other"
        held.release()
    assert told[0] == "waiting for up to 0 s to see whether process 7 on other still works there"
    elsewhere(tmp_path, beat=1.0)
    monkeypatch.setattr(lease, "STALE_S", 60.0)
    with pytest.raises(ConfigError, match="process 7 on other since"):
        take(open_location(tmp_path), tell=lambda _: elsewhere(tmp_path, beat=2.0))


def test_a_number_that_the_system_gave_to_another_process_is_not_the_holder(tmp_path):
    own = lease.process()
    elsewhere(tmp_path, **(own | {"born": "long before"}))
    take(open_location(tmp_path)).release()
    elsewhere(tmp_path, **own)
    with pytest.raises(ConfigError, match=f"process {os.getpid()} "):
        take(open_location(tmp_path))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"token": 1}'])
def test_a_damaged_lease_holds_nobody_up(tmp_path, content):
    (tmp_path / LEASE).write_text(content)
    take(open_location(tmp_path)).release()


def test_a_disk_without_hard_links_is_used_like_an_object_store(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(lease.os, "link", refused)
    monkeypatch.setattr(lease, "SETTLE_S", 0.01)
    held = take(open_location(tmp_path))
    assert read_holder(held.place)["token"] == held.own["token"] and os.listdir(tmp_path) == [LEASE]
    held.release()


def test_it_is_renewed_while_the_driver_lives_and_written_again_if_it_is_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_S", 0.01)
    held = take(open_location(tmp_path))
    first = read_holder(held.place)
    wait_for(lambda: read_holder(held.place)["beat"] > first["beat"])
    (tmp_path / LEASE).unlink()
    wait_for(lambda: read_holder(held.place) is not None)
    held.require()
    held.release()


def wait_for(condition):
    while not condition():
        time.sleep(0.005)


def test_a_driver_whose_run_was_taken_over_commits_nothing(tmp_path):
    run = Run(tmp_path / "run")

    def body(folder):
        elsewhere(tmp_path / "run")  # another machine saw no sign of life: this one was asleep
        return StageResult()

    with pytest.raises(StageError, match=r"another process has taken over .*run the command again"):
        run.stage("ingest", {}, {}, body)
    assert run.manifest("ingest") is None
    assert read_holder(run.folder / LEASE)["host"] == "other", "the other one's lease stays"


def test_two_commands_on_one_run_do_each_stage_once(tmp_path, started):
    folder = tmp_path / "run"
    first = started(STAGE, folder)
    assert said(first) == "working"
    run = Run(folder)
    with pytest.raises(ConfigError, match=f"process {first.pid}"):
        run.stage("ingest", {}, {}, lambda _: 1 / 0)
    (work,) = (place for place in (folder / "ingest").iterdir() if place.is_dir())
    (work / "end").touch()
    assert said(first) == "done"
    first.wait()
    assert run.stage("ingest", {}, {}, lambda _: 1 / 0).counts == {"kept": 1}


def test_a_stage_that_fails_and_a_finished_run_hold_nothing(tmp_path):
    run = Run(tmp_path / "run")
    with pytest.raises(ZeroDivisionError):
        run.stage("ingest", {}, {}, lambda _: 1 / 0)
    assert not (tmp_path / "run" / LEASE).exists()
    with run.replayable({"seed": 1}):
        run.stage("ingest", {}, {}, lambda _: StageResult())
        assert (tmp_path / "run" / LEASE).exists(), "held between stages"
        run.stage("score", {}, {}, lambda _: StageResult())
    assert not (tmp_path / "run" / LEASE).exists()


def test_on_an_object_store_the_last_one_to_write_holds_it(tmp_path, monkeypatch):
    """A store without conditional writes: five drivers look at once, and one finds its own lease afterwards."""
    monkeypatch.setattr(lease, "SETTLE_S", 0.5)
    folder, found = Location(SubTreeFileSystem(str(tmp_path), LocalFileSystem()), "run").make_folder(), []
    assert not folder.is_local
    together, first, usual = threading.Barrier(5), threading.local(), lease.read_holder

    def read_together(place):
        holder = usual(place)
        if not hasattr(first, "look"):
            first.look = holder
            together.wait(60)
        return holder

    def contend():
        with contextlib.suppress(ConfigError):
            found.append(Lease(folder))

    with monkeypatch.context() as patch:
        patch.setattr(lease, "read_holder", read_together)
        rivals = [threading.Thread(target=contend) for _ in range(5)]
        for rival in rivals:
            rival.start()
        for rival in rivals:
            rival.join()
    (held,) = found
    assert usual(held.place)["token"] == held.own["token"]
    held.release()
    assert not held.place.exists()

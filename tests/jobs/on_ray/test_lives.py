"""What ends a process on a real local Ray: a row is found and named, a broken device is done without, anything else has an end."""

import ctypes
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysift.actors.contract import RowActor
from raysift.errors import StageError
from raysift.jobs.on_ray import lives
from raysift.jobs.on_ray.fitting import killed_for_memory
from raysift.jobs.runs.progress import Bar
from raysift.records import ERROR, ID
from raysift.settings.resources import Resources
from raysift.storage import open_location

pytestmark = pytest.mark.ray

ROWS = 500


class Doubled(RowActor):
    """Twice the id. Each process leaves its id in `log` when it begins to answer."""

    inputs = ()
    outputs = pa.schema([("n", pa.int64())])

    def __init__(self, log):
        self.log = Path(log)

    def answer(self, rows):
        (self.log / str(os.getpid())).touch()
        self.suffer([row[ID] for row in rows])
        return [{"n": 2 * row[ID]} for row in rows]

    def suffer(self, ids):
        """What happens to this process."""


class Deadly(Doubled):
    def suffer(self, ids):
        if 317 in ids:
            ctypes.string_at(0)  # a fault of this thread; a signal would reach another one, and this one would go on


class OnABadMachine(Doubled):
    def suffer(self, ids):
        os._exit(3)


class OnABadDevice(Doubled):
    def suffer(self, ids):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with TORCH_USE_CUDA_DSA")


class OnABadDeviceOnce(OnABadDevice):
    """The first process answers a batch before its device breaks."""

    batches = 0

    def suffer(self, ids):
        self.batches += 1
        if self.batches == 2 and len(list(self.log.iterdir())) == 1:
            super().suffer(ids)


class Small(Doubled):
    """Memory holds 16 rows."""

    def suffer(self, ids):
        if len(ids) > 16:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.fixture
def answer(ray_local, tmp_path):
    """Answers the rows below a folder; returns answers, notes, and the processes that answered."""
    from raysift.jobs.on_ray.raydata import map_rows

    rows = tmp_path / "rows.parquet"
    pq.write_table(pa.table({ID: pa.array(range(ROWS), pa.int64())}), rows)

    def call(actor, out="out", **settings):
        log, notes = tmp_path / f"{out}-log", []
        log.mkdir(exist_ok=True)
        before = len(list(log.iterdir()))

        def progress(total, unit="rows"):
            bar = Bar("nowhere", "", total, unit, lambda told, words: None)
            bar.note = notes.append
            return bar

        resources = Resources(
            **{"workers": 1, "cpus_per_worker": 0.5, "block_rows": 250, "no_progress_timeout_s": 120} | settings
        )
        files = map_rows(
            [open_location(rows)], actor, {"log": str(log)}, open_location(tmp_path / out), resources, progress=progress
        )
        found = pa.concat_tables([pq.read_table(file.path) for file in files]).sort_by(ID)
        return found, notes, len(list(log.iterdir())) - before

    return call


@pytest.mark.slow
def test_a_row_that_ends_its_process_is_named_and_the_others_are_answered(answer, tmp_path):
    found, notes, processes = answer(Deadly, batch_rows=8)
    assert found[ID].to_pylist() == list(range(ROWS))
    failed = {row[ID]: row[ERROR] for row in found.to_pylist() if row[ERROR]}
    assert failed == {317: lives.WHY}
    assert found["n"].to_pylist() == [None if i == 317 else 2 * i for i in range(ROWS)]
    assert len(notes) == 1 and "row 317 has no answer" in notes[0]
    assert processes <= 2 + 3 + 3 + 1
    assert json.loads((tmp_path / "out" / lives.SET_ASIDE).read_text()) == {"317": lives.WHY}
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / lives.SET_ASIDE).write_text((tmp_path / "out" / lives.SET_ASIDE).read_text())
    other, _, processes = answer(Deadly, "again", workers=2)  # as after a driver that ended with the row in work
    assert other.equals(found) and processes <= 2
    assert answer(Deadly)[0].equals(found)


@pytest.mark.slow
def test_a_machine_that_ends_every_process_is_no_row_s_fault(answer, tmp_path):
    with pytest.raises(StageError, match=r"OnABadMachine: \d+ processes ended, .* node .*resources\.restarts=10"):
        answer(OnABadMachine, batch_rows=2)
    assert not (tmp_path / "out" / lives.SET_ASIDE).exists()


def test_a_device_that_breaks_costs_a_process_and_no_row(answer):
    found, notes, processes = answer(OnABadDeviceOnce)
    assert found["n"].to_pylist() == [2 * i for i in range(ROWS)] and found[ERROR].null_count == ROWS
    assert processes == 2
    assert len(notes) == 1
    assert notes[0].startswith("OnABadDeviceOnce: CUDA error: an illegal memory access was encountered (node ")


@pytest.mark.slow
def test_a_device_that_stays_broken_ends_the_run_with_its_error_and_node(answer):
    with pytest.raises(
        StageError, match=r"OnABadDevice: .*CUDA error: an illegal memory access .* \(node .*nvidia-smi"
    ):
        answer(OnABadDevice, restarts=0)


def test_what_fits_in_memory_is_told_once(answer):
    found, notes, _ = answer(Small)
    assert found[ERROR].null_count == ROWS
    assert notes == ["Small: batches of 16 rows fit; out of memory with 32"]


class TestSuccession:
    """A process takes over from one that ended; here both are this process, and only their notes are real."""

    BATCH = pa.table({ID: pa.array(range(8), pa.int64())})

    @pytest.fixture
    def next_life(self, ray_local, monkeypatch):
        """Begins the life after another, which worked on the batch from its second life on."""

        monkeypatch.setattr(lives, "FATE_S", 0.0)

        def begin(watch, before=None, **changes):
            life = lives.Life(watch, "Doubled")
            if before is not None:
                life.actor, life.key = before.actor, before.key
                note = json.loads(lives._get(before.key)) | changes
                lives._put(before.key, json.dumps(note))
            life.begin()
            life.works_on(self.BATCH)
            return life

        yield begin
        lives._kv()._internal_kv_del(b"a-test", del_by_prefix=True)

    def test_a_first_life_notes_no_rows_and_a_third_one_suspects_those_of_the_second(self, next_life):
        first = next_life(lives.Watch("a-test"))
        assert lives._get(f"{first.key}/rows", text=False) is None
        second = next_life(first.watch, first)
        third = next_life(first.watch, second)
        assert (first.ends, second.ends, third.ends) == (0, 1, 2) and second.suspects is None
        assert third.rows.equals(self.BATCH) and third.suspects.next == (0, 4)

    def test_ends_with_a_lost_machine_are_held_against_nothing(self, next_life):
        life = next_life(lives.Watch("a-test", restarts=1))
        for _ in range(5):
            life = next_life(life.watch, life, node="f" * 56)
        assert (life.ends, life.suspects) == (0, None)

    def test_kills_for_memory_are_the_stage_s_until_its_passes_are_the_smallest(self, next_life, monkeypatch):
        monkeypatch.setattr(lives, "_how_it_ended", lambda worker: "NODE_OUT_OF_MEMORY: the node was low on memory")
        first = next_life(lives.Watch("a-test"))
        second = next_life(first.watch, first)
        with pytest.raises(StageError, match="killed 2 times for its memory") as caught:
            next_life(first.watch, second)
        assert killed_for_memory(caught.value)
        least = next_life(lives.Watch("a-test", has_smaller=False))
        for _ in range(2):
            least = next_life(least.watch, least)
        assert least.suspects.next == (0, 4)

    def test_more_ends_than_restarts_are_refused(self, next_life):
        life = next_life(lives.Watch("a-test", restarts=2))
        for _ in range(2):
            life = next_life(life.watch, life, phase=lives.LOADING)
        with pytest.raises(
            StageError, match=r"Doubled: 3 processes ended, and no row explains it.*resources\.restarts=2"
        ):
            next_life(life.watch, life, phase=lives.LOADING)

    def test_more_rows_than_an_accident_are_refused(self, next_life, monkeypatch):
        monkeypatch.setattr(lives, "MOST_SET_ASIDE", 2)
        life = next_life(lives.Watch("a-test"))
        with pytest.raises(StageError, match="more than 2 rows ended their processes"):
            life._name([1, 2, 3])

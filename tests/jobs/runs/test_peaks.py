"""Peak memory of a stage: a process's own, reset for each stage, gathered over workers, and never a reason to fail."""

import json
import mmap

import pytest

from raysift.jobs.runs.peaks import forget_peak, gather, peak_memory, stage_peaks
from raysift.jobs.runs.progress import Bar
from raysift.jobs.runs.run import Run, StageResult
from raysift.manifest import Manifest

MIB = 2**20


def touch(size):
    """Take and give back so many bytes, past the allocator."""
    with mmap.mmap(-1, size) as held:
        for place in range(0, size, 4096):
            held[place] = 1


def test_a_peak_stays_after_memory_was_given_back_and_starts_anew_when_forgotten():
    forget_peak()
    before = peak_memory()["host"]
    touch(200 * MIB)
    high = peak_memory()["host"]
    assert high - before > 150 * MIB
    forget_peak()
    assert peak_memory()["host"] < high - 100 * MIB


def test_workers_are_gathered_by_the_largest_memory_and_all_tokens():
    told = [{"host": 5, "tokens": 10}, {"host": 9, "gpu": 3, "tokens": 1}, {"host": 7}]
    assert gather(told, 4) == {"host": 9, "gpu": 3, "tokens": 11, "workers": 3, "driver": 4}
    assert gather([], 4) == {"driver": 4}


def test_a_manifest_has_the_peaks_and_an_older_one_is_read_without_them(tmp_path):
    run = Run(tmp_path / "run")
    done = run.stage("count", {}, {}, lambda folder: StageResult())
    assert done.peaks["driver"] > MIB
    place = tmp_path / "run" / "count" / "manifest.json"
    older = {name: value for name, value in json.loads(place.read_text()).items() if name != "peaks"}
    assert Manifest.model_validate(older).peaks == {} and older["fingerprint"] == done.fingerprint
    assert run.manifest("count").peaks == done.peaks


def test_a_reader_that_fails_leaves_the_account_empty_and_the_stage_whole():
    def broken(name):
        raise OSError("the store is gone")

    with stage_peaks() as peaks:
        peaks.read_by(broken)
    assert peaks.read() == {}


@pytest.mark.ray
def test_a_worker_s_memory_and_tokens_are_told_once_for_each_process_and_forgotten(ray_local, tmp_path):
    import ray
    from ray.experimental.internal_kv import _internal_kv_list

    from raysift.jobs.on_ray.peaks import peaks_name, tell, telling

    def work(size):
        touch(size)
        return size

    @ray.remote(num_cpus=1)
    class Reader:
        def __init__(self, name):
            self.name = name

        def read(self):
            for _ in range(3):
                tell(self.name, 7)

    names = []

    def body(folder):
        names.append(peaks_name())
        reader = Reader.remote(names[0])
        ray.get(reader.read.remote())
        task = ray.remote(num_cpus=1)(telling(work))
        ray.get([task.remote(size) for size in (1, 300 * MIB)])
        return StageResult()

    peaks = Run(tmp_path / "run").stage("count", {}, {}, body).peaks
    assert peaks["tokens"] == 21 and 2 <= peaks["workers"] <= 3
    assert 300 * MIB < peaks["host"] < 3000 * MIB
    assert names and _internal_kv_list(names[0].encode()) == []


def test_tokens_a_second_count_from_the_first_row_and_are_shown():
    now = [0.0]
    bar = Bar("nowhere", "", 100, "rows", lambda told, words: None, clock=lambda: now[0])
    bar.update(10, tokens=1000)
    assert "tokens_per_second" not in bar.figures()
    now[0] = 10.0
    bar.update(30, tokens=6000)
    assert bar.figures()["tokens_per_second"] == 500 and "500 tokens/s" in bar.text()
    steps = Bar("nowhere", "", 100, "steps", lambda told, words: None, clock=lambda: now[0])
    steps.tokens_each = 20.0
    steps.update(1)
    now[0] = 20.0
    steps.update(6)
    assert steps.figures()["tokens_per_second"] == 10

"""`cover` gives one answer: in this process or on Ray, for any number of shards, also when shards or the driver are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_embeddings  # by this name in a driver of its own, too
from tiny_embeddings import write_embeddings

from raysift.errors import DataError, StageError
from raysift.jobs.coverage import covering
from raysift.jobs.coverage import shards as ray_shards
from raysift.jobs.coverage.covering import cover
from raysift.kcenter.picking import k_center
from raysift.kcenter.settings import CoverageSettings
from raysift.settings.resources import Resources
from raysift.storage import open_location

ROWS, DIMENSION, K = 3000, 12, 300
HALF = {"cpus_per_worker": 0.5}


def points() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    ids = rng.permutation(10**6)[:ROWS] - 500_000
    vectors = rng.standard_normal((40, DIMENSION))[rng.integers(0, 40, ROWS)] + 0.2 * rng.standard_normal(
        (ROWS, DIMENSION)
    )
    vectors[:200] = vectors[200:400]  # and duplicates
    return ids, np.float32(vectors)


def write_files(folder: Path) -> list[Any]:
    """Two files of many row groups, with three rows that have no vector."""
    ids, vectors = points()
    places = [open_location(folder / name) for name in ("a.parquet", "b.parquet")]
    parts = np.split(np.arange(ROWS), [1000])
    for place, rows, failed in zip(places, parts, ({10**7: "no text"}, {2 * 10**7: "x", 3 * 10**7: "y"}), strict=True):
        write_embeddings(place, ids[rows], vectors[rows], failed)
    return places


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_embeddings, "_ROW_GROUP_BYTES", 4 * DIMENSION * 150)
    return write_files(tmp_path)


@pytest.fixture(scope="module")
def expected():
    ids, vectors = points()
    return k_center(vectors, K, ids, threads=1)


class Stop(Exception):
    pass


class StopAfter:
    """Stands in for a progress bar: does something once so many centres are there."""

    def __init__(self, count: int, act: Any) -> None:
        self.count, self.act = count, act

    def update(self, done: int, total: int | None = None, words: str = "") -> None:
        if done >= self.count:
            self.act()


def stop():
    raise Stop


def test_centers_are_written_in_order_with_their_radii_and_every_row_is_accounted_for(files, expected, tmp_path):
    report = cover(files, K, folder=open_location(tmp_path / "out"))
    table = pq.read_table(tmp_path / "out/centers.parquet")
    assert table["id"].to_pylist() == report.ids.tolist() == expected.ids.tolist()
    assert table["rank"].to_pylist() == list(range(1, K + 1))
    assert table["radius"].to_pylist() == [None, *expected.radii[1:].tolist()]
    assert report.counts == {"rows_in": ROWS + 3, "failed": 3, "kept": K}
    assert report.notes == ("3 rows without a vector were left out",)
    assert report.values["radius"] == expected.final_radius
    assert report.values["ratio"] == 2.0
    assert report.values["curve"][-1] == [K, expected.radii[-1]]
    assert len(report.values["curve"]) <= 200
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["centers.parquet"]


@pytest.mark.ray
@pytest.mark.parametrize("shards", [1, 2, pytest.param(7, marks=pytest.mark.slow)])
def test_shards_on_ray_pick_what_one_process_picks(ray_local, files, expected, tmp_path, shards):
    report = cover(files, K, resources=Resources(workers=shards, **HALF), folder=open_location(tmp_path / "out"))
    assert report.values["shards"] == shards
    assert report.ids.tolist() == expected.ids.tolist()
    assert report.centers.radii.tolist() == expected.radii.tolist()
    assert report.values["radius"] == expected.final_radius


def test_rows_among_which_to_choose_and_centers_to_start_from(files, tmp_path):
    ids, vectors = points()
    among, start = ids[:2000], ids[2500:2600]
    report = cover(files, 50, folder=open_location(tmp_path / "out"), among=among, initial=start)
    direct = k_center(vectors[:2000], 50, among, initial=(start, vectors[2500:2600]), threads=1)
    assert report.ids.tolist() == direct.ids.tolist()
    assert report.counts["rows_in"] == 2000 + 3
    inside = cover(files, 50, folder=open_location(tmp_path / "in"), initial=(start, vectors[2500:2600]))
    assert not np.isin(inside.ids, start).any()
    with pytest.raises(DataError, match="4 of 2004 rows to choose from have no vector, and only 3 failed"):
        cover(files, 5, folder=open_location(tmp_path / "bad"), among=np.append(among, [2, 4, 6, 8]))


def test_fewer_distinct_vectors_than_asked_are_said_or_refused(files, tmp_path):
    ids, _ = points()
    among = np.concatenate([ids[:20], ids[200:220]])  # twins of each other
    report = cover(files, 30, folder=open_location(tmp_path / "out"), among=among)
    message = "30 rows asked, 20 found: the other 20 have the same vector as a row that is chosen"
    assert (len(report.ids), report.notes[-1]) == (20, message)
    strict = {"settings": CoverageSettings(allow_fewer=False), "section": "mods.centers"}
    with pytest.raises(
        DataError, match=rf"{message}, and mods\.centers\.allow_fewer is off\. Lower the budget, or set"
    ):
        cover(files, 30, folder=open_location(tmp_path / "no"), among=among, **strict)


def test_fewer_rows_than_asked_are_not_called_alike(files, tmp_path):
    ids, _ = points()
    report = cover(files, 30, folder=open_location(tmp_path / "out"), among=ids[:20], initial=ids[:4])
    assert report.notes[-1] == "30 rows asked, 16 found: there are no more rows with a vector to choose from"


@pytest.mark.parametrize("mode", ["exact", "coresets"])
def test_rows_that_all_lie_on_initial_centers_give_no_further_ones(mode, tmp_path):
    place = open_location(tmp_path / "x.parquet")
    write_embeddings(place, np.arange(10), np.repeat(np.eye(5, dtype=np.float32), 2, axis=0), {})
    report = cover(
        [place], 3, CoverageSettings(mode=mode), folder=open_location(tmp_path / "o"), initial=np.arange(0, 10, 2)
    )
    assert len(report.ids) == 0
    assert report.notes[0] == "3 rows asked, 0 found: the other 5 have the same vector as a row that is chosen"


@pytest.mark.parametrize("k", [90, 100])
def test_core_sets_that_hold_too_few_rows_are_filled_up(k, tmp_path):
    vectors = np.float32(np.random.default_rng(0).standard_normal((104, 8)))
    vectors[100:] = vectors[:4]
    place = open_location(tmp_path / "x.parquet")
    write_embeddings(place, np.arange(104), vectors, {})
    # At factor 1 and 16 parts some parts have fewer rows than are asked of each, and the others send no more than that.
    settings = CoverageSettings(mode="coresets", coreset_factor=1, allow_fewer=False)
    report = cover([place], k, settings, folder=open_location(tmp_path / "out"))
    assert len(report.ids) == len(np.unique(vectors[report.ids], axis=0)) == k
    with pytest.raises(DataError, match="101 rows asked, 100 found: the other 4 have the same vector"):
        cover([place], 101, settings, folder=open_location(tmp_path / "more"))


def test_a_run_that_was_cut_off_goes_on_from_its_centers(files, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(covering, "CHECKPOINT_S", 0)
    monkeypatch.setattr(covering, "greedy", lambda *a: _in_small_batches(monkeypatch, *a))
    folder = open_location(tmp_path / "out")

    def cut_off(count):
        with pytest.raises(Stop):
            cover(files, K, folder=folder, progress=StopAfter(count, stop))

    cut_off(50)
    cut_off(150)
    kept = pq.read_table(tmp_path / "out/picked.parquet")["id"].to_pylist()
    assert 150 <= len(kept) < K
    report = cover(files, K, folder=folder)
    assert report.values["resumed"] == len(kept)
    assert report.ids.tolist() == expected.ids.tolist()
    assert report.centers.radii.tolist() == expected.radii.tolist()


def test_fewer_centers_than_a_cut_off_run_had_are_its_beginning(files, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(covering, "CHECKPOINT_S", 0)
    with pytest.raises(Stop):
        cover(files, K, folder=open_location(tmp_path / "out"), progress=StopAfter(150, stop))
    report = cover(files, 20, folder=open_location(tmp_path / "out"))
    assert report.ids.tolist() == expected.ids[:20].tolist()
    assert report.values["radius"] == expected.radii[20]


def test_a_forecast_is_given_where_the_work_is_worth_a_trial(files, tmp_path, monkeypatch):
    monkeypatch.setattr(covering, "TRIAL_WORTH", 0)
    values = cover(files, 20, folder=open_location(tmp_path / "out")).values
    assert values["forecast_seconds"] >= 0
    assert values["forecast_bytes_a_shard"] > ROWS * DIMENSION * 4


@pytest.mark.ray
def test_core_sets_are_labelled_measured_and_the_same_on_ray(files, expected, tmp_path, ray_local):
    settings = CoverageSettings(mode="coresets", coreset_parts=3, coreset_factor=2)
    report = cover(files, 60, settings, Resources(**HALF), folder=open_location(tmp_path / "ray"))
    ids, vectors = points()
    chosen = vectors[[ids.tolist().index(i) for i in report.ids.tolist()]].astype(np.float64)
    reached = np.min([((vectors - center) ** 2).sum(1) for center in chosen], axis=0)
    assert report.values["exact"] is False
    assert report.values["rows_of_core_sets"] == 120
    assert report.values["radius"] == np.sqrt(reached.max())
    assert "approximate, by core-sets" in report.notes[-1]
    load = ray_shards.Load(covering.survey(files).pieces, DIMENSION, "euclidean", "cpu", 1)
    here = [covering.core_set_of_part(n, load, None, 0, 3, 40, covering.Picked()) for n in range(3)]
    centers, _ = covering.cover_union(here, 60, 0, covering.Picked(), load.options())
    assert centers.ids.tolist() == report.ids.tolist()


@pytest.mark.ray
@pytest.mark.slow
def test_shards_that_are_killed_are_built_again_and_pick_the_same(ray_local, files, expected, tmp_path, monkeypatch):
    import ray

    exchange = ray_shards.RayShards.exchange
    killed = []

    def and_kill(self, batch, wanted):
        if batch.start > 60 and len(killed) < 3:
            killed.append(batch.start)
            ray.kill(self.actors[len(killed) % 2])
        return exchange(self, batch, wanted)

    monkeypatch.setattr(ray_shards.RayShards, "exchange", and_kill)
    monkeypatch.setattr(covering, "greedy", lambda *a: _in_small_batches(monkeypatch, *a))
    report = cover(files, K, resources=Resources(workers=2, **HALF), folder=open_location(tmp_path / "out"))
    assert len(killed) == 3 == report.values["restarts"]
    assert report.ids.tolist() == expected.ids.tolist()
    assert report.values["radius"] == expected.final_radius


def _in_small_batches(monkeypatch, *arguments):
    """So few candidates that there are many exchanges to kill a shard in."""
    from raysift.kcenter import picking as kcenter

    for name in ("FIRST_WANTED", "LEAST_WANTED", "MOST_WANTED"):
        monkeypatch.setattr(kcenter, name, 40)
    return kcenter.greedy(*arguments)


@pytest.mark.ray
@pytest.mark.slow
def test_shards_that_die_again_and_again_end_the_run_with_the_reason(ray_local, files, tmp_path, monkeypatch):
    import ray

    exchange = ray_shards.RayShards.exchange

    def and_kill(self, batch, wanted):
        ray.kill(self.actors[0])
        return exchange(self, batch, wanted)

    monkeypatch.setattr(ray_shards.RayShards, "exchange", and_kill)
    monkeypatch.setattr(covering, "greedy", lambda *a: _in_small_batches(monkeypatch, *a))
    with pytest.raises(StageError, match=r"shards were lost 3 times, the last .0 of 2. with '.*'"):
        cover(files, K, resources=Resources(workers=2, restarts=2, **HALF), folder=open_location(tmp_path / "out"))


DRIVER = """
import os, signal, sys
sys.path[:0] = [sys.argv[1], os.path.dirname(os.path.dirname(sys.argv[1]))]
import test_coverage as t
t.covering.CHECKPOINT_S = 0
from raysift.kcenter import picking as kcenter
kcenter.FIRST_WANTED = kcenter.LEAST_WANTED = kcenter.MOST_WANTED = 40
die = t.StopAfter(int(sys.argv[3]), lambda: os.kill(os.getpid(), signal.SIGKILL))
files = [t.open_location(name) for name in sys.argv[4:]]
report = t.cover(files, t.K, folder=t.open_location(sys.argv[2]), progress=die)
print("resumed", report.values["resumed"])
"""


@pytest.mark.slow
def test_a_driver_that_is_killed_again_and_again_ends_with_the_same_centers(files, expected, tmp_path):
    def drive(count):
        arguments = [str(Path(__file__).parent), str(tmp_path / "out"), str(count), *(place.path for place in files)]
        environment = os.environ | {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, "-c", DRIVER, *arguments], capture_output=True, text=True, timeout=200, env=environment
        )

    for count in (1, 80, 200):
        assert drive(count).returncode == -signal.SIGKILL
    done = drive(10**9)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) >= 200
    assert pq.read_table(tmp_path / "out/centers.parquet")["id"].to_pylist() == expected.ids.tolist()


@pytest.mark.ray
def test_shards_compute_on_no_device_that_ray_did_not_grant(ray_local, monkeypatch):
    import ray
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    seen = [
        ray_shards.granted("auto"),
        ray_shards.granted("cuda"),
        ray.get(ray.remote(ray_shards.granted).remote("cuda")),
    ]
    assert seen == ["cpu"] * 3
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [3])
    assert (ray_shards.granted("auto"), ray_shards.granted("cpu")) == ("cuda", "cpu")

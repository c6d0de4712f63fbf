"""MoDS and its two yardsticks, end to end on nano models: sizes, thresholds, fates, and what a kill leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest

import raysift
from raysift.errors import ConfigError
from raysift.jobs.rescore import find_manifest
from raysift.jobs.tables import read_chunks
from raysift.kcenter.picking import k_center
from raysift.methods.coverage import COVERED
from raysift.methods.mods import AUGMENTED, KNOWN, POOR, SEED
from raysift.nano.world import generate_pool

ROWS, BUDGET = 150, 12
HERE = {"train_workers": 0, "workers": 1}
MODS = {"seed_train": {"recipe": "nano", "epochs": 2}, "generation": {"max_new_tokens": 12, "backend": "transformers"}}
STAGES = (
    "quality",
    "good",
    "embed",
    "seeds",
    "tune",
    "generate",
    "necessity",
    "needed",
    "augmented",
    "order",
    "choose",
)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    path = tmp_path_factory.mktemp("mods") / "pool.jsonl"
    path.write_bytes(b"\n".join(orjson.dumps(row) for row in generate_pool(ROWS, 4)))
    return path


def select(pool, folder, method="mods", budget=BUDGET, resources=None, **mods):
    sections = {"mods": MODS | mods} if method == "mods" else {}
    placed = HERE | (resources or {})
    return raysift.select(method, str(pool), run=str(folder), budget=str(budget), resources=placed, **sections)


@pytest.fixture(scope="module")
def chosen(ray_local, pool):
    return select(pool, pool.parent / "run")


def scores_of(selection):
    return {row["id"]: row for row in pq.read_table(f"{selection.run.folder.path}/scores.parquet").to_pylist()}


def bar_of(selection, stage):
    return find_manifest(selection.run, stage).values["cut"]["value"]


@pytest.mark.ray
def test_seeds_then_augmented_rows_in_the_sizes_asked_and_no_row_twice(chosen):
    fates = chosen.table()["fate"].to_pylist()
    assert fates == [SEED] * (BUDGET // 2) + [AUGMENTED] * (BUDGET // 2)
    assert len(set(chosen.ids)) == BUDGET
    assert chosen.table()["order"].to_pylist() == list(range(1, BUDGET + 1))


@pytest.mark.ray
def test_every_row_has_a_fate_that_its_scores_bear_out(chosen):
    rows, alpha, beta = scores_of(chosen), bar_of(chosen, "good"), bar_of(chosen, "needed")
    assert len(rows) == find_manifest(chosen.run, "ingest").counts["kept"]
    for row in rows.values():
        assert (row["quality"] > alpha) == (row["fate"] != POOR)
        assert (row["necessity"] is None) == (row["fate"] == POOR)
        if row["fate"] in (AUGMENTED, COVERED):
            assert row["necessity"] < beta
        if row["fate"] == KNOWN:
            assert row["necessity"] >= beta
    counts = find_manifest(chosen.run, "order").counts
    assert counts["rows_in"] == counts["kept"] + sum(counts["rejected"].values())
    assert Counter(row["fate"] for row in rows.values())[AUGMENTED] == BUDGET // 2


@pytest.mark.ray
def test_seeds_are_those_of_plain_k_center_over_the_good_rows(chosen):
    files = chosen.run.files(find_manifest(chosen.run, "embed"), "answers")
    table = next(iter(read_chunks(files, ["id", "embedding"]))) if len(files) == 1 else None
    assert table is not None
    points = np.stack(table["embedding"].to_numpy())
    centers = k_center(points, BUDGET // 2, table["id"].to_numpy(), seed=0)
    assert centers.ids.tolist() == chosen.ids[: BUDGET // 2]


@pytest.mark.ray
def test_explain_tells_what_became_of_a_row_and_what_is_near_it(chosen):
    rows, folder = scores_of(chosen), chosen.run.folder.path
    of = {row["fate"]: row["id"] for row in rows.values()}
    assert "quality not above alpha" in raysift.explain(folder, of[POOR]).verdict
    assert raysift.explain(folder, of[SEED]).verdict.startswith("selected as number")
    covered = raysift.explain(folder, of[COVERED])
    assert "covered" in covered.verdict
    assert covered.own["nearest chosen row"] in chosen.ids
    assert covered.own["distance"] >= 0


@pytest.mark.ray
@pytest.mark.slow
def test_without_a_second_k_center_all_needed_rows_are_taken(chosen, pool, tmp_path):
    found = select(pool, tmp_path / "run", second_coverage=False)
    rows, beta = scores_of(found), bar_of(found, "needed")
    needed = {i for i, row in rows.items() if row["necessity"] is not None and row["necessity"] < beta}
    assert set(found.ids) == needed | set(chosen.ids[: BUDGET // 2])
    assert len(found.ids) == len(set(found.ids)) > BUDGET


@pytest.mark.ray
@pytest.mark.slow
def test_seeds_alone_tune_no_model_and_a_short_pool_gives_what_it_has(pool, tmp_path):
    found = select(pool, tmp_path / "run", seed_share=1, alpha={"quantile": 0.95}, budget=20)
    good = find_manifest(found.run, "good").counts["kept"]
    assert len(found) == good < 20
    assert find_manifest(found.run, "tune") is not None  # the seeds fell short of the budget: the rest was looked for
    whole = select(pool, tmp_path / "whole", seed_share=1)
    assert len(whole) == BUDGET
    assert find_manifest(whole.run, "tune") is None


@pytest.mark.ray
def test_quality_takes_the_best_and_coverage_the_farthest(chosen, pool, tmp_path):
    best = select(pool, tmp_path / "quality", "quality")
    quality = {i: row["quality"] for i, row in scores_of(chosen).items()}
    assert best.ids == sorted(quality, key=lambda i: (-quality[i], i))[:BUDGET]
    wide = select(pool, tmp_path / "coverage", "coverage")
    radii = wide.table()["radius"].to_pylist()
    assert len(wide) == BUDGET and radii[1:] == sorted(radii[1:], reverse=True)


@pytest.mark.ray
@pytest.mark.slow
def test_workers_and_batches_change_no_row(chosen, pool, tmp_path):
    other = select(pool, tmp_path / "run", resources={"workers": 2, "batch_rows": 16, "block_rows": 40})
    assert other.ids == chosen.ids


# --- kills -----------------------------------------------------------------------------------------------------------


def command(pool, run):
    return [
        *(sys.executable, "-m", "raysift.jobs", "mods", "--pool", str(pool), "--run", str(run), "--log", "json"),
        *(f"budget={BUDGET}", "mods.seed_train.recipe=nano", "mods.seed_train.epochs=2"),
        *("mods.generation.max_new_tokens=12", "mods.generation.backend=transformers"),
        *("resources.train_workers=0", "resources.workers=1", "resources.block_rows=20", "resources.batch_rows=20"),
    ]


def kill_when(arguments, stage, ready):
    """Start the command, and SIGKILL its driver once the stage has begun and `ready` holds; True if it came to that."""
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        event = json.loads(line) if line.startswith("{") else {}
        if event.get("stage") == stage and event.get("event") in ("started", "continued"):
            while not ready() and process.poll() is None:
                time.sleep(0.05)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            return True
    process.wait()
    return False


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_driver_killed_in_every_stage_ends_with_the_undisturbed_selection_and_repeats_no_answer(pool, tmp_path):
    subprocess.run(command(pool, tmp_path / "calm"), check=True, capture_output=True, timeout=300)
    run = tmp_path / "killed"
    answered = lambda: list((run / "generate").glob("*/answers/*.parquet"))  # noqa: E731
    finished = {}
    for stage in STAGES:
        ready = answered if stage == "generate" else lambda: True
        assert kill_when(command(pool, run), stage, ready), stage
        if stage == "generate":
            committed = {i for file in (run / "generate").glob("*/done/*.parquet") for i in ids_in(file)}
            finished = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in answered()}
            finished = {file: what for file, what in finished.items() if ids_in(file) <= committed}
    done = subprocess.run(command(pool, run), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    calm, killed = (pq.read_table(tmp_path / name / "selection.parquet") for name in ("calm", "killed"))
    assert killed.equals(calm)
    assert finished
    for file, (when, content) in finished.items():
        assert (file.stat().st_mtime_ns, file.read_bytes()) == (when, content)


def ids_in(file):
    try:
        return set(pq.read_table(file, columns=["id"])["id"].to_pylist())
    except Exception:  # half a file, of a writer that was killed
        return {None}


@pytest.mark.ray
def test_a_scorer_through_vllm_is_refused_where_vllm_is_not_installed(ray_local, pool, tmp_path, monkeypatch):
    monkeypatch.setattr("raysift.jobs.generation.vllm_version", lambda: None)
    with pytest.raises(ConfigError, match="quality: backend=vllm is set and vLLM is not installed"):
        raysift.quality(str(pool), run=str(tmp_path / "run"), quality={"scorer": {"kind": "judge", "backend": "vllm"}})
    with pytest.raises(ConfigError, match="ifd needs the losses"):
        raysift.quality(str(pool), run=str(tmp_path / "ifd"), quality={"scorer": {"kind": "ifd", "backend": "vllm"}})


@pytest.mark.ray
@pytest.mark.extra
def test_quality_through_vllm_ranks_as_through_transformers(chosen, pool, tmp_path):
    pytest.importorskip("vllm", reason="needs vLLM; see CONTRIBUTING.md for one without a GPU")
    found = raysift.quality(
        str(pool),
        run=str(tmp_path / "run"),
        budget=str(BUDGET),
        quality={"scorer": {"backend": "vllm"}},
        resources=HERE,
    )
    plain = {i: row["quality"] for i, row in scores_of(chosen).items()}
    through = {i: row["score"] for i, row in scores_of(found).items()}
    assert through.keys() == plain.keys()
    assert max(abs(through[i] - plain[i]) for i in plain) < 0.01

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
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sound_reports import blocks, rows, sound, stages

import raysift
from raysift.actors.prompts import ANSWER
from raysift.config import make_config
from raysift.errors import ConfigError, DataError, ModelError, StageError
from raysift.jobs.coverage import centers
from raysift.jobs.recipes import run_method
from raysift.jobs.report.record import report_of
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.run import Run
from raysift.jobs.runs.tables import read_chunks
from raysift.jobs.scoring import mods, quality
from raysift.kcenter.picking import k_center
from raysift.kcenter.settings import CoverageSettings
from raysift.manifest import Manifest
from raysift.methods.coverage import COVERED
from raysift.methods.mods import AUGMENTED, KNOWN, POOR, SEED
from raysift.nano.world import generate_pool
from raysift.records import ERROR, ID, MESSAGE, MESSAGES, META
from raysift.scoring.columns import SCORE_COLUMN
from raysift.scoring.settings import QualitySettings, Threshold
from raysift.storage import open_location

ROWS, BUDGET = 150, 12
HERE = {"train": 0, "workers": 1}
MODS = {
    "seed_train": {"recipe": "nano", "epochs": 2, "template": "chatml"},
    "generation": {"max_new_tokens": 12, "backend": "transformers"},
}
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


def select(pool, folder, method="mods", budget=BUDGET, resources=None, reuse=None, **mods):
    sections = {"mods": MODS | mods} if method == "mods" else {}
    sections |= {"resources": HERE | (resources or {}), "reuse": [reuse.run.name] if reuse else []}
    return raysift.select(method, str(pool), run=str(folder), budget=str(budget), **sections)


@pytest.fixture(scope="module")
def chosen(ray_local, pool):
    return select(pool, pool.parent / "run")


class Notes(Console):
    def __init__(self):
        super().__init__("quiet")
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def beside(selection, folder):
    """A run that does single stages anew from what another left."""
    run = Run(str(folder), Notes())
    return run, {manifest.stage: manifest for manifest in selection.run.opened.manifests()}


def config_of_mods(**settings):
    return make_config({"method": "mods", "resources": HERE, "mods": MODS | settings})


def scores_of(selection):
    return {row["id"]: row for row in pq.read_table(f"{selection.run.opened.folder.path}/scores.parquet").to_pylist()}


def bar_of(selection, stage):
    return selection.run.opened.manifest(stage).values["cut"]["value"]


@pytest.mark.ray
def test_seeds_then_augmented_rows_in_the_sizes_asked_and_no_row_twice(chosen):
    fates = chosen.table()["fate"].to_pylist()
    assert fates == [SEED] * (BUDGET // 2) + [AUGMENTED] * (BUDGET // 2)
    assert len(set(chosen.ids)) == BUDGET
    assert chosen.table()["order"].to_pylist() == list(range(1, BUDGET + 1))


@pytest.mark.ray
def test_the_tuned_model_answers_under_the_template_of_its_training(chosen):
    assert chosen.run.opened.manifest("generate").settings["generation"]["template"] == "chatml"


def test_every_row_has_a_fate_that_its_scores_bear_out(chosen):
    rows, alpha, beta = scores_of(chosen), bar_of(chosen, "good"), bar_of(chosen, "needed")
    assert len(rows) == chosen.run.opened.manifest("ingest").counts["kept"]
    for row in rows.values():
        assert (row["quality"] > alpha) == (row["fate"] != POOR)
        assert (row["necessity"] is None) == (row["fate"] == POOR)
        if row["fate"] in (AUGMENTED, COVERED):
            assert row["necessity"] < beta
        if row["fate"] == KNOWN:
            assert row["necessity"] >= beta
    counts = chosen.run.opened.manifest("order").counts
    assert counts["rows_in"] == counts["kept"] + sum(counts["rejected"].values())
    assert Counter(row["fate"] for row in rows.values())[AUGMENTED] == BUDGET // 2


@pytest.mark.ray
def test_seeds_are_those_of_plain_k_center_over_the_good_rows(chosen):
    files = chosen.run.opened.files(chosen.run.opened.manifest("embed"), "answers")
    table = next(iter(read_chunks(files, ["id", "embedding"]))) if len(files) == 1 else None
    assert table is not None
    points = np.stack(table["embedding"].to_numpy())
    found = k_center(points, BUDGET // 2, table["id"].to_numpy(), seed=0)
    assert found.ids.tolist() == chosen.ids[: BUDGET // 2]


@pytest.mark.ray
def test_explain_tells_what_became_of_a_row_and_what_is_near_it(chosen):
    rows, folder = scores_of(chosen), chosen.run.opened.folder.path
    of = {row["fate"]: row["id"] for row in rows.values()}
    assert "quality not above alpha" in raysift.explain(folder, of[POOR]).verdict
    assert raysift.explain(folder, of[SEED]).verdict.startswith("selected as number")
    covered = raysift.explain(folder, of[COVERED])
    assert "covered" in covered.verdict
    assert covered.nearest.id in chosen.ids
    assert f"at a distance of {covered.nearest.distance:.3g}" in covered.reasons[-1]


@pytest.mark.ray
def test_the_bar_that_explain_names_lets_a_row_pass(chosen, tmp_path):
    poor = next(row["id"] for row in scores_of(chosen).values() if row["fate"] == POOR)
    (change,) = raysift.explain(chosen, poor).changes
    share = float(change.settings[0].removeprefix("mods.alpha.quantile="))
    run, of = beside(chosen, tmp_path / "run")
    column = SCORE_COLUMN["reward"]
    good = quality.keep(run, "good", Threshold(quantile=share), "above", of["ingest"], of["quality"], column)
    passed = [row for file in run.files(good, "rows") for row in pq.read_table(file.path)["id"].to_pylist()]
    assert poor in passed


@pytest.mark.ray
@pytest.mark.slow
def test_without_a_second_k_center_all_needed_rows_are_taken(chosen, pool, tmp_path):
    found = select(pool, tmp_path / "run", reuse=chosen, second_coverage=False)
    rows, beta = scores_of(found), bar_of(found, "needed")
    needed = {i for i, row in rows.items() if row["necessity"] is not None and row["necessity"] < beta}
    assert set(found.ids) == needed | set(chosen.ids[: BUDGET // 2])
    assert len(found.ids) == len(set(found.ids)) > BUDGET


@pytest.mark.ray
@pytest.mark.slow
def test_seeds_alone_tune_no_model_and_a_short_pool_gives_what_it_has(chosen, pool, tmp_path):
    found = select(pool, tmp_path / "run", reuse=chosen, alpha={"quantile": 0.95}, budget=20)
    good = found.run.opened.manifest("good").counts["kept"]
    assert len(found) == good < 20
    assert found.run.opened.manifest("tune") is None  # the seeds are all good rows
    whole = select(pool, tmp_path / "whole", reuse=chosen, seed_share=1)
    assert len(whole) == BUDGET
    assert whole.run.opened.manifest("tune") is None


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


# --- what falls short is said, and what cannot work is refused early ------------------------------------------------


@pytest.mark.ray
def test_all_needed_rows_are_counted_against_the_number_asked(chosen, tmp_path):
    run, done = beside(chosen, tmp_path)
    config = config_of_mods(second_coverage=False)
    taken = mods.augment(run, config, config.mods, done["needed"], done["embed"], done["seeds"], 6).counts
    assert taken["asked"] == 6 < taken["kept"]
    assert run.console.notes == [
        f"augmented: 6 rows asked, {taken['kept']} taken; mods.second_coverage is off, so every row below beta is taken, "
        "and no other"
    ]


@pytest.mark.ray
def test_no_row_left_to_cover_is_said_or_refused(chosen, tmp_path):
    run, done = beside(chosen, tmp_path)
    config, seeds = config_of_mods(), done["seeds"]
    asked = (seeds, done["embed"], 3, seeds)
    assert centers.choose_centers(run, config, "more", CoverageSettings(), *asked).counts["kept"] == 0
    assert run.console.notes == ["more: 3 rows asked, and there are none left to choose from"]
    with pytest.raises(DataError, match=r"strict: 3 rows asked.* set mods\.centers\.allow_fewer=true"):
        centers.choose_centers(run, config, "strict", CoverageSettings(allow_fewer=False), *asked)


@pytest.mark.ray
@pytest.mark.parametrize("bar", [{"value": 100}, {"quantile": 1}])
def test_a_bar_that_no_row_passes_ends_the_run_with_the_scores_found(chosen, tmp_path, bar):
    run, done = beside(chosen, tmp_path)
    column = quality.score_column(config_of_mods().mods)
    asked = ("good", Threshold(**bar), "above", done["ingest"], done["quality"], column)
    ((name, value),), low = bar.items(), min(row["quality"] for row in scores_of(chosen).values())
    message = (
        rf"good: none of \d+ scores, from {low:.6g} to .* is above the bar \(mods\.alpha\.{name}={value}.*mods\.alpha\."
    )
    with pytest.raises(DataError, match=message):
        quality.keep(run, *asked, needed_by="mods.alpha")
    assert not run.manifests()


@pytest.mark.ray
def test_a_generation_without_any_answer_ends_there_with_the_reason(chosen, tmp_path):
    run, done = beside(chosen, tmp_path)
    config = config_of_mods(generation={"max_new_tokens": 1023, "backend": "transformers"})
    with pytest.raises(
        StageError, match=r"generate: (\d+) of \1 rows have no answer; the first: the prompt has \d+ tokens"
    ):
        mods.generate(run, config, config.mods, done["good"], done["tune"])
    assert not run.manifests()


def write_answers(folder, scores):
    """Stands in for a pool of scorers; None fails."""
    errors = pa.array([None if score is not None else f"row {i} is odd" for i, score in enumerate(scores)], pa.string())
    (folder / "answers").make_folder()
    column, number = SCORE_COLUMN["reward"], pa.array(scores, pa.float64())
    table = {"id": np.arange(len(scores)), column: number, "truncated": [False] * len(scores), "error": errors}
    pq.write_table(pa.table(table), (folder / "answers/a.parquet").path)
    return [folder / "answers/a.parquet"]


def test_scores_are_described_and_rows_without_one_are_told(tmp_path, monkeypatch):
    run, config, scorer = Run(str(tmp_path), Notes()), make_config({}), QualitySettings()
    given = [0.5] * 7 + [None, None, 1.0]
    monkeypatch.setattr(quality, "_score_on_actors", lambda *a: write_answers(a[-1], given))
    result = quality.score_answers("quality", run, config, scorer, [], 10, run.folder)
    assert sum(one["count"] for one in result.values["histogram"]) == 8
    assert run.console.notes == [
        f"quality: 2 of 10 rows have no answer; the first: row 7 is odd; see {run.folder}",
        "quality: 88% of 8 rows have the very same score, 0.5.",
    ]
    given[:] = [None] * 10
    with pytest.raises(StageError, match="quality: 10 of 10 rows have no answer; the first: row 0 is odd"):
        quality.score_answers("quality", run, config, scorer, [], 10, run.folder)


@pytest.mark.parametrize(
    ("good", "seeds", "share", "alone", "notes"),
    [(30, 6, 0.5, False, 0), (12, 12, 1, True, 0), (6, 6, 0.5, True, 1), (8, 5, 1, True, 0), (30, 5, 0.5, False, 0)],
)
def test_no_model_is_tuned_where_the_seeds_are_all_there_is(tmp_path, good, seeds, share, alone, notes):
    run, settings = Run(str(tmp_path), Notes()), config_of_mods(seed_share=share).mods
    found = [Manifest(stage="s", fingerprint="f", counts={"kept": kept}) for kept in (good, seeds)]
    assert mods.only_seeds(run, settings, *found, 12) is alone
    assert len(run.console.notes) == notes


REFUSED = {
    r"^model: there is no folder '/no/such'": {"model": "/no/such"},
    r"^adapter: .* holds no adapter_config\.json": {"adapter": "no-such"},
    r"^mods\.scorer\.model: there is no folder '/no/such'": {"mods": {"scorer": {"model": "/no/such"}}},
    r"^mods\.embedding\.model: 'nano:x' is unknown": {"mods": {"embedding": {"model": "nano:x"}}},
    r"^coverage\.embedding\.model: there is no": {"method": "coverage", "coverage": {"embedding": {"model": "./no"}}},
    r"^quality\.scorer\.model: there is no": {"method": "quality", "quality": {"scorer": {"model": "./no"}}},
    r"^budget: mods takes a number of rows": {"budget": "5ktok"},
    r"max_new_tokens=1024 leaves no room .* 'nano' has 1024": {"mods": {"generation": {"max_new_tokens": 1024}}},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_work_is_refused_before_the_pool_is_read(pool, tmp_path, message):
    config = make_config({"method": "mods", "pool": str(pool), "run": str(tmp_path)} | REFUSED[message])
    run = Run(str(tmp_path))
    with pytest.raises((ConfigError, ModelError), match=message):
        run_method(run, config)
    assert not (tmp_path / "ingest").exists()


def test_what_the_model_said_lies_in_the_order_of_the_rows_however_its_answers_lie(tmp_path):
    """Answers of an interrupted run lie in other files; judged beside others, a row's score differs in its last bits."""
    ids = [7, -3, 12, 5, 40]
    talk = lambda i: [{"role": "user", "content": f"ask {i}"}, {"role": "assistant", "content": "theirs"}]  # noqa: E731
    rows = open_location(tmp_path / "rows.parquet")
    pq.write_table(pa.table({ID: ids, MESSAGES: pa.array([talk(i) for i in ids], pa.list_(MESSAGE))}), rows.path)
    told = {i: {ID: i, ANSWER: f"mine {i}", ERROR: None} for i in ids} | {12: {ID: 12, ANSWER: None, ERROR: "too long"}}
    schema = pa.schema([(ID, pa.int64()), (ANSWER, pa.string()), (ERROR, pa.string())])
    seen = []
    for number, split in enumerate([[ids], [[5, 40, 12], [7, -3]], [[i] for i in sorted(ids)]]):
        folder = open_location(tmp_path / f"{number}").make_folder()
        answers = [folder / f"{k}.parquet" for k in range(len(split))]
        for place, part in zip(answers, split, strict=True):
            pq.write_table(pa.Table.from_pylist([told[i] for i in part], schema=schema), place.path)
        files, failed = mods._own_conversations([rows], answers, folder)
        assert failed == 1
        seen.append([pq.read_table(file.path) for file in files])
    assert seen[0][0][ID].to_pylist() == [7, -3, 5, 40]
    assert [m[-1]["content"] for m in seen[0][0][MESSAGES].to_pylist()] == ["mine 7", "mine -3", "mine 5", "mine 40"]
    assert all(one == seen[0] for one in seen)

    metas = pa.array([None, '{"input":"x"}', None, '{"k":1}', None])
    pq.write_table(pq.read_table(rows.path).append_column(META, metas), rows.path)
    (file,), _ = mods._own_conversations([rows], answers, folder)
    told = pq.read_table(file.path)
    assert told.drop_columns([META]) == seen[0][0] and told[META].to_pylist() == metas.take([0, 1, 3, 4]).to_pylist()


# --- kills -----------------------------------------------------------------------------------------------------------


def command(pool, run):
    return [
        *(sys.executable, "-m", "raysift.jobs", "mods", "--pool", str(pool), "--run", str(run), "--log", "json"),
        *(f"budget={BUDGET}", "mods.seed_train.recipe=nano", "mods.seed_train.epochs=2"),
        *("mods.generation.max_new_tokens=12", "mods.generation.backend=transformers"),
        *("resources.train=0", "resources.workers=1", "resources.block_rows=20", "resources.batch_rows=20"),
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
    monkeypatch.setattr("raysift.jobs.on_ray.generation.vllm_version", lambda: None)
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


def test_its_report_tells_the_fates_and_the_models_own_answers(chosen):
    plain = sound(report_of(chosen.run.opened))
    fates = chosen.run.opened.manifest("order").values["fates"]
    kept = (SEED, AUGMENTED)
    assert stages(plain)["order"]["rejected"] == {fate: count for fate, count in fates.items() if fate not in kept}
    assert rows(plain, KNOWN)[0]["verdict"] == f"Not selected: {KNOWN}."
    answered = [item for item in rows(plain) if item["other"]]
    assert answered and all(item["figures"].get("necessity") is not None for item in answered)
    assert [item["rank"] for item in rows(plain, "top")] == [*range(1, len(chosen) + 1)]
    assert blocks(plain, "scores", "histogram")[0]["marks"] == [] and not blocks(plain, "scores", "what_if")

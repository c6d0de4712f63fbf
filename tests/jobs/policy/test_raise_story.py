"""What is told of a RAISE run: tables from the logs, and one row's story; on a run laid out by hand."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raysift.config import load_config, make_selector
from raysift.errors import ConfigError
from raysift.jobs import stages
from raysift.jobs.commands.explained import explain_command
from raysift.jobs.commands.show import show_run
from raysift.jobs.explaining.explain import explain
from raysift.jobs.policy import story
from raysift.jobs.policy.story import learning_curve, row_story
from raysift.jobs.report.why import why
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.run import Run, StageResult
from raysift.methods.raise_policy import place_picks
from raysift.policy.drawing import Draw
from raysift.policy.learning import Learner
from raysift.policy.picking import Picker
from raysift.policy.pool import PolicyPool, write_pool
from raysift.policy.saved import POLICY, ROUND, load_episodes, round_name, save_round
from raysift.policy.settings import LearningSettings, PolicySettings
from raysift.policy.state import State, stage_inputs
from raysift.records import KEPT_ROWS

from ...tiny_policies import log_of, random_log, tiny_pool  # noqa: TID252

COUNT, BATCH, STEPS, ROUNDS = 60, 6, 10, 3
SETTINGS = PolicySettings(classes=2, temperature=0.7)
SOURCES, SKILLS = ["[bold]a", "b"], ["add", "\x1b[31mred", None]
LOST = 3
"""The first rows of the pool have no features."""


def write_table(folder, name, table):
    pq.write_table(table, (folder / name).path)
    return [name]


def lay_out(path):
    """A finished run as the stages leave it, but for the training: its performance is made up, its picks are real."""
    run, whole = Run(str(path)), tiny_pool(COUNT, 2)
    pool = PolicyPool(whole.ids[LOST:], whole.features[LOST:], whole.classes[LOST:])
    learner = Learner(pool, SETTINGS, LearningSettings(rounds=ROUNDS), 0)
    with torch.no_grad():
        learner.actor.rest[-1].weight.mul_(10)
    rng = np.random.default_rng(0)

    def ingest(folder):
        lines = [
            {
                "id": int(one),
                "source": SOURCES[k % 2],
                "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "secret words"}],
                "meta": json.dumps({"skill": SKILLS[k % 3], "level": k}),
                "raw": None,
                "file": "pool.jsonl",
                "position": k + 1,
            }
            for k, one in enumerate(whole.ids)
        ]
        order = rng.permutation(COUNT)
        files = write_table(folder, "rows.parquet", pa.Table.from_pylist([lines[k] for k in order], schema=KEPT_ROWS))
        return StageResult(
            {"rows": files, "rejected": []},
            {"rows_in": COUNT, "kept": COUNT, "rejected": {}, "failed": 0, "bad_files": []},
            {"by_source": dict.fromkeys(SOURCES, COUNT // 2)},
        )

    def features(folder):
        write_pool(folder / "features.parquet", pool)
        return StageResult({"features": ["features.parquet"], "fitted": ["features.parquet"]})

    def learn(folder):
        for number in range(1, ROUNDS + 1):
            made = [random_log(pool, STEPS, BATCH, seed=10 * number + k, among=25) for k in range(2)]
            logs = [log_of(one.picks, one.performance.tolist(), number, k) for k, one in enumerate(made)]
            account = {"round": number, "start": -2.0, "performance": -2.0 + number / 10, "report_start": None}
            account |= {"report": None, "distinct_rows": 20.0, "picks": 60.0, "seconds": 1.0}
            account["update"] = {
                "actor_loss": 0.1,
                "critic_loss": None,
                "last_ratio": 1.1,
                "clipped": 0.0,
                "entropy": 0.9,
            }
            save_round(folder / "rounds" / round_name(number), learner, logs, account)
        last = f"rounds/{round_name(ROUNDS)}"
        return StageResult({"policy": [f"{last}/{POLICY}"], "rounds": [f"{last}/{ROUND}"]}, values={"rounds": ROUNDS})

    picker, picks, performance = Picker(pool, SETTINGS, learner.actor), [], [-2.0]
    counts = np.zeros(len(pool), np.int32)
    for step in range(1, STEPS + 1):
        state = State(stage_inputs(-2.0, performance[-1], step, STEPS), counts)
        ids = picker.batch(state, BATCH, step, Draw(0, "final training"))
        picks, performance = [*picks, ids], [*performance, performance[-1] + 0.1]
        counts[np.searchsorted(pool.ids, ids)] += 1

    def final(folder):
        files = write_table(folder, "log.parquet", log_of(picks, performance, 0).table)
        counts = {"kept": len(np.unique(np.concatenate(picks)))}
        return StageResult({"log": files}, counts, {"performance": performance[-1], "report": None})

    def order(folder):
        table = place_picks(whole.ids, picks, pool.ids, whole.ids)
        return StageResult({"scores": write_table(folder, "scores.parquet", table)})

    run.stage("ingest", {}, {}, ingest)
    run.stage("features", {}, {}, features)
    run.stage("learn", {}, {}, learn)
    decides = {"policy": SETTINGS, "steps": STEPS, "seed": 0, "train": {"batch_size": BATCH}}
    run.stage("final", decides, {}, final)
    run.stage("order", {}, {}, order)
    with run.replayable({"method": "raise"}):
        pass
    return whole, pool, picks


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory):
    path = tmp_path_factory.mktemp("raise") / "run"
    return str(path), *lay_out(path)


def test_a_run_with_the_policy_of_another_run_has_no_rounds_of_its_own(laid_out, tmp_path):
    shutil.copytree(laid_out[0], tmp_path / "applied")
    shutil.rmtree(tmp_path / "applied" / "learn")
    settings = {"method": "raise", "raise": {"policy_from": laid_out[0]}}
    (tmp_path / "applied" / "run.yaml").write_text(json.dumps(settings))
    assert len(learning_curve(str(tmp_path / "applied"))) == 0
    row = int(laid_out[3][0][0])
    here, there = (row_story(Run(folder), row) for folder in (laid_out[0], str(tmp_path / "applied")))
    assert there == dataclasses.replace(here, rounds=[], expected=0.0, credit=None, credit_below=0)


def test_a_learning_curve_is_there_before_the_run_is_finished(laid_out, tmp_path, capsys):
    curve = learning_curve(laid_out[0])
    assert curve["round"].to_pylist() == [1, 2, 3]
    assert curve["gain"].to_pylist() == pytest.approx([0.1, 0.2, 0.3])
    assert {"report", "distinct_rows", "entropy", "ratio", "clipped"} <= set(curve.column_names)
    run = Run(str(tmp_path / "half"))
    with pytest.raises(RuntimeError, match="power"):
        run.stage("learn", {}, {}, lambda folder: half(folder, laid_out))
    assert learning_curve(str(tmp_path / "half")) == curve.slice(0, 2)
    show_run(str(tmp_path / "half"), Console("plain"))
    assert "Rounds (2, of 60 picks each)" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="has not finished the stage order"):
        row_story(run, 0)


def half(folder, laid_out):
    """Two of the rounds, and then the power fails."""
    done = Run(laid_out[0])
    for number in (1, 2):
        source, place = done.folder / "learn", folder / "rounds" / round_name(number)
        place.make_folder()
        for file in (source / finger(done) / "rounds" / round_name(number)).files():
            (place / file.name).write(file.read_bytes())
    raise RuntimeError("power")


def finger(run):
    return next(manifest.fingerprint for manifest in run.manifests() if manifest.stage == "learn")


def test_a_rows_story_names_the_steps_and_rounds_in_which_it_was_picked(laid_out):
    folder, _, pool, picks = laid_out
    run = Run(folder)
    logs = [load_episodes(place) for place in story.round_folders(run)]
    for row, number in zip(pool.ids.tolist(), pool.classes.tolist(), strict=True):
        one = row_story(run, row)
        assert (one.class_number, one.class_rows) == (number, (pool.classes == number).sum())
        assert one.steps == [step for step, batch in enumerate(picks, 1) if row in batch]
        assert one.rounds == [sum((batch == row).sum() for log in group for batch in log.picks) for group in logs]


def test_explain_and_show_print_no_text_of_a_row(laid_out, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    folder, whole, _, picks = laid_out
    show_run(folder, Console("plain"))
    told = capsys.readouterr().out
    assert "\x1b" not in told
    assert "secret" not in told
    assert "Rounds (3" in told
    explain_command(folder, str(int(picks[0][0])), False, False, False, Console("plain"))
    told = capsys.readouterr().out
    assert "The policy picked it" in told
    assert "While the policy learned, in 3 rounds, it was picked" in told
    assert "secret" not in told
    lost = explain(folder, int(whole.ids[0]), pairs=False)
    assert lost.policy is None
    assert lost.verdict.startswith("not selected: no features")


def test_what_a_policy_prefers_is_told_in_words_and_drawn(laid_out):
    folder, _, pool, picks = laid_out
    run = Run(folder)
    row = int(picks[0][0])
    story_of = row_story(run, row)
    batches = sum(
        len(batch) for place in story.round_folders(run) for log in load_episodes(place) for batch in log.picks
    )
    assert story_of.expected == batches / len(pool)
    chances = [row_story(run, int(one)).chance for one in pool.ids[pool.classes == pool.classes[pool.ids == row]]]
    assert np.mean(chances) == pytest.approx(1)
    assert story_of.chance_below == sum(chance < story_of.chance for chance in chances)
    told = " ".join(explain(folder, row).reasons)
    for words in ("first in step 1 of 10", "its chance to be drawn was", "an average row was picked", "credit"):
        assert words in told
    never = next(int(one) for one in pool.ids if not any(one in batch for batch in picks))
    assert "picked it in none of the 10 steps" in explain(folder, never).reasons[0]

    section = why(run, True)
    by_title = {block.title: block for block in section.blocks}
    curve = by_title["Performance after each round of learning"].series[0]
    assert curve.points == (
        (0.0, -2.0),
        (1.0, pytest.approx(-1.9)),
        (2.0, pytest.approx(-1.8)),
        (3.0, pytest.approx(-1.7)),
    )
    over = by_title["Picks of the final training, by source"]
    assert {line.name for line in over.series} == set(SOURCES)
    assert np.allclose(np.sum([[y for _, y in line.points] for line in over.series], axis=0), 1)
    prefers = by_title["What the policy goes by"]
    picked = pool.features[np.searchsorted(pool.ids, np.concatenate(picks))].mean(axis=0)
    wanted = (picked - pool.features.mean(axis=0)) / pool.features.std(axis=0)
    np.testing.assert_allclose(prefers.series[0].values, wanted[: len(prefers.groups)], rtol=1e-3, atol=1e-5)
    weights = by_title["Weights of the classes"]
    assert sum(weights.series[0].values) == sum(weights.series[1].values) == pytest.approx(1)


def test_a_row_beyond_the_budget_is_told_the_budget_and_the_steps_that_keep_the_training(laid_out, tmp_path):
    def choose(name, *overrides):
        shutil.copytree(laid_out[0], tmp_path / name)
        run = Run(str(tmp_path / name))
        given = {
            "method": "raise",
            "run": str(tmp_path / name),
            "pool": ["pool.jsonl"],
            "target": ["t.jsonl"],
            "budget": "10",
        }
        config = load_config(None, given, overrides)
        (tmp_path / name / "run.yaml").write_text(json.dumps(config.model_dump(mode="json")))
        rows, scores = (run.manifest(stage) for stage in ("ingest", "order"))
        chosen = stages.choose(run, config, make_selector(config), rows, scores, None)
        return run, pq.read_table(run.files(chosen, "selection")[0].path)["id"].to_pylist()

    run, taken = choose("ten")
    late = next(int(one) for batch in laid_out[3] for one in batch if int(one) not in taken)
    for row, was_taken in ((late, False), (taken[5], True)):
        found = explain(run, row)
        (change,) = found.changes
        budget, steps = change.settings
        assert steps == "raise.episode.steps=10"
        assert (row in choose(f"again-{was_taken}", budget, steps)[1]) is not was_taken
    assert explain(run, taken[5]).verdict == "selected as number 6 of 10, as a pick of the policy"
    never = next(int(one) for one in laid_out[2].ids if not any(one in batch for batch in laid_out[3]))
    assert "Nothing short can be said" in explain(run, never).no_change

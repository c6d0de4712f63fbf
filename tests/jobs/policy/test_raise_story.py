"""What is told of a RAISE run: tables from the logs, and one row's story; on a run laid out by hand and on a real one."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from raysift.errors import ConfigError, DataError
from raysift.jobs.commands.console import Console
from raysift.jobs.commands.explain import explain, explain_command
from raysift.jobs.commands.show import show_run
from raysift.jobs.policy import picks as raise_picks
from raysift.jobs.policy.opened import open_policy_run
from raysift.jobs.policy.row import row_story
from raysift.jobs.policy.story import influences, learning_curve, picks_over_time
from raysift.jobs.runs.run import Run, StageResult
from raysift.methods.raise_policy import place_picks
from raysift.policy.drawing import Draw
from raysift.policy.learning import Learner
from raysift.policy.picking import Picker
from raysift.policy.pool import PolicyPool, write_pool
from raysift.policy.saved import POLICY, ROUND, round_name, save_round
from raysift.policy.settings import LearningSettings, PolicySettings
from raysift.policy.state import State, stage_inputs
from raysift.records import ERROR, ID, ROWS
from raysift.scoring.columns import DIFFICULTY_SCHEMA

from ...tiny_policies import log_of, random_log, tiny_pool  # noqa: TID252
from ..conftest import write_lines  # noqa: TID252

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
    lengths = rng.integers(2, 30, (COUNT, 2))
    logs = -rng.random((COUNT, 2)) * lengths[:, 1:]

    def ingest(folder):
        lines = [
            {
                "id": int(one),
                "source": SOURCES[k % 2],
                "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "secret words"}],
                "meta": json.dumps({"skill": SKILLS[k % 3], "level": k}),
                "raw": None,
            }
            for k, one in enumerate(whole.ids)
        ]
        order = rng.permutation(COUNT)
        files = write_table(folder, "rows.parquet", pa.Table.from_pylist([lines[k] for k in order], schema=ROWS))
        return StageResult(
            {"rows": files, "rejected": []},
            {"rows_in": COUNT, "kept": COUNT, "rejected": {}, "failed": 0, "bad_files": []},
        )

    def difficulty(folder):
        columns = [pa.array(whole.ids), *map(pa.array, [lengths[:, 0], lengths[:, 1], logs[:, 0], logs[:, 1]])]
        columns += [pa.array([False] * COUNT), pa.nulls(COUNT, pa.string())]
        table = pa.table(columns, names=[ID, *DIFFICULTY_SCHEMA.names, ERROR]).take(rng.permutation(COUNT))
        return StageResult({"answers": write_table(folder, "answers.parquet", table)})

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
        ids, _ = picker.batch(state, BATCH, step, Draw(0, "final training"))
        picks, performance = [*picks, ids], [*performance, performance[-1] + 0.1]
        counts[np.searchsorted(pool.ids, ids)] += 1

    def final(folder):
        files = write_table(folder, "log.parquet", log_of(picks, performance, 0).table)
        return StageResult({"log": files}, values={"report_start": None, "report": None})

    def order(folder):
        table = place_picks(whole.ids, picks, pool.ids, whole.ids)
        return StageResult({"scores": write_table(folder, "scores.parquet", table)})

    run.stage("ingest", {}, {}, ingest)
    run.stage("difficulty", {}, {}, difficulty)
    run.stage("features", {"logprob": "mean"}, {}, features)
    run.stage("learn", {}, {}, learn)
    decides = {"policy": SETTINGS, "steps": STEPS, "seed": 0, "train": {"batch_size": BATCH}}
    run.stage("final", decides, {}, final)
    run.stage("order", {}, {}, order)
    with run.replayable({"method": "raise"}):
        pass
    return whole, pool, picks, lengths


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory):
    path = tmp_path_factory.mktemp("raise") / "run"
    return str(path), *lay_out(path)


def test_each_step_is_told_in_natural_units_and_as_shares(laid_out):
    folder, whole, _, picks, lengths = laid_out
    numbers, shares = picks_over_time(folder, by="skill")
    assert numbers["first_step"].to_pylist() == numbers["last_step"].to_pylist() == list(range(1, STEPS + 1))
    assert numbers["gain"].to_pylist() == pytest.approx([0.1] * STEPS)
    seen: set[int] = set()
    for line, batch in zip(numbers.to_pylist(), picks, strict=True):
        places = np.searchsorted(whole.ids, batch)
        assert line["picks"] == line["distinct_rows"] == BATCH
        assert line["repeats"] == pytest.approx(np.mean([one in seen for one in batch.tolist()]))
        assert line["prompt_tokens"] == pytest.approx(lengths[places, 0].mean())
        assert line["answer_tokens"] == pytest.approx(lengths[places, 1].mean())
        assert -1 < line["logprob_given"] < 0  # per token
        seen |= set(batch.tolist())
        mine = [s for s in shares.to_pylist() if s["first_step"] == line["first_step"]]
        for column, values in (("source", SOURCES), ("skill", SKILLS), ("class", ["0", "1"])):
            told = {s["value"]: s for s in mine if s["column"] == column}
            assert set(told) == set(values)
            assert sum(s["picks"] for s in told.values()) == BATCH
            assert sum(s["pool_share"] for s in told.values()) == pytest.approx(1)
        assert next(s for s in mine if s["value"] == SOURCES[0])["picks"] == (places % 2 == 0).sum()
        assert next(s for s in mine if s["value"] is None)["picks"] == (places % 3 == 2).sum()
    assert max(numbers["repeats"].to_pylist()) > 0


def test_stretches_hold_the_steps_between_them_and_rounds_all_their_trainings(laid_out):
    folder, _, _, picks, _ = laid_out
    steps, (wide, _) = picks_over_time(folder).numbers.to_pylist(), picks_over_time(folder, stretches=3)
    lines = wide.to_pylist()
    assert [(line["first_step"], line["last_step"]) for line in lines] == [(1, 3), (4, 7), (8, 10)]
    for line in lines:
        inside = steps[line["first_step"] - 1 : line["last_step"]]
        for name in ("repeats", "prompt_tokens", "logprob_alone"):
            assert line[name] == pytest.approx(np.mean([one[name] for one in inside]))
        batches = picks[line["first_step"] - 1 : line["last_step"]]
        assert line["distinct_rows"] == len(np.unique(np.concatenate(batches)))
        assert line["gain"] == pytest.approx(sum(one["gain"] for one in inside))
    assert len(picks_over_time(folder, stretches=99).numbers) == STEPS
    rounds = picks_over_time(folder, over="rounds").numbers.to_pylist()
    assert [(line["round"], line["picks"]) for line in rounds] == [(k + 1, 2 * STEPS * BATCH) for k in range(ROUNDS)]
    assert all(line["repeats"] >= 1 - 2 * 25 / (2 * STEPS * BATCH) for line in rounds)  # of 25 rows, in each training


def test_rare_values_are_put_together_and_unknown_columns_named(laid_out, monkeypatch):
    monkeypatch.setattr(raise_picks, "MOST_VALUES", 5)
    shares = picks_over_time(laid_out[0], by="level", stretches=1).shares
    told = shares.filter(pc.equal(shares["column"], "level")).to_pylist()
    assert len(told) == 5
    assert told[-1]["value"] == raise_picks.OTHERS
    assert told[-1]["pool_share"] == pytest.approx(1 - 4 / (COUNT - LOST))
    assert sum(line["share"] for line in told) == pytest.approx(1)
    with pytest.raises(DataError, match="no row has 'colour' in its meta; there are: level, skill"):
        picks_over_time(laid_out[0], by="colour")


def test_influences_of_blocks_and_inputs_share_the_spread_of_the_scores(laid_out):
    table = influences(laid_out[0])
    assert sorted(set(table["step"].to_pylist())) == [1, 5, STEPS]
    for step in (1, 5, STEPS):
        mine = table.filter(pc.equal(table["step"], step))
        for kind, count in (("block", 4), ("input", 39), ("score", 1)):
            lines = mine.filter(pc.equal(mine["kind"], kind))
            assert len(lines) == count
            assert pc.sum(lines["share"]).as_py() == pytest.approx(1)
    opened = open_policy_run(laid_out[0])
    assert len(opened.pool) == COUNT - LOST
    assert influences(opened, [STEPS], sample_rows=20)["spread"][0].as_py() != table["spread"][0].as_py()


def test_a_policy_taken_from_another_run_is_found_there(laid_out, tmp_path):
    shutil.copytree(laid_out[0], tmp_path / "applied")
    shutil.rmtree(tmp_path / "applied" / "learn")
    settings = {"method": "raise", "raise": {"policy_from": laid_out[0]}}
    (tmp_path / "applied" / "run.yaml").write_text(json.dumps(settings))
    assert influences(str(tmp_path / "applied")) == influences(laid_out[0])
    assert len(learning_curve(str(tmp_path / "applied"))) == 0
    row = int(laid_out[3][0][0])
    assert row_story(open_policy_run(str(tmp_path / "applied")), row).rounds == []
    assert explain(str(tmp_path / "applied"), row, pairs=False).policy.steps[0] == 1


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
    with pytest.raises(ConfigError, match="has no finished ingest, features, difficulty, final, order"):
        picks_over_time(str(tmp_path / "half"))


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


def test_a_rows_story_tells_every_step_it_was_picked_in_and_why(laid_out):
    folder, _, pool, picks, _ = laid_out
    every, counts = np.unique(np.concatenate(picks), return_counts=True)
    row = int(every[counts.argmax()])
    story = row_story(open_policy_run(folder), row, steps=range(1, STEPS + 1))
    assert story.steps == [k + 1 for k, batch in enumerate(picks) if row in batch]
    assert [moment.step for moment in story.moments if moment.standing.picked] == story.steps
    assert story.missing is None
    for moment in story.moments:
        moved = sum(one.attribution for one in moment.moved)
        assert moved == pytest.approx(moment.standing.score - moment.mean_score, abs=1e-4)
        assert len(moment.moved) == 39
        assert moment.standing.quota == BATCH // 2
        assert abs(moment.moved[0].attribution) == max(abs(one.attribution) for one in moment.moved)
    seen = [next(one.value for one in moment.moved if one.name == "picked") for moment in story.moments]
    before = [sum(step < moment.step for step in story.steps) for moment in story.moments]
    np.testing.assert_allclose(seen, np.log1p(before), rtol=1e-6)
    assert story.moments[0].step == 1
    assert len(story.features) == 4
    assert all(0 <= one.percentile < 100 for one in story.features)
    rounds = picks_over_time(folder, over="rounds").numbers
    assert len(story.rounds) == len(rounds)

    never = int(np.setdiff1d(pool.ids, every)[0])
    found = row_story(open_policy_run(folder), never)
    assert found.steps == []
    assert [moment.step for moment in found.moments] == [1, 5, STEPS]
    short = min(moment.standing.lacking for moment in found.moments)
    assert found.missing.endswith(f"of which 3 were taken; short by {short:.4g}")
    assert short > 0


def test_explain_and_show_print_escaped_data_and_no_text(laid_out, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    folder, whole, _, picks, _ = laid_out
    show_run(folder, Console("plain"), by="skill")
    told = capsys.readouterr().out
    assert "\x1b" not in told
    assert "\\x1b[31mred" in told
    assert "[bold]a" in told
    assert "secret" not in told
    for title in ("Rounds (3", "Final training: 10 steps of 6 rows", "Picks by skill in learning", "by block"):
        assert title in told
    explain_command(folder, str(int(picks[0][0])), False, False, Console("plain"))
    told = capsys.readouterr().out
    assert "picked in the final training" in told
    assert "log-probability per token, given the prompt" in told
    assert "secret" not in told
    lost = explain(folder, int(whole.ids[0]), pairs=False)
    assert lost.policy is None
    assert lost.verdict.startswith("not selected: no features")


@pytest.mark.ray
@pytest.mark.slow
def test_a_real_run_is_told_and_its_standings_are_the_batches_it_picked(ray_local, tmp_path):
    import raysift
    from raysift.nano.world import examples, generate_pool

    folder = str(tmp_path / "run")
    raysift.select(
        "raise",
        write_lines(tmp_path / "pool.jsonl", list(generate_pool(60, 0))),
        target=[write_lines(tmp_path / "target.jsonl", list(examples(8, 0, ["add"], "validation")))],
        run=folder,
        budget="10",
        resources={"workers": 1},
        train={"recipe": "nano", "batch_size": 4, "max_length": 128},
        **{"raise": {"learning": {"rounds": 1}, "policy": {"classes": 2}, "episode": {"steps": 3}}},
    )
    opened = open_policy_run(folder)
    assert len(learning_curve(folder)) == 1
    numbers, shares = picks_over_time(opened, by="skill")
    assert numbers["picks"].to_pylist() == [4, 4, 4]
    assert set(shares["column"].to_pylist()) == {"source", "class", "skill"}
    assert np.isfinite(influences(opened)["spread"].to_numpy()).all()
    for row in [*np.unique(np.concatenate(opened.episode.picks)).tolist(), *opened.pool.ids[:3].tolist()]:
        story = row_story(opened, row, steps=[1, 2, 3])
        assert [moment.step for moment in story.moments if moment.standing.picked] == story.steps

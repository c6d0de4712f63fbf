"""A policy search on nano models: what is spared, what is taken over, and what a killed trial and a killed driver leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import orjson
import pyarrow.parquet as pq
import pytest
import yaml
from sound_reports import blocks, sound

import raysift
from raysift.config import load_config
from raysift.errors import ConfigError
from raysift.jobs.commands.search import curves, open_classes, ranked, show_search
from raysift.jobs.on_ray import fitting
from raysift.jobs.policy import tuning
from raysift.jobs.policy.tuning import OutOfMemory, SparingASHA, Teller, Watch, name_trial
from raysift.jobs.report.record import report_of
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.run import Run, StageResult, open_run
from raysift.manifest import Manifest, read_manifest
from raysift.nano.world import examples, generate_pool
from raysift.policy.saved import ROUND
from raysift.policy.search_settings import SearchSettings
from raysift.policy.settings import RaiseConfig
from raysift.policy.trials import TrialResult, draw_trials
from raysift.storage import open_location

ROWS, STEPS, BATCH, ROUNDS, TRIALS = 150, 4, 4, 3, 4
NONE = {name: [] for name in ("classes", "hidden", "temperature", "actor_rate", "entropy", "clip", "passes")}
# Of the three points that are drawn beside the run's own at least one has the rate at which weights end as no numbers.
SEARCH = {
    "trials": TRIALS,
    "rounds": ROUNDS,
    "last_rounds": 2,
    "scheduler": "none",
    "max_failures": 1,
    "space": NONE | {"classes": [1, 2], "actor_rate": [0.01, 1e30]},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    (folder / "pool.jsonl").write_bytes(b"\n".join(orjson.dumps(row) for row in generate_pool(ROWS, 4)))
    lines = [orjson.dumps(example) for example in examples(16, 0, ["last_letters"], "validation")]
    (folder / "target.jsonl").write_bytes(b"\n".join(lines))
    return folder


HERE = {"threads": 1}


def settings_of(data, **search):
    return {
        "target": str(data / "target.jsonl"),
        "budget": "12",
        "raise": {"episode": {"steps": STEPS}},
        "train": {"batch_size": BATCH},
        "resources": HERE,
        "search": SEARCH | search,
    }


def rounds_under(folder):
    """Every finished round, with when it was written and what it holds."""
    files = sorted(folder.glob(f"search/*/rounds/*/round-*/{ROUND}"))
    return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


# --- the parts -------------------------------------------------------------------------------------------------------


def test_a_search_reuses_what_others_have_fitted_for_the_same_number_of_classes(tmp_path):
    done = StageResult(counts={"kept": 1})
    first = Run(str(tmp_path / "a"))
    for run in (first, open_classes(first, 2)):
        run.stage("features", {"classes": 2}, {}, lambda _: done)
    again = Run(str(tmp_path / "b"), reuse=[first.name])
    found = open_classes(again, 2).stage("features", {"classes": 2}, {}, lambda _: 1 / 0)
    assert found.reused_from == f"{first.name}/classes-2"
    assert open_classes(again, 3).reuse == []


def test_asha_stops_the_worse_half_but_never_the_run_s_own_settings():
    class Trial(SimpleNamespace):
        def __str__(self):
            return name_trial(self)

    scheduler = SparingASHA(
        time_attr="round", metric="criterion", mode="max", max_t=6, grace_period=2, reduction_factor=2
    )
    trials = [Trial(trial_id=str(n), config={"trial": {"number": n}}) for n in range(4)]
    decisions = {}
    for number, worth in ((1, 5.0), (2, 9.0), (3, 1.0), (0, 0.0)):
        scheduler.on_trial_add(None, trials[number])
        assert scheduler.on_trial_result(None, trials[number], {"round": 1, "criterion": worth}) == "CONTINUE"
        decisions[number] = scheduler.on_trial_result(None, trials[number], {"round": 2, "criterion": worth})
    assert decisions == {1: "CONTINUE", 2: "CONTINUE", 3: "STOP", 0: "CONTINUE"}


def test_the_table_puts_whole_trials_first_and_says_what_differs(capsys):
    wanted = SearchSettings(rounds=2, last_rounds=1)
    outcomes = [
        TrialResult(
            0, {"clip": 0.2, "hidden": [64, 64]}, [-3.0, -2.0], [-4.0, None], [1.0, 1.0], folder="trial-0000/a"
        ),
        TrialResult(1, {"clip": 0.1, "hidden": [8]}, [-1.0], [-1.0], [1.0], folder="trial-0001/a"),
        TrialResult(
            2, {"clip": 0.4, "hidden": [64, 64]}, [-1.0, -1.5], [-4.0, -3.0], [1.0, 1.0], folder="trial-0002/a"
        ),
        TrialResult(3, {"clip": 0.2, "hidden": [8]}, [], reason="it died"),
    ]
    from raysift.jobs.commands.search import describe

    assert [outcome.number for outcome in ranked(outcomes, wanted)] == [2, 0, 1, 3]
    lines = [describe(outcome, wanted) for outcome in ranked(outcomes, wanted)]
    table = curves(outcomes, wanted)
    assert table["trial"].to_pylist() == [0, 0, 1, 2, 2]
    assert table["hidden"].to_pylist() == ["64x64", "64x64", "8", "64x64", "64x64"]
    values = {"trials": lines, "best": lines[0], "own": lines[1]}
    manifest = Manifest(stage="search", fingerprint="f", settings={"search": wanted.model_dump()}, values=values)
    show_search(manifest, Console("plain"))
    out, err = capsys.readouterr()
    assert "run's own" in out and "clip=0.4" in out and "hidden=8" in out
    assert "trial 3 failed: it died" in err


def test_what_cannot_be_searched_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ConfigError, match="policy_from"):
        raysift.search(str(tmp_path / "none.jsonl"), run=str(tmp_path / "run"), **{"raise": {"policy_from": "x"}})


def watch_of(folder, rounds=3, trials=3, console=None):
    run = Run(folder / "run", console)
    run.claim()
    work = SimpleNamespace(search=SearchSettings(rounds=rounds), folder=open_location(str(folder)))
    return Watch(run, run.progress(rounds * trials, "rounds").__enter__(), work, trials)


def trial_named(name, failures=1, error_file=None):
    class Trial(SimpleNamespace):
        def __str__(self):
            return name

    return Trial(run_metadata=SimpleNamespace(num_failures=failures), error_file=error_file)


def test_a_search_tells_rounds_and_trials_that_are_done_and_counts_those_of_an_earlier_attempt(tmp_path):
    done = tmp_path / "rounds" / "trial-0001" / "round-0001"
    done.mkdir(parents=True)
    (done / ROUND).write_text("{}")
    watch = watch_of(tmp_path)
    assert (watch.bar.done, watch.bar.total, watch.bar.words) == (1, 9, "0 of 3 trials done")
    with Teller.speaking(watch):
        for number in (1, 2):
            result = {"round": number, "criterion": 1.0, "performance": 1.0}
            Teller().on_trial_result(0, [], trial_named("trial-0000"), result)
        Teller().on_trial_result(0, [], trial_named("trial-0001"), {"round": 1, "criterion": 1.0, "performance": 1.0})
        assert (watch.bar.done, watch.bar.words) == (3, "0 of 3 trials done"), "a round told again counts once"
        Teller().on_trial_complete(0, [], trial_named("trial-0000"))  # ASHA stopped it before its last round
        Teller().on_trial_error(0, [], trial_named("trial-0002"))
    assert watch.bar.text().startswith("7 of 9 rounds") and watch.bar.words == "2 of 3 trials done"


@pytest.mark.parametrize(
    ("last", "killed"),
    [("Task was killed due to the node running low on memory.", True), ("ValueError: a wild setting", False)],
)
def test_a_trial_that_memory_ended_ends_the_others_and_no_other_failure_does(tmp_path, last, killed):
    place = tmp_path / "error.txt"
    place.write_text(f"Failure # 1 (...)\nMemoryError\nFailure # 2 (...)\nThe actor died.\n{last}\n")
    watch = watch_of(tmp_path)
    with Teller.speaking(watch):
        assert not OutOfMemory().stop_all()
        Teller().on_trial_recover(0, [], trial_named("trial-0000", error_file=str(place)))
        assert OutOfMemory().stop_all() is killed
    assert not OutOfMemory().stop_all()
    assert watch.killed == (last if killed else None)


def test_trials_of_another_plan_are_not_asked_for_again(tmp_path):
    """Tune would restore them with the cores and the memory that they had before."""
    folder = open_location(str(tmp_path))
    for plan, stays in (({"CPU": 2}, True), ({"CPU": 2}, True), ({"CPU": 1}, False), ({"CPU": 1}, False)):
        if stays:
            (tmp_path / "tune").mkdir(exist_ok=True)
        tuning.forget_other_plan(folder, plan)
        assert (tmp_path / "tune").exists() is stays


# --- whole searches --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def searched(ray_local, data):
    """A search whose first trial is killed once, after its first round."""
    killed = []
    usual = Teller.on_trial_result

    def kill_once(self, iteration, trials, trial, result, **rest):
        usual(self, iteration, trials, trial, result, **rest)
        if str(trial) == "trial-0000" and not killed:
            killed.append(rounds_under(data / "run"))
            os.kill(result["pid"], signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Teller, "on_trial_result", kill_once)
        manifest = raysift.search(str(data / "pool.jsonl"), run=str(data / "run"), **settings_of(data)).manifest
    return SimpleNamespace(manifest=manifest, folder=data / "run", at_kill=killed[0])


def comparable(folder):
    table = pq.read_table(folder / "trials.parquet").sort_by("trial")
    return table.drop_columns(["seconds"]).to_pylist()


@pytest.mark.ray
@pytest.mark.slow
def test_a_search_finds_settings_at_least_as_good_as_the_run_s_own(searched):
    lines = comparable(searched.folder)
    own, best = lines[0], searched.manifest.values["best"]
    assert [line["trial"] for line in lines] == list(range(TRIALS))
    assert own["state"] == best["state"] == "all rounds" and own["rounds"] == ROUNDS
    assert best["criterion"] == max(line["criterion"] for line in lines if line["state"] == "all rounds")
    assert best["criterion"] >= own["criterion"]
    counts = searched.manifest.counts
    assert counts["trials"] == TRIALS == counts["all rounds"] + counts["stopped early"] + counts["failed"]


@pytest.mark.ray
@pytest.mark.slow
def test_a_trial_whose_settings_break_the_policy_is_listed_with_its_reason(searched):
    broken = [line for line in comparable(searched.folder) if line["actor_rate"] == 1e30]
    assert broken
    for line in broken:
        assert line["state"] == "failed" and line["rounds"] == 0 and line["criterion"] is None
        assert line["reason"].startswith("learn: the policy's weights are no longer numbers")


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_trial_goes_on_from_its_last_round(searched):
    events = [json.loads(line) for line in (searched.folder / "events.jsonl").read_text().splitlines()]
    assert any(line["event"] == "recovered" and line["trial"] == "trial-0000" for line in events)
    told = [line["round"] for line in events if line["event"] == "round" and line["trial"] == "trial-0000"]
    assert sorted(set(told)) == list(range(1, ROUNDS + 1))  # the first is told again: Tune had not yet noted it down
    mine = {file: what for file, what in searched.at_kill.items() if "trial-0000" in file.parts}
    now = rounds_under(searched.folder)
    assert mine
    assert {file: now[file] for file in mine} == mine


@pytest.mark.ray
@pytest.mark.slow
def test_curves_have_a_line_for_each_round_with_its_settings(searched):
    place = read_manifest(open_location(str(searched.folder)) / "search").files["curves"][0]
    lines = pq.read_table(searched.folder / "search" / place).to_pylist()
    table = {line["trial"]: line for line in comparable(searched.folder)}
    for number, line in table.items():
        mine = [one for one in lines if one["trial"] == number]
        assert [one["round"] for one in mine] == list(range(1, line["rounds"] + 1))
        assert all(one["classes"] == line["classes"] for one in mine)
        if mine:
            assert mine[-1]["criterion"] == line["criterion"]
            assert sum(one["performance"] for one in mine[-2:]) / 2 == pytest.approx(line["criterion"])


@pytest.mark.ray
@pytest.mark.slow
def test_the_best_settings_replay_and_the_best_policy_is_taken_over(searched, data):
    best = searched.manifest.values["best"]
    config = load_config(str(searched.folder / "best.yaml"))
    found = getattr(config, "raise")
    assert isinstance(found, RaiseConfig) and config.search is None
    assert found.learning.actor_rate == best["actor_rate"] and found.policy.classes == best["classes"]
    assert found.learning.rounds == RaiseConfig().learning.rounds and found.episode.steps == STEPS

    values = yaml.safe_load((searched.folder / "best.yaml").read_text())
    values["raise"]["learning"]["rounds"] = 1
    (data / "short.yaml").write_text(yaml.safe_dump(values))
    replay = load_config(str(data / "short.yaml"), {"run": str(data / "replay")})
    from raysift.jobs.recipes import run_method

    run_method(Run(replay.run, reuse=[str(searched.folder)]), replay)
    theirs = searched.folder / f"classes-{best['classes']}" / "features"
    features = read_manifest(open_location(str(data / "replay")) / "features")
    assert features.fingerprint == read_manifest(open_location(str(theirs))).fingerprint

    settings = settings_of(data) | {"raise": {"policy_from": str(searched.folder), "episode": {"steps": STEPS}}}
    settings.pop("search")
    taken = raysift.raise_(str(data / "pool.jsonl"), run=str(data / "taken"), reuse=str(searched.folder), **settings)
    assert len(taken) > 0


@pytest.mark.ray
@pytest.mark.slow
def test_asked_again_the_search_is_done_and_other_settings_are_refused(searched, data):
    again = raysift.search(str(data / "pool.jsonl"), run=str(data / "run"), **settings_of(data)).manifest
    assert again == searched.manifest
    other = raysift.search(
        str(data / "pool.jsonl"), run=str(data / "reusing"), reuse=str(data / "run"), **settings_of(data)
    )
    assert other.manifest.values == searched.manifest.values
    for place in (data / "reusing").glob("classes-*"):
        assert read_manifest(open_location(str(place)) / "features").reused_from == str(data / "run" / place.name)
    with pytest.raises(raysift.StaleRunError, match=r"search\.rounds"):
        raysift.search(str(data / "pool.jsonl"), run=str(data / "run"), **settings_of(data, rounds=ROUNDS + 1))


@pytest.mark.ray
@pytest.mark.slow
def test_a_trial_killed_for_memory_is_answered_by_smaller_passes_and_repeats_no_round(ray_local, data, monkeypatch):
    """A killed process stands for the memory monitor's victim: only the words differ."""
    monkeypatch.setattr(fitting, "KILLED", (*fitting.KILLED, "actor died", "SIGKILL", "died unexpectedly"))
    usual, seen = Teller.on_trial_result, {}

    def kill_once(self, iteration, trials, trial, result, **rest):
        usual(self, iteration, trials, trial, result, **rest)
        if not seen:
            seen.update(rounds_under(data / "short"))
            os.kill(result["pid"], signal.SIGKILL)

    monkeypatch.setattr(Teller, "on_trial_result", kill_once)
    settings = settings_of(data, trials=2, rounds=2, space=NONE | {"classes": [1, 2]})
    manifest = raysift.search(str(data / "pool.jsonl"), run=str(data / "short"), **settings).manifest
    events = [json.loads(line) for line in (data / "short" / "events.jsonl").read_text().splitlines()]
    (killed,) = (line for line in events if line["event"] == "killed")
    assert (killed["for_memory"], killed["tokens_per_pass"]) == (1, 2048)
    assert manifest.counts["all rounds"] == 2
    now = rounds_under(data / "short")
    assert seen and {file: now[file] for file in seen} == seen


# --- a killed driver -------------------------------------------------------------------------------------------------


def command(data, run):
    options = settings_of(data)
    search = [f"search.{name}={json.dumps(value)}" for name, value in options["search"].items()]
    return [
        *(sys.executable, "-m", "raysift.jobs", "search", "--pool", str(data / "pool.jsonl"), "--log", "json"),
        *("--target", options["target"], "--budget", options["budget"], "--run", str(run)),
        *(f"raise.episode.steps={STEPS}", f"train.batch_size={BATCH}", *search),
        *(f"resources.{name}={value}" for name, value in HERE.items()),
    ]


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_killed_driver_goes_on_and_repeats_no_round(searched, data):
    """Killed when it has told of three rounds, and again three rounds later."""
    run, before = data / "killed", {}
    for _ in range(2):
        process = subprocess.Popen(command(data, run), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        told = 0
        for line in process.stderr:
            told += line.startswith("{") and json.loads(line).get("event") == "round"
            if told == 3:
                os.kill(process.pid, signal.SIGKILL)
                break
        process.wait()
        assert told == 3, "the search ended before it was killed"
        seen = rounds_under(run)
        assert {file: seen[file] for file in before} == before
        assert len(seen) > len(before)
        before = seen
    done = subprocess.run(command(data, run), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    after = rounds_under(run)
    assert {file: after[file] for file in before} == before
    assert comparable(run) == comparable(searched.folder)


def test_draws_do_not_depend_on_what_trials_share(data):
    """The trials of this file, as the command and the call above must have them alike."""
    config = load_config(None, settings_of(data) | {"method": "raise"})
    drawn = draw_trials(config.search, getattr(config, "raise"), config.train, config.seed)
    assert len(drawn) == TRIALS and any(point["actor_rate"] == 1e30 for point in drawn)


@pytest.mark.ray
@pytest.mark.slow
def test_its_report_lists_the_trials(searched):
    plain = sound(report_of(open_run(str(searched.folder))))
    table = blocks(plain, "training", "table")[-1]
    assert len(table["rows"]) == len(searched.manifest.values["trials"])
    assert "settings of the policy were tried" in plain["sections"][0]["lead"]

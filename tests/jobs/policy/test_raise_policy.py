"""RAISE end to end on nano models: what is selected, what replays it, and what workers, kills and other pools leave alike."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from safetensors.numpy import load_file
from sound_reports import rows as shown
from sound_reports import sound, stages

import raysift
from raysift.actors.effective_batches import EncodeRows, Place, split_trainable
from raysift.actors.encoded_rows import EncodedRows
from raysift.actors.step_trainer import StepTrainer, trainable_parameters
from raysift.actors.trainee import build_model
from raysift.errors import ConfigError, DataError, StageError
from raysift.jobs.on_ray.counts import read_counts
from raysift.jobs.policy import episodes as policy_episodes
from raysift.jobs.policy import learning as policy_learning
from raysift.jobs.policy import stages as raise_policy
from raysift.jobs.policy.episodes import LocalFleet, RayFleet, divide, ray_fleet
from raysift.jobs.policy.learning import learn_rounds
from raysift.jobs.report.record import report_of
from raysift.methods.raise_policy import NOTHING_TO_LEARN, PASSED_OVER, PICKED
from raysift.nano.world import examples, generate_pool
from raysift.policy.saved import EPISODES, POLICY, ROUND, load_episodes, round_name
from raysift.pool.id_text import id_ranges
from raysift.records import ID
from raysift.settings import memory
from raysift.settings.roles import TrainRole
from raysift.settings.training import learning_rates
from raysift.storage import Location, open_location

ROWS, STEPS, BATCH, ROUNDS = 150, 4, 4, 2
RAISE = {
    "features": {"semantic_dimensions": 8},
    "policy": {"hidden": [8], "critic_hidden": [8], "classes": 2, "temperature": 0.5},
    "learning": {"rounds": ROUNDS, "actor_rate": 0.05, "passes": 2},
    "episode": {"steps": STEPS},
    "steps_per_state": 2,
}
HERE = {"workers": 1, "threads": 1, "cpus_per_worker": 0.25}
TIMES = ["choose_s", "train_s", "validate_s"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A pool, another pool, and a target."""
    folder = tmp_path_factory.mktemp("raise")
    lost = {"messages": [{"role": "user", "content": "one two " * 300}, {"role": "assistant", "content": "unseen"}]}
    for name, rows in (
        ("pool", [*generate_pool(ROWS, 4), lost]),
        ("other", generate_pool(60, 9)),
        ("target", examples(12, 0, ["add", "reverse"])),
    ):
        (folder / f"{name}.jsonl").write_bytes(b"\n".join(orjson.dumps(row) for row in rows))
    return folder


def settings_of(world, method_settings=RAISE, **resources):
    return {
        "target": [str(world / "target.jsonl")],
        "train": {"recipe": "nano", "batch_size": BATCH, "max_length": 256, "warmup_ratio": 0.0},
        "resources": HERE | resources,
        "raise": method_settings,
    }


def select(world, folder, pool="pool", method_settings=RAISE, **resources):
    settings = settings_of(world, method_settings, **resources)
    return raysift.select("raise", str(world / f"{pool}.jsonl"), run=str(folder), **settings)


@pytest.fixture(scope="module")
def chosen(ray_local, world):
    return select(world, world / "run")


@pytest.fixture(scope="module")
def parts(chosen):
    """What a fleet needs to repeat the run's rounds: the setup of its trainings, and its settings."""
    run = chosen.run.opened
    config = run.config({"run": str(run.folder)})
    settings = getattr(config, "raise")
    stages = [run.manifest(name) for name in ("features", "encode", "validation")]
    return raise_policy.make_setup(run, config, settings, *stages, STEPS), settings.learning, config.resources


def place_of(selection, stage, kind):
    return selection.run.opened.files(selection.run.opened.manifest(stage), kind)[0]


def read_table(place):
    return pq.read_table(place.path, filesystem=place.fs)


def adapter_of(selection):
    return load_file(f"{place_of(selection, 'final', 'epochs').path}/adapter/adapter_model.safetensors")


def same(one, two):
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


def final_log(selection):
    return read_table(place_of(selection, "final", "log")).drop_columns(TIMES)


def scores_of(selection):
    return pq.read_table(f"{selection.run.opened.folder.path}/scores.parquet")


# --- the recipe -------------------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_the_selection_is_the_rows_that_the_final_training_saw_in_their_order(chosen):
    curriculum = read_table(place_of(chosen, "final", "curriculum"))
    assert curriculum["step"].to_pylist() == [step for step in range(1, STEPS + 1) for _ in range(BATCH)]
    seen = list(dict.fromkeys(curriculum["id"].to_pylist()))
    asked = chosen.run.opened.manifest("choose").counts["asked"]
    assert chosen.ids == seen[:asked] and len(chosen) == asked < len(seen) <= STEPS * BATCH
    table = chosen.table()
    assert table["fate"].to_pylist() == [PICKED] * asked
    counts = {row: curriculum["id"].to_pylist().count(row) for row in seen}
    assert table["picks"].to_pylist() == [counts[row] for row in chosen.ids]
    log = final_log(chosen)["picks"].to_pylist()
    assert [row for batch in log for row in batch] == curriculum["id"].to_pylist()


@pytest.mark.ray
def test_every_row_and_every_example_is_accounted_for(chosen):
    ingest = chosen.run.opened.manifest("ingest")
    table = scores_of(chosen)
    fates = {line["values"]: line["counts"] for line in table["fate"].value_counts().to_pylist()}
    assert len(table) == ingest.counts["kept"] == sum(fates.values())
    seen = set(read_table(place_of(chosen, "final", "curriculum"))["id"].to_pylist())
    assert fates[PICKED] == len(seen) and set(fates) > {PICKED, PASSED_OVER}, "the row that is too long has its reason"
    for stage in ("encode", "difficulty", "embed", "features", "validation", "order"):
        counts = chosen.run.opened.manifest(stage).counts
        rest = sum(counts.get("rejected", {}).values()) + counts.get("failed", 0) + counts.get("report", 0)
        assert counts["rows_in"] == counts["kept"] + rest, stage
    learn = chosen.run.opened.manifest("learn").counts
    assert learn["kept"] == sum(fates[name] for name in (PICKED, PASSED_OVER))
    validation, report = (read_table(place_of(chosen, "validation", kind)) for kind in ("validation", "report"))
    assert not set(validation[ID].to_pylist()) & set(report[ID].to_pylist())
    assert len(validation) == 9 and len(report) == 3


@pytest.mark.ray
def test_each_round_leaves_its_log_its_policy_and_its_account(chosen):
    places = chosen.run.opened.files(chosen.run.opened.manifest("learn"), "rounds")
    accounts = [json.loads(place.read_text()) for place in places]
    assert [account["round"] for account in accounts] == [1, 2]
    assert all(account["update"]["first_ratio"] == 1.0 for account in accounts)
    assert all(account["picks"] == STEPS * BATCH and account["report"] is not None for account in accounts)
    final = chosen.run.opened.manifest("final").values
    assert accounts[0]["start"] == final["start"] and accounts[0]["report_start"] == final["report_start"]
    events = [json.loads(line) for line in (chosen.run.opened.folder / "events.jsonl").read_text().splitlines()]
    assert [event["round"] for event in events if event["event"] == "round"] == [1, 2]


def curriculum_of(selection):
    place = selection.run.opened.files(selection.run.opened.manifest("final"), "curriculum")[1]
    lines = [orjson.loads(line) for line in place.read_bytes().splitlines()]
    return [line | {"id": id_ranges(line["id"])[0][0]} for line in lines]


def encoded_curriculum(chosen):
    """The rows of the exported curriculum as tokens, and its batches of ids."""
    lines = curriculum_of(chosen)
    config = chosen.run.opened.config({"run": "x"}).train
    rows = {line["id"]: {"id": line["id"], "messages": line["messages"]} for line in lines}
    encoded, lost = split_trainable(
        EncodeRows("nano", config.template, config.max_length)(pa.Table.from_pylist([*rows.values()]))
    )
    assert not len(lost)
    steps = sorted({line["step"] for line in lines})
    return config, encoded, [[line["id"] for line in lines if line["step"] == step] for step in steps]


@pytest.mark.ray
def test_the_exported_curriculum_replays_to_the_same_adapter(chosen, tmp_path):
    """From the JSON lines alone, in a plain loop of steps."""
    config, rows, batches = encoded_curriculum(chosen)
    trainer = StepTrainer(rows, config, len(batches), "nano", Place(device="cpu", threads=1, rows_per_pass=64))
    for batch in batches:
        trainer.step(batch)
    trainer.save_epoch(open_location(tmp_path))
    assert same(load_file(tmp_path / "epoch-1" / "adapter" / "adapter_model.safetensors"), adapter_of(chosen))


@pytest.mark.ray
def test_any_trainer_that_does_not_shuffle_replays_it(chosen):
    """The lines in batches of four through transformers' own loss, torch's AdamW and the rates of the schedule."""
    config, rows, batches = encoded_curriculum(chosen)
    encoded = EncodedRows(rows)
    model = build_model(config, "nano", None, False)
    weights = trainable_parameters(model)
    assert config.weight_decay == 0 and config.lora_dropout == 0
    steps = torch.optim.AdamW(weights.values(), weight_decay=0.0, eps=config.adam_epsilon)
    for batch, rate in zip(batches, learning_rates(config, len(batches)), strict=True):
        sequences = encoded.token_rows(encoded.positions(batch))
        width = max(map(len, sequences))
        ids, labels = torch.zeros((len(batch), width), dtype=torch.int64), torch.full((len(batch), width), -100)
        for number, row in enumerate(sequences):
            ids[number, : len(row)] = torch.from_numpy(row.input_ids)
            labels[number, : len(row)] = torch.from_numpy(row.labels)
        mask = (torch.arange(width) < torch.tensor([[len(row)] for row in sequences])).long()
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), config.max_grad_norm)
        for group in steps.param_groups:
            group["lr"] = rate
        steps.step()
        steps.zero_grad()
    expected = {name.replace(".weight", ".default.weight"): value for name, value in adapter_of(chosen).items()}
    moved = max(float(np.abs(value).max()) for value in expected.values())
    assert expected.keys() == weights.keys()
    assert max(float(np.abs(weights[name].detach().numpy() - expected[name]).max()) for name in weights) < 1e-3 * moved


@pytest.mark.ray
def test_run_again_every_stage_is_skipped(chosen, world):
    before = len((chosen.run.opened.folder / "events.jsonl").read_text().splitlines())
    again = select(world, chosen.run.opened.folder.path, workers=2)
    events = [json.loads(line) for line in (again.run.opened.folder / "events.jsonl").read_text().splitlines()][before:]
    assert {event["event"] for event in events} == {"skipped"} and len(events) >= 9
    assert again.ids == chosen.ids


# --- where it runs ----------------------------------------------------------------------------------------------------


def rounds_by(fleet, folder, setup, learning, seed=0):
    """Learn, and give the logs without times, and the policy's last bits."""
    place = open_location(folder).make_folder()
    list(learn_rounds(place, setup, learning, fleet, seed))
    return logs_of(place, learning.rounds)


def logs_of(place, rounds):
    episodes = [load_episodes(place / round_name(n)) for n in range(1, rounds + 1)]
    tables = [[e.table.drop_columns(TIMES) for e in found] for found in episodes]
    reports = [[(e.report_start, e.report_end) for e in found] for found in episodes]
    return tables, reports, (place / round_name(rounds) / POLICY).read_bytes()


@pytest.fixture(scope="module")
def learned(chosen):
    """What the run itself learned, with one training at a time that validates by itself."""
    (folder,) = {
        place.path.rsplit("/", 2)[0] for place in chosen.run.opened.files(chosen.run.opened.manifest("learn"), "rounds")
    }
    return logs_of(open_location(folder), ROUNDS)


@pytest.mark.ray
def test_in_this_process_the_rounds_are_the_same(learned, parts, tmp_path):
    setup, learning, _ = parts
    assert rounds_by(LocalFleet(setup), tmp_path, setup, learning) == learned


@pytest.fixture(scope="module")
def many_passes(parts):
    """A setup whose steps have several passes, and whose validation has several batches."""
    setup, learning, resources = parts
    answered = [
        {
            "id": number,
            "messages": [
                {"role": "user", "content": example["prompt"]},
                {"role": "assistant", "content": example["reference"]},
            ],
        }
        for number, example in enumerate(examples(200, 1, ["add", "reverse", "subtract", "replace"]))
    ]
    place = dataclasses.replace(setup.place, tokens_per_pass=64)
    train = setup.train.model_copy(update={"lora_dropout": 0.1})
    setup = dataclasses.replace(setup, validation=pa.Table.from_pylist(answered), place=place, train=train)
    assert len(setup.validator().batches) >= 2
    return setup, learning.model_copy(update={"rounds": 1}), resources


@pytest.mark.ray
@pytest.mark.slow
def test_two_processes_train_measure_and_pick_what_one_does(many_passes, tmp_path, monkeypatch):
    setup, learning, resources = many_passes
    monkeypatch.setattr(policy_episodes, "RankProcess", counting())
    made, usual = [], StepTrainer._pass
    with monkeypatch.context() as patch:
        patch.setattr(StepTrainer, "_pass", lambda *given: made.append(1) or usual(*given))
        alone = rounds_by(LocalFleet(setup), tmp_path / "alone", setup, learning)
    own = resources.model_copy(update={"train": TrainRole(workers=2), "worker_gib": 0.25})
    with ray_fleet(setup, own, 1) as fleet:
        assert (fleet.ranks, len(fleet.groups), len(fleet.groups[0])) == (2, 1, 2)
        granted = ray.get(fleet.groups[0][1].__ray_call__.remote(granted_to))
        assert granted["memory"] == 2**28 and granted["CPU"] == own.cpus
        assert rounds_by(fleet, tmp_path / "two", setup, learning) == alone
        passes = ray.get([actor.__ray_call__.remote(lambda process: process.passes) for actor in fleet.groups[0]])
    assert min(passes) > 0 and sum(passes) == len(made), "each had its share of the passes"


def granted_to(_):
    return ray.get_runtime_context().get_assigned_resources()


def counting():
    class Counting(policy_episodes.RankProcess):
        passes = 0

        def run(self, training, address):
            usual = StepTrainer._pass

            def counted(trainer, *given):
                self.passes += 1
                return usual(trainer, *given)

            StepTrainer._pass = counted  # in this process alone
            try:
                return super().run(training, address)
            finally:
                StepTrainer._pass = usual

    return Counting


@pytest.mark.ray
@pytest.mark.slow
def test_two_trainings_side_by_side_are_those_of_one_after_the_other(parts, tmp_path):
    setup, learning, resources = parts
    learning, found = learning.model_copy(update={"episodes": 2}), []
    for workers in (1, 2):
        counts = f"steps by {workers}"
        with ray_fleet(setup, resources.model_copy(update={"workers": workers}), 2, counts=counts) as fleet:
            assert len(fleet.groups) == workers
            found.append(rounds_by(fleet, tmp_path / str(workers), setup, learning))
        told = read_counts(counts)
        assert len(told) == workers and 0 < sum(done for done, _, _ in told) <= 2 * ROUNDS * STEPS
    assert found[0] == found[1]
    picks = [[table["picks"].to_pylist() for table in tables] for tables in found[0][0]]
    assert all(one != two for one, two in picks), "the two trainings of a round draw differently"
    assert [table["episode"][0].as_py() for table in found[0][0][0]] == [0, 1]


@pytest.mark.ray
@pytest.mark.slow
def test_a_group_that_loses_a_process_goes_on_from_its_last_state(many_passes, tmp_path, monkeypatch):
    """The second process dies in the third step, after the state of the second was saved."""
    setup, learning, resources = many_passes
    setup = dataclasses.replace(setup, every=2)
    alone = rounds_by(LocalFleet(setup), tmp_path / "alone", setup, learning)
    folder, marks = tmp_path / "two", tmp_path / "steps"
    monkeypatch.setattr(policy_episodes, "RankProcess", mortal(str(marks)))
    with ray_fleet(setup, resources.model_copy(update={"train": TrainRole(workers=2)}), 1) as fleet:
        assert rounds_by(fleet, folder, setup, learning) == alone
    assert marks.read_text() == "01223", "two steps and the one after which it died; then on from the second step"
    assert not list(folder.glob("*.begun")), "states go with the round"


def mortal(marks):
    class Mortal(policy_episodes.RankProcess):
        def _count(self):
            super()._count()
            if self.rank:
                first = not os.path.exists(marks) or "2" not in Path(marks).read_text()
                with open(marks, "a") as file:
                    file.write(str(self.runner.trainer.step_number - 1))
                if self.runner.trainer.step_number == 3 and first:
                    os._exit(1)

    return Mortal


@pytest.mark.ray
@pytest.mark.slow
def test_a_training_that_blows_up_in_an_actor_is_named(parts):
    setup, _, resources = parts
    wild = dataclasses.replace(
        setup, train=setup.train.model_copy(update={"learning_rate": 1e30, "max_grad_norm": 0.0})
    )
    with ray_fleet(wild, resources.model_copy(update={"train": TrainRole(workers=2)}), 1) as fleet:
        weights = policy_learning.actor_weights(learner_of(wild))
        with pytest.raises(StageError, match="learning rate"):
            fleet.run_round(weights, 1, [None])


def learner_of(setup):
    from raysift.policy.learning import Learner
    from raysift.policy.settings import LearningSettings

    return Learner(setup.pool, setup.policy, LearningSettings(), 0)


@pytest.mark.ray
def test_a_wait_for_room_ends_and_names_its_setting(parts):
    setup, _, resources = parts
    own = resources.model_copy(update={"train": TrainRole(workers=8), "cpus_per_worker": 1.0, "wait_s": 1})
    message = r"no room after 1 s \(resources\.wait_s\): .* of 8 processes ask for 1 CPUs each.*has 4 CPUs"
    with pytest.raises(StageError, match=message):
        RayFleet(setup, own, 1)


def test_processes_are_a_power_of_two_and_trainings_share_the_rest():
    assert [divide(8, 3, processes) for processes in (1, 2, 3, 4, 8, 9)] == [
        (1, 3),
        (2, 3),
        (2, 3),
        (4, 2),
        (8, 1),
        (8, 1),
    ]
    assert divide(4, 3, 8) == (8, 1), "more than there is room for: a wait that ends with a message"
    # On GPUs by default, the split that ends a round soonest; every other one takes as long or longer.
    assert [divide(gpus, 1, None) for gpus in (1, 2, 6, 8, 16)] == [(1, 1), (2, 1), (4, 1), (8, 1), (8, 1)]
    assert [divide(8, episodes, None) for episodes in (2, 3, 4, 8)] == [(4, 2), (8, 1), (2, 4), (1, 8)]
    for gpus in range(1, 20):
        for episodes in range(1, 12):
            ranks, groups = divide(gpus, episodes, None)
            assert ranks * groups <= gpus and groups <= episodes
            splits = [(r, g) for r in (1, 2, 4, 8) for g in range(1, episodes + 1) if r * g <= gpus]
            assert -(-episodes // groups) / ranks == min(-(-episodes // g) / r for r, g in splits)
    assert divide(16, 2, None) == (8, 2)


# --- interruptions ----------------------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


@pytest.mark.ray
@pytest.mark.parametrize("when", ["between rounds", "while a round is saved"])
def test_learning_that_was_stopped_goes_on_with_the_next_round(learned, parts, tmp_path, monkeypatch, when):
    setup, learning, _ = parts
    place, fleet, asked = open_location(tmp_path), LocalFleet(setup), []
    runs = fleet.run_round
    monkeypatch.setattr(fleet, "run_round", lambda *given: asked.append(given[1]) or runs(*given))
    if when == "between rounds":
        next(learn_rounds(place, setup, learning, fleet, 0))
    else:
        with monkeypatch.context() as patch:
            patch.setattr(Location, "write", stop_at(2, Location.write, lambda place, _: place.name == ROUND))
            with pytest.raises(Stopped):
                list(learn_rounds(place, setup, learning, fleet, 0))
        assert (place / round_name(2) / EPISODES).exists() and not (place / round_name(2) / ROUND).exists()
    list(learn_rounds(place, setup, learning, fleet, 0))
    assert asked == ([1, 2] if when == "between rounds" else [1, 2, 2])
    assert logs_of(place, ROUNDS) == learned


def stop_at(call, function, counts=lambda *given: True):
    calls = []

    def stopping(*given, **named):
        calls.extend([1] * counts(*given))
        if len(calls) == call and counts(*given):
            raise Stopped
        return function(*given, **named)

    return stopping


def unfinished(chosen, world, folder, keep_round_2):
    """The run as a kill in `learn` would have left it, or in `final` after two steps."""
    shutil.copytree(chosen.run.opened.folder.path, folder)
    for stage in ("final", "order", "choose"):
        shutil.rmtree(folder / stage)
    (folder / "learn" / "manifest.json").unlink()
    if not keep_round_2:
        (last,) = folder.glob(f"learn/*/rounds/{round_name(2)}/{ROUND}")
        last.unlink()
    return folder


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_that_was_stopped_while_learning_ends_with_the_same_selection(chosen, world, tmp_path):
    folder = unfinished(chosen, world, tmp_path / "run", keep_round_2=False)
    (first,) = folder.glob(f"learn/*/rounds/{round_name(1)}/{ROUND}")
    written = first.stat().st_mtime_ns
    again = select(world, folder)
    assert first.stat().st_mtime_ns == written
    assert again.ids == chosen.ids and again.table().equals(chosen.table())
    assert final_log(again).equals(final_log(chosen)) and same(adapter_of(again), adapter_of(chosen))
    events = [json.loads(line) for line in (again.run.opened.folder / "events.jsonl").read_text().splitlines()]
    assert [event["stage"] for event in events if event["event"] == "continued"] == ["learn"]


@pytest.mark.ray
@pytest.mark.slow
def test_a_training_killed_for_memory_goes_on_with_smaller_passes_and_selects_the_same(
    chosen, world, tmp_path, monkeypatch
):
    usual, asked = RayFleet.run_round, []

    def killed_in_round_2(self, policy, number, draws, folder):
        asked.append((number, self.setup.place.tokens_per_pass, self.resources.threads))
        if len(asked) == 2:
            raise StageError("episodes: a training ended") from ray.exceptions.OutOfMemoryError("OUT_OF_MEMORY")
        return usual(self, policy, number, draws, folder)

    monkeypatch.setattr(RayFleet, "run_round", killed_in_round_2)
    again = select(world, tmp_path / "run")
    assert asked == [(1, 4096, 1), (2, 4096, 1), (2, 2048, 1)], "round 1 is not repeated"
    assert again.ids == chosen.ids and final_log(again).equals(final_log(chosen))
    events = [json.loads(line) for line in (again.run.opened.folder / "events.jsonl").read_text().splitlines()]
    (killed,) = (event for event in events if event["event"] == "killed")
    assert killed["stage"] == "learn" and killed["tokens_per_pass"] == 2048


@pytest.mark.ray
@pytest.mark.slow
def test_with_nothing_set_one_training_of_a_larger_model_has_all_cores_and_asks_for_its_memory(
    chosen, world, tmp_path, monkeypatch
):
    """The nano model counts as a larger one here."""
    monkeypatch.setattr(memory, "SMALL", 0)
    usual, started = RayFleet.__init__, []

    def noted(self, setup, resources, *rest):
        started.append((setup.place.threads, resources.cpus, resources.memory))
        usual(self, setup, resources, *rest)

    monkeypatch.setattr(RayFleet, "__init__", noted)
    settings = settings_of(world) | {"resources": {}}
    found = raysift.select("raise", str(world / "pool.jsonl"), run=str(tmp_path / "run"), **settings)
    assert len(found) > 0 and len(started) == 2, "learning, and the final training"
    for threads, cpus, reserved in started:
        assert (threads, cpus) == (4, 4.0)
        assert memory.PROCESS_BYTES < reserved < 2 * memory.GIB


# --- another pool -----------------------------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.slow
def test_a_policy_is_applied_to_another_pool_without_learning(chosen, world, tmp_path):
    there = {"policy_from": chosen.run.opened.folder.path, "episode": {"steps": 3}}
    found = select(world, tmp_path / "run", "other", there)
    assert found.run.opened.manifest("learn") is None
    assert place_of(found, "features", "fitted").read_bytes() == place_of(chosen, "features", "fitted").read_bytes()
    assert 0 < len(found) <= 3 * BATCH
    own = set(scores_of(found)["id"].to_pylist())
    assert set(found.ids) <= own and not own <= set(scores_of(chosen)["id"].to_pylist())
    final = found.run.opened.manifest("final")
    assert final.settings["policy"] == chosen.run.opened.manifest("learn").settings["policy"]


@pytest.mark.ray
def test_a_run_without_a_policy_is_no_source(chosen, world, tmp_path):
    with pytest.raises(ConfigError, match="is no run folder"):
        select(world, tmp_path / "run", method_settings={"policy_from": str(tmp_path / "nowhere")})
    folder = unfinished(chosen, world, tmp_path / "half", keep_round_2=True)
    with pytest.raises(ConfigError, match="has not learned a policy"):
        select(world, tmp_path / "run", method_settings={"policy_from": str(folder)})


@pytest.mark.ray
def test_what_cannot_work_is_refused(chosen, world, tmp_path):
    pool, settings = str(world / "pool.jsonl"), settings_of(world)
    with pytest.raises(ConfigError, match="not tokens"):
        raysift.select("raise", pool, run=str(tmp_path / "new"), **settings | {"budget": "100tok"})
    with pytest.raises(ConfigError, match="needs validation examples"):
        raysift.select("raise", pool, run=str(tmp_path / "new"), **settings | {"target": []})
    one = tmp_path / "one.jsonl"
    one.write_bytes((world / "target.jsonl").read_bytes().splitlines()[0])
    copy = tmp_path / "run"
    shutil.copytree(chosen.run.opened.folder.path, copy)
    shutil.rmtree(copy / "validation")
    with pytest.raises(DataError, match="1 of 1 examples have a reference answer"):
        raysift.select("raise", pool, run=str(copy), **settings | {"target": [str(one)]})


# --- kills ------------------------------------------------------------------------------------------------------------


def command(world, run):
    return [
        *(sys.executable, "-m", "raysift.jobs", "raise", "--pool", str(world / "pool.jsonl"), "--run", str(run)),
        *("--target", str(world / "target.jsonl"), "--log", "json", "train.recipe=nano", f"train.batch_size={BATCH}"),
        *("train.max_length=256", "raise.features.semantic_dimensions=8", "raise.policy.hidden=[8]"),
        *("raise.learning.rounds=3", f"raise.episode.steps={STEPS}", "raise.steps_per_state=1"),
        *("resources.workers=1", "resources.threads=1", "resources.cpus_per_worker=0.25"),
    ]


def kill_when(arguments, ready, log):
    """Start the command, and SIGKILL its driver once `ready` holds."""
    with log.open("w") as said:
        process = subprocess.Popen(arguments, stdout=said, stderr=said)
        while not ready():
            assert process.poll() is None, log.read_text()[-4000:]
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_driver_killed_while_it_learns_and_while_it_trains_ends_with_the_undisturbed_selection(world, tmp_path):
    subprocess.run(command(world, tmp_path / "calm"), check=True, capture_output=True, timeout=300)
    run, log = tmp_path / "killed", tmp_path / "log"
    rounds = [f"learn/*/rounds/{round_name(number)}/{ROUND}" for number in (1, 2)]
    for pattern in ("learn/*", *rounds, "final/*/state-2"):
        kill_when(command(world, run), lambda pattern=pattern: any(run.glob(pattern)), log)
    done = subprocess.run(command(world, run), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    calm, killed = (pq.read_table(tmp_path / name / "selection.parquet") for name in ("calm", "killed"))
    assert killed.equals(calm)
    adapters = [
        load_file(*(tmp_path / name).glob("final/*/epoch-1/adapter/adapter_model.safetensors"))
        for name in ("calm", "killed")
    ]
    assert same(*adapters)


def test_its_report_tells_which_rows_were_picked_and_which_could_not_be(chosen):
    plain = sound(report_of(chosen.run.opened))
    picked = chosen.run.opened.manifest("final").counts["kept"]
    assert stages(plain)["order"]["kept"] == picked and stages(plain)["choose"]["rows_in"] == picked
    assert stages(plain)["choose"]["kept"] == len(chosen) == len(shown(plain, "chosen"))
    assert shown(plain, NOTHING_TO_LEARN)[0]["verdict"].startswith(f"Not selected: {NOTHING_TO_LEARN}")

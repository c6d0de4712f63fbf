"""Trainings of the nano model under a policy: their log, what they repeat, and what an interruption leaves."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import load_file

from raysift.actors import frozen_training
from raysift.actors.effective_batches import EncodeRows, Place, split_trainable
from raysift.actors.episode import EpisodeRunner, EpisodeSetup, measure_here
from raysift.actors.frozen_training import LOG_FILE, FrozenTraining, KeptTraining
from raysift.actors.step_trainer import StepTrainer
from raysift.errors import StageError
from raysift.nano.world import examples, generate_pool
from raysift.policy.drawing import Draw
from raysift.policy.network import Acquisition
from raysift.policy.picking import Picker
from raysift.policy.pool import PolicyPool
from raysift.policy.settings import EpisodeSettings, PolicySettings
from raysift.policy.state import LOG, replay
from raysift.settings.training import recipe
from raysift.storage import open_location

from ..tiny_policies import WIDTH, tiny_pool  # noqa: TID252

ROWS, STEPS, BATCH = 60, 4, 4
TRAIN = recipe("nano", batch_size=BATCH, warmup_ratio=0.0, lora_dropout=0.1)
POLICY = PolicySettings(classes=2, hidden=(8,))
DRAW = Draw(3, "round 1, training 0")
TIMES = ["choose_s", "train_s", "validate_s"]


def conversations(count, seed, first=0):
    rows = examples(count, seed, ["add", "reverse"])
    answered = [
        [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["reference"]}] for r in rows
    ]
    return pa.Table.from_pylist([{"id": first + n, "messages": messages} for n, messages in enumerate(answered)])


@pytest.fixture(scope="module")
def setup() -> EpisodeSetup:
    """Random features; what a policy makes of them is as good as any other policy here."""
    features = tiny_pool(ROWS, 2)
    raw = [{"id": 7 * n, "messages": row["messages"]} for n, row in enumerate(generate_pool(ROWS, 0))]
    rows, _ = split_trainable(EncodeRows("nano", "auto", 512)(pa.Table.from_pylist(raw)))
    ids = rows["id"].to_numpy()
    kept = np.arange(len(ids))
    return EpisodeSetup(
        pool=PolicyPool(ids, features.features[kept], features.classes[kept]),
        rows=rows,
        validation=conversations(6, 0),
        report=conversations(4, 9, first=100),
        policy=POLICY,
        episode=EpisodeSettings(),
        train=TRAIN,
        model="nano",
        steps=STEPS,
        place=Place(device="cpu", threads=1),
    )


@pytest.fixture(scope="module")
def runner(setup) -> EpisodeRunner:
    return EpisodeRunner(setup)


def weights_of(seed=1, hidden=POLICY.hidden):
    """A policy with scores far apart."""
    found = {name: value.numpy() for name, value in Acquisition(WIDTH, hidden, seed).state_dict().items()}
    return found | {"rest.0.weight": 20 * found["rest.0.weight"]}


def without_times(episode):
    return episode.table.drop_columns(TIMES)


def same(one, two):
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def episode(runner):
    found = runner(weights_of(), 2, 1, DRAW)
    return found, runner.trainer.weights()


def test_the_log_has_a_line_for_the_start_and_for_each_step(setup, runner, episode):
    table = episode[0].table
    assert table.schema == LOG and table["step"].to_pylist() == list(range(STEPS + 1))
    assert set(table["round"].to_pylist()) == {2} and set(table["episode"].to_pylist()) == {1}
    assert [len(picks) for picks in table["picks"].to_pylist()] == [0] + [BATCH] * STEPS
    assert table["performance"].null_count == 0 and table["loss"].to_pylist()[0] is None
    assert min(table["loss"].to_pylist()[1:]) > 0 > max(table["performance"].to_pylist())
    assert all(min(table[name].to_pylist()[1:]) > 0 for name in TIMES)
    found = episode[0]
    assert found.performance[0] == runner.start and found.report_start == runner.report_start
    assert found.report_end is not None and found.report_end not in (found.report_start, found.performance[-1])
    classes = dict(zip(setup.pool.ids.tolist(), setup.pool.classes.tolist(), strict=True))
    assert all(sorted(classes[row] for row in batch.tolist()) == [0, 0, 1, 1] for batch in found.picks)


def test_the_same_training_twice_is_the_same_and_another_draw_is_not(setup, runner, episode):
    again = runner(weights_of(), 2, 1, DRAW)
    assert without_times(again).equals(without_times(episode[0]))
    assert same(runner.trainer.weights(), episode[1])
    steps = []
    elsewhere = EpisodeRunner(setup, on_step=lambda: steps.append(1))
    assert without_times(elsewhere(weights_of(), 2, 1, DRAW)).equals(without_times(episode[0]))
    assert len(steps) == STEPS, "progress is told step by step"
    other = runner(weights_of(), 2, 1, Draw(3, "round 1, training 1"))
    assert [b.tolist() for b in other.picks] != [b.tolist() for b in episode[0].picks]


def test_states_that_the_policy_saw_are_those_rebuilt_from_the_log(setup, runner, monkeypatch):
    lived, pick = [], Picker.batch

    def watched(self, state, size, step, draw):
        lived.append((state.stage.copy(), state.counts.copy(), step))
        return pick(self, state, size, step, draw)

    monkeypatch.setattr(Picker, "batch", watched)
    found = runner(weights_of(), 1, 0, None)
    rebuilt = list(replay(found, setup.pool))
    assert len(lived) == len(rebuilt) == STEPS
    for number, ((stage, counts, step), (state, _)) in enumerate(zip(lived, rebuilt, strict=True), 1):
        assert step == number
        assert np.array_equal(stage, state.stage) and np.array_equal(counts, state.counts)
    assert lived[-1][1].max() > 1, "the highest scores come back, so counts beyond 1 are compared too"


def test_a_training_is_what_a_plain_loop_makes_of_its_log(setup, runner, episode):
    trainer = StepTrainer(setup.rows, TRAIN, STEPS, "nano", setup.place)
    measure, losses, known = measure_here(setup.validator()), [], []
    for batch in episode[0].picks:
        losses.append(trainer.step(batch))
        known.append(measure(trainer))
    assert same(trainer.weights(), episode[1])
    assert losses == episode[0].table["loss"].to_pylist()[1:] and known == episode[0].performance[1:].tolist()


def test_without_a_draw_the_highest_scores_are_picked(setup, runner):
    found = runner(weights_of(), 1, 0, None)
    picker = runner.picker(weights_of())
    for (state, picked), step in zip(replay(found, setup.pool), range(1, STEPS + 1), strict=True):
        scores = picker.scores(state)
        assert setup.pool.ids[picked].tolist() == picker.batch(state, BATCH, step, None).tolist()
        for number in (0, 1):
            rows = np.flatnonzero(setup.pool.classes == number)
            assert scores[np.intersect1d(picked, rows)].min() >= np.sort(scores[rows])[-2]


@pytest.mark.parametrize("every", [2, 3])
def test_measured_every_few_steps_and_always_at_the_end(setup, runner, every):
    settings = dataclasses.replace(setup, episode=EpisodeSettings(validate_every=every))
    sparse = EpisodeRunner(settings, runner.measure)
    blind = weights_of() | {"stage.weight": np.zeros_like(weights_of()["stage.weight"])}
    found, full = sparse(blind, 1, 0, DRAW), runner(blind, 1, 0, DRAW)
    gaps = np.isnan(found.performance)
    assert gaps.tolist() == [step % every != 0 and step != STEPS for step in range(STEPS + 1)]
    # The policy does not see the stage, so the picks are the same, and so is what was measured.
    assert np.array_equal(found.performance[~gaps], full.performance[~gaps])
    assert [b.tolist() for b in found.picks] == [b.tolist() for b in full.picks]


def test_without_rows_for_the_report_there_is_none(setup):
    found = EpisodeRunner(dataclasses.replace(setup, report=setup.report.slice(0, 0), steps=1))(
        weights_of(), 1, 0, None
    )
    assert found.report_start is None and found.report_end is None and found.steps == 1


def test_a_log_that_does_not_fit_the_trainer_is_refused(runner, episode):
    runner.trainer.restart()
    with pytest.raises(StageError, match="the log holds 4 steps, the trainer stands at 0"):
        runner.train(runner.picker(weights_of()), DRAW, lines=episode[0].table.to_pylist())


# --- the frozen policy ------------------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


def frozen(folder, every=2):
    return FrozenTraining(weights_of(), DRAW, open_location(folder).make_folder(), every)


def adapter(folder):
    return load_file(folder / "epoch-1" / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def undisturbed(runner, tmp_path_factory):
    folder = tmp_path_factory.mktemp("frozen")
    return frozen(folder)(runner), folder


def test_a_frozen_training_is_a_training_whose_model_is_kept(runner, undisturbed):
    found, folder = undisturbed
    plain = runner(weights_of(), 0, 0, DRAW)
    assert without_times(found).equals(without_times(plain))
    assert sorted(p.name for p in folder.iterdir()) == ["epoch-1", LOG_FILE, f"state-{STEPS}"]
    named = {name.removeprefix("base_model.model."): value for name, value in adapter(folder).items()}
    assert len(named) == len(runner.trainer.weights()) and any(np.abs(value).max() > 0 for value in named.values())


def stop_in_step(monkeypatch, step):
    made = StepTrainer.step

    def stopping(self, ids):
        if self.step_number == step:
            raise Stopped
        return made(self, ids)

    monkeypatch.setattr(StepTrainer, "step", stopping)


def stop_in_log(monkeypatch, step):
    """After the trainer's state was written and before the log that makes it count."""
    written = frozen_training.pq.write_table

    def stopping(table, place, **rest):
        if len(table) == step + 1:
            raise Stopped
        written(table, place, **rest)

    monkeypatch.setattr(frozen_training.pq, "write_table", stopping)


def stop_at_the_end(monkeypatch, _):
    def stopping(*_):
        raise Stopped

    monkeypatch.setattr(StepTrainer, "save_epoch", stopping)


@pytest.mark.parametrize(
    ("stop", "when", "every", "made_again"),
    [(stop_in_step, 3, 2, 2), (stop_in_step, 1, 2, 4), (stop_in_log, 4, 2, 2), (stop_at_the_end, 4, 3, 0)],
    ids=["between states", "before any state", "between state and log", "after the last step"],
)
def test_interrupted_and_resumed_is_the_same_to_the_bit(setup, undisturbed, tmp_path, stop, when, every, made_again):
    with pytest.MonkeyPatch.context() as patch:
        stop(patch, when)
        with pytest.raises(Stopped):
            frozen(tmp_path, every)(EpisodeRunner(setup))
    fresh, steps = EpisodeRunner(setup), []
    fresh.trainer.step = lambda ids: steps.append(ids) or StepTrainer.step(fresh.trainer, ids)
    again = frozen(tmp_path, every)(fresh)
    assert len(steps) == made_again
    assert without_times(again).equals(without_times(undisturbed[0]))
    assert (again.report_start, again.report_end) == (undisturbed[0].report_start, undisturbed[0].report_end)
    assert same(adapter(tmp_path), adapter(undisturbed[1]))
    assert [p.name for p in tmp_path.glob("state-*")] == [f"state-{STEPS}"]


def test_a_training_of_a_round_resumes_too_and_keeps_no_state_of_its_end(setup, runner, episode, tmp_path):
    kept = KeptTraining(weights_of(), DRAW, open_location(tmp_path), 2, number=2, episode=1)
    with pytest.MonkeyPatch.context() as patch:
        stop_in_step(patch, 3)
        with pytest.raises(Stopped):
            kept(runner)
    assert kept.steps_kept() == 2
    again = kept(runner)
    assert without_times(again).equals(without_times(episode[0]))
    assert sorted(place.name for place in tmp_path.iterdir()) == [LOG_FILE, "state-2"]

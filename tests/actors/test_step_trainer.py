"""Steps over chosen batches against the fine-tune of the same batches, and against themselves begun anew."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.numpy import load_file

from raysift.actors.effective_batches import EffectiveBatches, EncodeRows, Place, split_trainable
from raysift.actors.language_model import load_language_model
from raysift.actors.peers import LANES, Peers, TreeSum, most_processes
from raysift.actors.step_trainer import StepTrainer, deal, plan_passes
from raysift.actors.train_checkpoints import epoch_records
from raysift.actors.trainee import train
from raysift.errors import StageError
from raysift.gradients import cpu_products
from raysift.gradients.moments import load_moments
from raysift.nano.world import WorldConfig, generate_pool
from raysift.settings.training import TrainConfig, recipe
from raysift.storage import open_location

from ..tiny_models import tiny_llama  # noqa: TID252

ONE = Place(device="cpu", threads=1)
TINY = TrainConfig(
    lora_rank=4, learning_rate=1e-2, warmup_ratio=0.1, epochs=2, batch_size=8, max_length=64, dtype="fp32"
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return tiny_llama(tmp_path_factory.mktemp("model"))


def tiny_rows(model: str, count: int = 20) -> pa.Table:
    rows = [
        {
            "id": (number * 7919) % 10007,
            "messages": [
                {"role": "user", "content": "repeat " + "ab" * (number % 5 + 1)},
                {"role": "assistant", "content": "ab" * (number % 5 + 1)},
            ],
        }
        for number in range(count)
    ]
    return split_trainable(EncodeRows(model, "auto", 64)(pa.Table.from_pylist(rows)))[0]


def nano_rows(count: int = 48) -> pa.Table:
    pool = list(generate_pool(count, 0, WorldConfig()))
    rows = [{"id": number, "messages": row["messages"]} for number, row in enumerate(pool)]
    return split_trainable(EncodeRows("nano", "auto", 512)(pa.Table.from_pylist(rows)))[0]


def epoch_batches(rows: pa.Table, config: TrainConfig) -> list[np.ndarray]:
    """The ids of the batches that a fine-tune takes."""
    batches = EffectiveBatches(rows, config, ONE)
    return [batches.rows.ids[batches.rows_of_step(step)] for step in range(batches.steps)]


def steps_over(trainer: StepTrainer, batches: list[np.ndarray]) -> list[float]:
    return [trainer.step(batch) for batch in batches]


def same(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


def largest_difference(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> float:
    assert one.keys() == two.keys()
    return max(float(np.abs(one[name] - two[name]).max()) for name in one)


def trained_and_stepped(rows, config, model, folder, place=ONE):
    """The weights of a fine-tune and of a StepTrainer over the same batches, and how far the weights moved."""
    train(rows, open_location(folder / "tuned"), config, model, place)
    batches = epoch_batches(rows, config)
    trainer = StepTrainer(rows, config, len(batches), model, place)
    first = trainer.weights()
    steps_over(trainer, batches)
    record = trainer.save_epoch(open_location(folder / "stepped"))
    part = "adapter/adapter_model" if config.method == "lora" else "model/model"
    last = len(epoch_records(open_location(folder / "tuned")))
    tuned = load_file(folder / "tuned" / f"epoch-{last}" / f"{part}.safetensors")
    stepped = load_file(folder / "stepped" / "epoch-1" / f"{part}.safetensors")
    return tuned, stepped, largest_difference(first, trainer.weights()), record


def test_the_nano_model_gets_the_adapter_of_a_fine_tune(tmp_path):
    """In other passes. Adam makes much of rounding in the smallest gradients; a larger epsilon keeps it small."""
    config = recipe("nano", epochs=2, adam_epsilon=1e-5)
    tuned, stepped, moved, _ = trained_and_stepped(nano_rows(), config, "nano", tmp_path)
    assert largest_difference(tuned, stepped) < 1e-6 and moved > 1e-3


def test_the_order_of_a_batch_changes_nothing():
    rows, found = nano_rows(), []
    config = recipe("nano", epochs=2)
    for turn in (1, -1):
        trainer = StepTrainer(rows, config, 6, "nano", ONE)
        losses = [trainer.step(batch[::turn]) for batch in epoch_batches(rows, config)]
        found.append((losses, trainer.weights()))
    assert found[0][0] == found[1][0] and same(found[0][1], found[1][1])


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "full", "learning_rate": 1e-3, "weight_decay": 0.1},
        {"weight_decay": 0.1, "schedule": "cosine"},
        {"max_grad_norm": 0.0, "adam_beta2": 0.95},
    ],
)
def test_the_tiny_model_gets_the_weights_of_a_fine_tune(tmp_path, tiny, changes):
    config = TINY.model_copy(update=changes)
    tuned, stepped, moved, record = trained_and_stepped(tiny_rows(tiny), config, tiny, tmp_path)
    assert largest_difference(tuned, stepped) < 1e-6 and moved > 1e-3
    epochs = epoch_records(open_location(tmp_path / "tuned"))
    assert record.label_tokens == sum(epoch.label_tokens for epoch in epochs)
    assert record.loss_sum == pytest.approx(sum(epoch.loss_sum for epoch in epochs), rel=1e-5)
    assert record.last_learning_rate == epochs[-1].last_learning_rate and record.step == epochs[-1].step
    means = [
        load_moments(open_location(tmp_path / run / "moments.safetensors"))
        for run in ("tuned/epoch-2", "stepped/epoch-1")
    ]
    assert means[0].names == means[1].names and means[0].step == means[1].step
    assert largest_difference(means[0].exp_avg, means[1].exp_avg) < 1e-6


def test_a_wide_model_gets_the_weights_of_a_fine_tune_with_either_library_of_products(tmp_path, monkeypatch):
    wide = tiny_llama(tmp_path / "wide", hidden=cpu_products.WORTH_IT)
    rows, found = tiny_rows(wide), []
    for quick in (True, False):
        if not quick:
            monkeypatch.setattr(cpu_products, "_permission_changes_nothing", lambda: False)
        tuned, stepped, moved, _ = trained_and_stepped(rows, TINY, wide, tmp_path / str(quick))
        assert largest_difference(tuned, stepped) < 1e-6 and moved > 1e-3
        found.append(tuned)
    assert largest_difference(*found) < 1e-4  # Adam divides by small numbers, and enlarges rounding


def test_bfloat16_is_that_of_a_fine_tune(tmp_path, tiny):
    """Rounding to eight bits hides nothing if both round at the same places."""
    config = TINY.model_copy(update={"dtype": "bf16", "learning_rate": 1e-3})
    tuned, stepped, moved, _ = trained_and_stepped(tiny_rows(tiny), config, tiny, tmp_path)
    assert all(values.dtype == np.float32 for values in stepped.values())
    assert largest_difference(tuned, stepped) < 0.05 * moved


def test_many_passes_are_one(tmp_path, tiny):
    rows, batch = tiny_rows(tiny), [7919 % 10007, 0, 7919 * 2 % 10007, 7919 * 3 % 10007]
    found = []
    for place in (ONE, dataclasses.replace(ONE, rows_per_pass=1), dataclasses.replace(ONE, tokens_per_pass=60)):
        trainer = StepTrainer(rows, TINY.model_copy(update={"warmup_ratio": 0.0}), 3, tiny, place)
        losses = [trainer.step(batch) for _ in range(3)]
        found.append((losses, trainer.weights()))
    for losses, weights in found[1:]:
        assert losses == pytest.approx(found[0][0], rel=1e-5)
        assert largest_difference(weights, found[0][1]) < 1e-5


@pytest.mark.parametrize("changes", [{"lora_dropout": 0.2}, {"method": "full"}])
def test_begun_anew_it_goes_the_same_way_bit_for_bit(tiny, changes):
    config, rows = TINY.model_copy(update=changes), tiny_rows(tiny)
    batches = epoch_batches(rows, config)
    trainer = StepTrainer(rows, config, len(batches), tiny, ONE)
    start = trainer.weights()
    losses = steps_over(trainer, batches)
    end = trainer.weights()
    trainer.restart()
    assert trainer.step_number == 0 and same(trainer.weights(), start) and not same(start, end)
    torch.manual_seed(99)  # the state of the caller's generator has no say in dropout
    assert steps_over(trainer, batches) == losses and same(trainer.weights(), end)
    other = StepTrainer(rows, config, len(batches), tiny, ONE)
    assert steps_over(other, batches) == losses and same(other.weights(), end)


@pytest.mark.parametrize("changes", [{"lora_dropout": 0.2}, {"method": "full", "weight_decay": 0.1}])
@pytest.mark.parametrize("stop", [0, 3])
def test_a_saved_state_goes_on_bit_for_bit(tmp_path, tiny, changes, stop):
    config, rows = TINY.model_copy(update=changes), tiny_rows(tiny)
    batches = epoch_batches(rows, config)
    whole = StepTrainer(rows, config, len(batches), tiny, ONE)
    losses = steps_over(whole, batches[:stop])
    whole.save_state(open_location(tmp_path / "state"))
    losses += steps_over(whole, batches[stop:])

    later = StepTrainer(rows, config, len(batches), tiny, ONE)
    later.step(batches[-1])
    later.load_state(open_location(tmp_path / "state"))
    assert later.step_number == stop
    assert steps_over(later, batches[stop:]) == losses[stop:] and same(later.weights(), whole.weights())
    records = [t.save_epoch(open_location(tmp_path / name)) for t, name in ((whole, "one"), (later, "two"))]
    assert records[0].model_dump(exclude={"seconds"}) == records[1].model_dump(exclude={"seconds"})
    later.restart()
    assert steps_over(later, batches) == losses


def test_dropout_and_the_caller_leave_each_other_alone(tiny):
    config = TINY.model_copy(update={"lora_dropout": 0.5})
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    trainers = [StepTrainer(tiny_rows(tiny), used, 4, tiny, ONE) for used in (config, TINY)]
    dropped, whole = ([trainer.step(trainer.rows.ids[:8]) for _ in range(4)] for trainer in trainers)
    assert torch.equal(torch.rand(3), expected)
    assert dropped[-1] != whole[-1]


def test_the_state_of_another_training_is_refused(tmp_path, tiny):
    rows, folder = tiny_rows(tiny), open_location(tmp_path / "state")
    trainer = StepTrainer(rows, TINY, 4, tiny, ONE)
    with pytest.raises(StageError, match=r"holds no state\.json"):
        trainer.load_state(folder)
    trainer.save_state(folder)
    with pytest.raises(StageError, match="4 steps, this one has 5"):
        StepTrainer(rows, TINY, 5, tiny, ONE).load_state(folder)
    with pytest.raises(StageError, match="do not fit"):
        StepTrainer(rows, TINY.model_copy(update={"lora_rank": 2}), 4, tiny, ONE).load_state(folder)


def test_batches_that_make_no_sense_are_refused_and_change_nothing(tiny):
    trainer = StepTrainer(tiny_rows(tiny), TINY, 1, tiny, ONE)
    known, start = int(trainer.rows.ids[0]), trainer.weights()
    for batch, message in (([known, 10_006], "id 10006"), ([known, known], "no row twice"), ([], "at least")):
        with pytest.raises(StageError, match=message):
            trainer.step(batch)
    assert trainer.step_number == 0 and same(trainer.weights(), start)
    trainer.step([known])
    with pytest.raises(StageError, match="all 1 steps"):
        trainer.step([known])


def test_rows_without_labels_and_doubled_ids_are_refused(tiny):
    rows = tiny_rows(tiny)
    silent = rows.set_column(2, "counted", pa.array([[False] * len(ids) for ids in rows["input_ids"].to_pylist()]))
    for table in (silent, rows.slice(0, 0)):
        with pytest.raises(StageError, match="split_trainable"):
            StepTrainer(table, TINY, 4, tiny, ONE)
    with pytest.raises(StageError, match="different ids"):
        StepTrainer(pa.concat_tables([rows, rows]), TINY, 4, tiny, ONE)


def test_a_training_that_blows_up_says_so_before_it_spoils_the_weights(tiny):
    trainer = StepTrainer(tiny_rows(tiny), TINY, 4, tiny, ONE)
    with torch.no_grad():
        next(iter(trainer.trainable.values())).fill_(float("nan"))
    with pytest.raises(StageError, match="Lower the learning rate"):
        trainer.step(trainer.rows.ids[:8])


def test_what_it_saves_loads_as_any_fine_tune(tmp_path, tiny):
    trainer = StepTrainer(tiny_rows(tiny), TINY, 2, tiny, ONE)
    for _ in range(2):
        trainer.step(trainer.rows.ids[:8])
    trainer.save_epoch(open_location(tmp_path))
    loaded = load_language_model(tiny, tmp_path / "epoch-1" / "adapter", dtype="fp32", device="cpu")
    saved = {name: weight.detach().numpy() for name, weight in loaded.named_parameters() if "lora_" in name}
    assert same(saved, trainer.weights())


# --- several processes ------------------------------------------------------------------------------------------------


def test_a_batch_has_as_many_passes_as_lanes_and_they_are_equal_and_hardly_padded():
    rng = np.random.default_rng(0)
    for rows in (32, 64, 200):
        lengths = np.minimum(2048, rng.lognormal(5.5, 0.8, rows).astype(int) + 8)
        passes = plan_passes(lengths, 4096, 64)
        assert sorted(row for one in passes for row in one) == list(range(rows))
        sizes = [len(one) * max(lengths[one]) for one in passes]
        assert max(sizes) <= 4096 and len(passes) <= LANES * -(-sum(sizes) // (LANES * 4096)) + LANES
        loads = [sum(sizes[number] for number in lane) for lane in deal(len(passes))]
        assert lengths.sum() / sum(sizes) > 0.8
        assert np.mean(loads) / max(loads) > 0.7


def test_small_batches_are_one_pass_and_long_rows_have_their_own():
    assert plan_passes([60] * 16, 4096, 64) == [list(range(16))]
    assert plan_passes([9000, 10], 4096, 64) == [[0], [1]]
    assert len(plan_passes([10] * 8, 4096, 1)) == 8
    assert [len(lane) for lane in deal(2)] == [1, 0, 0, 0, 1, 0, 0, 0] and deal(16)[3] == [6, 7]


def test_lanes_are_added_in_one_tree_wherever_they_were_computed():
    """The rounding of single precision shows the order."""
    draw = torch.Generator().manual_seed(0)
    lanes = [torch.randn(1000, generator=draw) * 10.0**n for n in range(LANES)]
    lanes[5] = torch.zeros(1000)
    whole = [lane.clone() for lane in lanes]
    while len(whole) > 1:
        whole = [one + other for one, other in zip(whole[::2], whole[1::2], strict=True)]
    for size in (1, 2, 4, LANES):
        parts = []
        for rank in range(size):
            total = TreeSum()
            for lane in peers_of(rank, size).lanes:
                total.add(None if lane == 5 else lanes[lane].clone())
            parts.append(torch.zeros(1000) if total.result() is None else total.result())
        distance = 1
        while distance < size:  # what pairs of processes do
            parts = [parts[rank] + parts[rank ^ distance] for rank in range(size)]
            distance *= 2
        assert all(torch.equal(part, whole[0]) for part in parts)
    other_way = sum(lanes[1:], lanes[0].clone())
    assert not torch.equal(other_way, whole[0]), "the order must show"
    assert [most_processes(limit) for limit in (0, 1, 3, 7, 8, 100)] == [1, 1, 2, 4, 8, 8]


def peers_of(rank, size):
    peers = Peers()
    peers.rank, peers.size = rank, size
    return peers

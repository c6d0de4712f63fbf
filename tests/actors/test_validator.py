"""The validation loss in fixed batches: against the evaluation, and however dealt."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from raysift.actors.effective_batches import EncodeRows, Place, split_trainable
from raysift.actors.likelihood import AnswerLoss
from raysift.actors.loaded import load
from raysift.actors.peers import Peers
from raysift.actors.step_trainer import StepTrainer
from raysift.actors.validator import Validator
from raysift.errors import DataError, StageError
from raysift.nano.world import WorldConfig, generate_pool
from raysift.policy.performance import performance
from raysift.settings.training import TrainConfig, recipe
from raysift.storage import open_location

from ..tiny_models import tiny_llama  # noqa: TID252

ONE = Place(device="cpu", threads=1)
NANO = recipe("nano")
TINY = TrainConfig(lora_rank=4, learning_rate=1e-2, warmup_ratio=0.0, batch_size=8, max_length=64, dtype="fp32")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return tiny_llama(tmp_path_factory.mktemp("model"))


def conversations(count: int, first: int = 0) -> pa.Table:
    rows = [
        {
            "id": (number * 7919) % 10007,
            "messages": [
                {"role": "user", "content": "say " + "ab" * (number % 9 + 1)},
                {"role": "assistant", "content": "ab" * (number % 7 + 1)},
            ],
        }
        for number in range(first, first + count)
    ]
    return pa.Table.from_pylist(rows)


def stepped(model: str, config: TrainConfig, rows: pa.Table, steps: int = 2) -> StepTrainer:
    encoded, _ = split_trainable(EncodeRows(model, config.template, config.max_length)(rows))
    trainer = StepTrainer(encoded, config, steps + 1, model, ONE)
    for _ in range(steps):
        trainer.step(trainer.rows.ids[:8])
    return trainer


def nats_of(answers):
    """Nats and tokens of each row."""
    return {row["id"]: (row["loss"] * row["n_label_tokens"], row["n_label_tokens"]) for row in answers.to_pylist()}


def test_performance_is_minus_the_loss_that_the_evaluation_measures(tmp_path):
    pool = list(generate_pool(40, 1, WorldConfig()))
    rows = pa.Table.from_pylist([{"id": n, "messages": row["messages"]} for n, row in enumerate(pool)])
    config = NANO.model_copy(update={"warmup_ratio": 0.0})
    trainer = stepped("nano", config, rows)
    validator = Validator(rows, config, "nano", ONE, batch_tokens=600)
    losses = validator.losses(trainer.model)

    trainer.save_epoch(open_location(tmp_path))
    tuned = load("nano", tmp_path / "epoch-1" / "adapter", dtype="fp32", device="cpu", threads=1)
    after, before = (
        performance(nats_of(AnswerLoss(model, template=config.template, max_length=config.max_length)(rows)))
        for model in (tuned, load("nano", dtype="fp32", device="cpu", threads=1))
    )
    assert len(losses) == 40
    assert performance(losses) == pytest.approx(after, abs=1e-5)
    assert abs(after - before) > 1e-3, "the steps must show"


def test_one_process_or_four_find_the_same_bits(tiny):
    """Each knows its own rows, and 0 for the others."""
    trainer, rows = stepped(tiny, TINY, conversations(20, first=50)), conversations(45)
    alone = Validator(rows, TINY, tiny, ONE, batch_tokens=120)
    expected = alone.losses(trainer.model)
    assert len(alone.batches) > 8 and sorted(expected) == list(range(45))
    counts = alone.rows.labels_per_row.tolist()
    assert [tokens for _, tokens in expected.values()] == counts

    class Apart(Peers):
        """One of four, whose numbers are put aside instead of merged."""

        def __init__(self, rank):
            self.rank, self.size = rank, 4

        def merge(self, numbers):
            apart.append(numbers)
            return numbers

    apart: list[np.ndarray] = []
    shuffled = rows.take(np.random.default_rng(0).permutation(45))
    for rank in range(4):
        Validator(shuffled, TINY, tiny, ONE, batch_tokens=120, peers=Apart(rank)).losses(trainer.model)
    assert (np.count_nonzero(apart, axis=0) == 1).all()
    found = dict(enumerate(zip(np.sum(apart, axis=0).tolist(), counts, strict=True)))
    assert found == expected and performance(found) == performance(expected)


def test_batches_hold_every_row_once_within_the_budget(tiny):
    validator = Validator(conversations(45), TINY, tiny, ONE, batch_tokens=200)
    lengths = validator.rows.lengths
    assert sorted(row for batch in validator.batches for row in batch) == list(range(45))
    assert all(len(batch) * max(lengths[batch]) <= 200 for batch in validator.batches)
    assert list(validator.ids) == sorted(conversations(45)["id"].to_pylist())


def test_the_size_of_batches_matters_only_by_rounding(tiny):
    trainer, rows = stepped(tiny, TINY, conversations(20, first=50)), conversations(45)
    found = []
    for tokens in (1, 200, 100_000):
        validator = Validator(rows, TINY, tiny, ONE, batch_tokens=tokens)
        found.append(performance(validator.losses(trainer.model)))
    assert found == pytest.approx([found[0]] * 3, abs=1e-6)


def test_a_measurement_between_two_steps_changes_nothing(tiny):
    config = TINY.model_copy(update={"lora_dropout": 0.3})
    validator = Validator(conversations(30), config, tiny, ONE, batch_tokens=200)
    disturbed, quiet = (stepped(tiny, config, conversations(20, first=50)) for _ in range(2))
    one, two = (validator.losses(disturbed.model) for _ in range(2))
    assert one == two, "nothing is dropped while measuring"
    assert disturbed.model.training
    assert disturbed.step(disturbed.rows.ids[:8]) == quiet.step(quiet.rows.ids[:8])
    assert all(np.array_equal(disturbed.weights()[name], values) for name, values in quiet.weights().items())


def test_rows_without_an_answer_are_counted_and_refused(tiny):
    silent = pa.Table.from_pylist([{"id": 3, "messages": [{"role": "user", "content": "x" * 200}]}])
    with pytest.raises(DataError, match="1 of 5 rows"):
        Validator(pa.concat_tables([conversations(4), silent]), TINY, tiny, ONE)
    with pytest.raises(DataError, match="there are none"):
        Validator(conversations(4).slice(0, 0), TINY, tiny, ONE)


def test_losses_that_are_no_numbers_are_refused(tiny):
    trainer = stepped(tiny, TINY, conversations(20))
    validator = Validator(conversations(4), TINY, tiny, ONE)
    with torch.no_grad():
        next(iter(trainer.trainable.values())).fill_(torch.nan)
    with pytest.raises(StageError, match=r"row with id \d+ has a loss of nan"):
        validator.losses(trainer.model)

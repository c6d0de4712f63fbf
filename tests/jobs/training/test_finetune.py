"""Fine-tuning against plain torch, against itself in other circumstances, and under kills."""

from __future__ import annotations

import json
import math
import operator
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file

from raysift.actors.effective_batches import EffectiveBatches, EncodeRows, Place, split_trainable
from raysift.actors.train_checkpoints import last_checkpoint, loss_curve
from raysift.actors.trainee import build_model
from raysift.errors import StageError
from raysift.fingerprint import file_fingerprint
from raysift.gradients.moments import load_moments
from raysift.jobs.runs.progress import Bar
from raysift.jobs.training.finetune import finetune
from raysift.records import ROWS
from raysift.settings.resources import Resources
from raysift.settings.training import TrainConfig, epoch_mean_learning_rates, learning_rates
from raysift.storage import Location, open_location
from raysift.templates import ALPACA_INPUT_PREAMBLE, ALPACA_PREAMBLE

from ...tiny_models import tiny_llama  # noqa: TID252

HERE = Resources(train=0, threads=1)
CONFIG = TrainConfig(
    lora_rank=4, learning_rate=1e-2, warmup_ratio=0.1, epochs=3, batch_size=8, max_length=64, dtype="fp32"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return tiny_llama(tmp_path_factory.mktemp("model"))


def some_rows(count: int = 20) -> list[dict]:
    return [
        {
            "id": (number * 7919) % 10007,
            "source": "test",
            "messages": [
                {"role": "user", "content": "repeat " + "ab" * (number % 5 + 1)},
                {"role": "assistant", "content": "ab" * (number % 5 + 1)},
            ],
        }
        for number in range(count)
    ]


def write_rows(folder: Path, rows: list[dict], shards: int = 1) -> list[Location]:
    folder.mkdir(parents=True, exist_ok=True)
    places = []
    for shard in range(shards):
        path = folder / f"{shard}.parquet"
        pq.write_table(pa.Table.from_pylist(rows[shard::shards], schema=ROWS), path)
        places.append(open_location(path))
    return places


def adapter_of(out: Path, epoch: int) -> dict[str, np.ndarray]:
    return load_file(out / f"epoch-{epoch}" / "adapter" / "adapter_model.safetensors")


def largest_difference(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> float:
    assert one.keys() == two.keys()
    return max(float(np.abs(one[name] - two[name]).max()) for name in one)


def encoded(files: list[Location], model: str) -> pa.Table:
    encode = EncodeRows(model, "auto", CONFIG.max_length)
    return split_trainable(pa.concat_tables([encode(pq.read_table(file.path)) for file in files]))[0]


def plain_loop(files: list[Location], model: str, config: TrainConfig):
    """The slow reference: each row alone, gradients summed and divided by the tokens of the step."""
    trained = build_model(config, model, None)
    rows = encoded(files, model).sort_by("id").to_pylist()
    batches = EffectiveBatches(encoded(files, model), config, Place())
    parameters = {name: weight for name, weight in trained.named_parameters() if weight.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), weight_decay=config.weight_decay)
    losses = []
    trained.train()
    for step, rate in enumerate(learning_rates(config, batches.steps)):
        nats, tokens = 0.0, 0
        for row in (rows[place] for place in batches.rows_of_step(step)):
            ids, counted = torch.tensor([row["input_ids"]]), torch.tensor(row["counted"])[1:]
            logits = trained(input_ids=ids).logits[0, :-1]
            nats = nats + torch.nn.functional.cross_entropy(logits[counted], ids[0, 1:][counted], reduction="sum")
            tokens += int(counted.sum())
        (nats / tokens).backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), config.max_grad_norm)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        losses.append((nats.item(), tokens))
    return parameters, optimizer, losses


def test_weights_moments_and_losses_are_those_of_a_plain_loop(tmp_path, model):
    files = write_rows(tmp_path / "rows", some_rows())
    report = finetune(files, tmp_path / "out", CONFIG, model, HERE)
    parameters, optimizer, losses = plain_loop(files, model, CONFIG)

    trained = adapter_of(tmp_path / "out", 3)
    expected = {name.replace(".default", ""): weight.detach().numpy() for name, weight in parameters.items()}
    assert largest_difference(trained, expected) < 1e-5
    assert max(np.abs(weight).max() for name, weight in trained.items() if "lora_B" in name) > 1e-3, "it must move"

    moments = load_moments(open_location(tmp_path / "out/epoch-3/moments.safetensors"))
    assert moments.names == list(parameters) and moments.step == report.steps == 9
    for name, weight in parameters.items():
        state = optimizer.state[weight]
        np.testing.assert_allclose(moments.exp_avg[name], state["exp_avg"].numpy(), atol=1e-6)
        np.testing.assert_allclose(moments.exp_avg_sq[name], state["exp_avg_sq"].numpy(), atol=1e-8)

    for epoch, record in enumerate(report.epochs):
        nats, tokens = (sum(values) for values in zip(*losses[3 * epoch : 3 * epoch + 3], strict=True))
        assert record.mean_loss == pytest.approx(nats / tokens, rel=1e-5) and record.label_tokens == tokens


def test_an_epoch_records_the_mean_learning_rate_of_its_schedule(tmp_path, model):
    config = CONFIG.model_copy(update={"schedule": "cosine", "max_steps": 7})
    report = finetune(write_rows(tmp_path, some_rows()), tmp_path / "out", config, model, HERE)
    assert [record.mean_learning_rate for record in report.epochs] == epoch_mean_learning_rates(config, 3, 7)
    assert [record.step for record in report.epochs] == [3, 6, 7]
    on_disk = json.loads((tmp_path / "out/epoch-2/epoch.json").read_text())
    assert on_disk["mean_learning_rate"] == report.epochs[1].mean_learning_rate


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_same_seed_gives_the_same_bytes_whatever_the_shards_and_another_seed_does_not(tmp_path, model, method):
    config = CONFIG.model_copy(update={"method": method, "lora_dropout": 0.2, "epochs": 1})
    rows = some_rows()
    weights = "adapter/adapter_model.safetensors" if method == "lora" else "model/model.safetensors"

    def trained(name: str, rows: list[dict], shards: int, seed: int) -> tuple[bytes, bytes]:
        files, out = write_rows(tmp_path / name, rows, shards), tmp_path / name / "out"
        (report,) = finetune(files, out, config.model_copy(update={"seed": seed}), model, HERE).epochs
        assert report.hashes == {
            name: file_fingerprint(open_location(out / "epoch-1" / name)) for name in report.hashes
        }
        assert {weights, "moments.safetensors"} <= report.hashes.keys()
        return tuple((out / "epoch-1" / name).read_bytes() for name in (weights, "moments.safetensors"))

    first = trained("a", rows, 1, 0)
    assert trained("b", rows[::-1], 3, 0) == first
    assert not any(map(operator.eq, trained("c", rows, 1, 1), first))


def test_passes_change_nothing_beyond_rounding(tmp_path, model):
    files = write_rows(tmp_path / "rows", some_rows())
    for name, rows in (("one", 64), ("four", 2), ("eight", 1)):
        finetune(files, tmp_path / name, CONFIG, model, HERE.model_copy(update={"batch_rows": rows}))
    whole = adapter_of(tmp_path / "one", 3)
    assert largest_difference(whole, adapter_of(tmp_path / "four", 3)) < 1e-5
    assert largest_difference(whole, adapter_of(tmp_path / "eight", 3)) < 1e-5


@pytest.mark.parametrize("ranks", [1, 2, 7])
def test_ranks_share_out_the_same_effective_batches(tmp_path, model, ranks):
    rows = encoded(write_rows(tmp_path, some_rows()), model)
    one = EffectiveBatches(rows, CONFIG, Place())
    shares = [list(EffectiveBatches(rows, CONFIG, Place(rank, ranks, rows_per_pass=3))) for rank in range(ranks)]
    for step, dealt in enumerate(zip(*shares, strict=True)):
        assert len({len(share.passes) for share in dealt}) == 1, "ranks must keep step"
        passes = [batch for share in dealt for batch in share.passes]
        assert {share.tokens for share in dealt} == {sum(len(batch.targets) for batch in passes)}
        texts = sorted(tuple(row[row != 0].tolist()) for batch in passes for row in batch.input_ids if (row != 0).any())
        expected = sorted(tuple(row.input_ids.tolist()) for row in one.rows.token_rows(one.rows_of_step(step)))
        assert texts == expected


def test_an_epoch_sees_each_row_once_and_epochs_differ_in_order(tmp_path, model):
    batches = EffectiveBatches(encoded(write_rows(tmp_path, some_rows()), model), CONFIG, Place())
    epochs = [np.concatenate([batches.rows_of_step(step) for step in range(e * 3, e * 3 + 3)]) for e in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(20))] * 2
    assert list(epochs[0]) != list(epochs[1])


def test_a_training_by_the_alpaca_template_tells_inputs_from_instructions(tmp_path, model):
    """A tiny model's tokens are bytes, so the report's tokens are the lengths of the published texts."""
    config = CONFIG.model_copy(update={"template": "alpaca", "epochs": 1, "max_length": 512})
    talk = [{"role": "user", "content": "Sort.\n\nb a"}, {"role": "assistant", "content": "a b"}]
    texts = {
        "joined": f"{ALPACA_PREAMBLE}\n\n### Instruction:\nSort.\n\nb a\n\n### Response:a b",
        "told": f"{ALPACA_INPUT_PREAMBLE}\n\n### Instruction:\nSort.\n\n### Input:\nb a\n\n### Response:a b",
    }
    for name, meta in (("joined", None), ("told", '{"input":"b a"}')):
        rows = [{"id": 7, "source": "test", "messages": talk, "meta": meta}]
        report = finetune(write_rows(tmp_path / name, rows), tmp_path / f"{name}-out", config, model, HERE)
        assert report.tokens == len(texts[name]) + 1  # and the end token


def test_rows_that_hold_nothing_to_learn_are_counted_and_listed(tmp_path, model):
    rows = some_rows(10)
    rows[0]["messages"] = rows[0]["messages"][:1]
    rows[1]["messages"][0]["content"] = "x" * 100  # the answer lies beyond max_length
    rows[2]["messages"][1]["content"] = "y" * 100
    rows[3]["messages"][1]["content"] = "z<|end|>"
    report = finetune(write_rows(tmp_path, rows), tmp_path / "out", CONFIG, model, HERE)
    assert report.counts == {
        "rows_in": 10,
        "rows_trained": 8,
        "rows_truncated": 1,
        "rows_doubled_special": 1,
        "rows_no_label_tokens": 2,
    }
    untrained = pq.read_table(tmp_path / "out/untrained.parquet").to_pylist()
    assert {row["id"] for row in untrained} == {rows[0]["id"], rows[1]["id"]}
    assert {row["reason"] for row in untrained} == {"no-label-tokens"}


def test_nothing_to_train_on_is_an_error_that_says_why(tmp_path, model):
    rows = [row | {"messages": row["messages"][:1]} for row in some_rows(3)]
    with pytest.raises(StageError, match=r"none of 3 rows can be trained on.*rows_no_label_tokens.: 3"):
        finetune(write_rows(tmp_path, rows), tmp_path / "out", CONFIG, model, HERE)


@pytest.mark.slow
def test_workers_that_find_no_room_end_the_training_in_one_sentence(tmp_path, model, ray_local, monkeypatch):
    """Ray Train by itself tries for ever; the driver's own wait of a minute is two of its attempts here."""
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "3")
    asked = Resources(train={"workers": 1, "gib": 10**6}, wait_s=60, cpus_per_worker=0.5)
    with pytest.raises(StageError, match=r"^finetune: 1 workers found no room for 60 s \(resources\.wait_s\)"):
        finetune(write_rows(tmp_path, some_rows()), tmp_path / "out", CONFIG, model, asked)


def test_a_loss_that_is_no_number_ends_the_training(tmp_path, model):
    config = CONFIG.model_copy(update={"learning_rate": 1e30, "max_grad_norm": 0.0})
    with pytest.raises(StageError, match="Lower the learning rate"):
        finetune(write_rows(tmp_path, some_rows()), tmp_path / "out", config, model, HERE)


def test_a_finished_training_is_not_repeated(tmp_path, model):
    files = write_rows(tmp_path, some_rows())
    first = finetune(files, tmp_path / "out", CONFIG, model, HERE)
    changed = (tmp_path / "out/epoch-1/epoch.json").stat().st_mtime_ns
    assert finetune(files, tmp_path / "out", CONFIG, model, HERE) == first
    assert (tmp_path / "out/epoch-1/epoch.json").stat().st_mtime_ns == changed


class Stop(Exception):
    """What a test raises to end a training at a step."""


def stop_at(step: int):
    from transformers import TrainerCallback

    class Stopper(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == step:
                raise Stop

    return Stopper()


@pytest.mark.parametrize(
    ("step", "kept", "optimizer"),
    [(1, None, "adamw"), (5, "step-5", "adamw"), (7, "step-7", "adamw"), (7, "step-7", "adamw8bit")],
)
def test_a_stopped_training_continues_to_the_same_bytes(tmp_path, model, step, kept, optimizer):
    changes = {"lora_dropout": 0.1, "batch_size": 4, "epochs": 2, "optimizer": optimizer}  # five steps an epoch
    config = CONFIG.model_copy(update=changes)
    files = write_rows(tmp_path / "rows", some_rows())
    expected = finetune(files, tmp_path / "whole", config, model, HERE)
    options = {"steps_per_checkpoint": 1} if step == 7 else {}
    with pytest.raises(Stop):
        finetune(files, tmp_path / "out", config, model, HERE, callbacks=[stop_at(step)], **options)
    last = last_checkpoint(open_location(tmp_path / "out"))
    assert (last is None) if kept is None else (last[1].step == step)
    again = finetune(files, tmp_path / "out", config, model, HERE, **options)
    for epoch in (1, 2):
        assert largest_difference(adapter_of(tmp_path / "whole", epoch), adapter_of(tmp_path / "out", epoch)) == 0.0
    assert [r.mean_loss for r in again.epochs] == pytest.approx([r.mean_loss for r in expected.epochs], rel=1e-12)
    curves = [np.array(loss_curve(report.epochs)) for report in (again, expected)]
    assert curves[0] == pytest.approx(curves[1], rel=1e-12) and curves[0][:, 0].tolist() == list(range(1, 11))
    assert not list((tmp_path / "out").glob("step-*"))


def test_training_starts_from_a_given_adapter(tmp_path, model):
    files = write_rows(tmp_path / "rows", some_rows())
    finetune(files, tmp_path / "first", CONFIG, model, HERE)
    start = tmp_path / "first/epoch-3/adapter"
    slow = CONFIG.model_copy(update={"learning_rate": 1e-12, "epochs": 1})
    second = finetune(files, tmp_path / "second", slow, model, HERE, adapter=str(start))
    assert largest_difference(adapter_of(tmp_path / "first", 3), adapter_of(tmp_path / "second", 1)) < 1e-9
    fresh = finetune(files, tmp_path / "fresh", slow, model, HERE)
    assert second.epochs[0].mean_loss < fresh.epochs[0].mean_loss


def test_bf16_keeps_trained_weights_in_float32_and_learns(tmp_path, model):
    config = CONFIG.model_copy(update={"dtype": "bf16"})
    report = finetune(write_rows(tmp_path, some_rows()), tmp_path / "out", config, model, HERE)
    assert {weight.dtype for weight in adapter_of(tmp_path / "out", 1).values()} == {np.dtype("float32")}
    assert report.epochs[-1].mean_loss < report.epochs[0].mean_loss < math.inf


def test_the_callers_random_state_and_threads_are_left_alone(tmp_path, model):
    torch.manual_seed(3)
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    finetune(write_rows(tmp_path, some_rows(4)), tmp_path / "out", CONFIG, model, HERE)
    assert torch.equal(before, torch.random.get_rng_state()) and torch.get_num_threads() == threads


KILLED_DRIVER = """
import sys, time
from raysift.jobs.training.finetune import finetune
from raysift.settings.training import TrainConfig
from raysift.settings.resources import Resources
from raysift.storage import open_location
from transformers import TrainerCallback

class Slow(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        time.sleep({pause})

config = TrainConfig.model_validate_json({config!r})
here = Resources(train=0, threads=1)
finetune([open_location({rows!r})], {out!r}, config, {model!r}, here, callbacks=[Slow()])
"""


def run_driver(pause: float, **values) -> subprocess.Popen:
    code = textwrap.dedent(KILLED_DRIVER).format(pause=pause, **values)
    return subprocess.Popen([sys.executable, "-c", code], cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_a_killed_driver_continues_without_repeating_finished_epochs(tmp_path, model):
    (rows,) = write_rows(tmp_path / "rows", some_rows())
    whole = finetune([rows], tmp_path / "whole", CONFIG, model, HERE)
    values = {"config": CONFIG.model_dump_json(), "rows": rows.path, "out": str(tmp_path / "out"), "model": model}
    driver = run_driver(0.5, **values)
    second = tmp_path / "out/epoch-2/epoch.json"
    deadline = time.monotonic() + 120
    while not second.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert second.exists() and not (tmp_path / "out/train.json").exists()
    times = [(tmp_path / f"out/epoch-{epoch}/epoch.json").stat().st_mtime_ns for epoch in (1, 2)]
    assert run_driver(0.0, **values).wait() == 0
    assert times == [(tmp_path / f"out/epoch-{epoch}/epoch.json").stat().st_mtime_ns for epoch in (1, 2)]
    assert largest_difference(adapter_of(tmp_path / "whole", 3), adapter_of(tmp_path / "out", 3)) == 0.0
    assert json.loads((tmp_path / "out/train.json").read_text())["steps"] == whole.steps


def worker_killer(flag: Path):
    from transformers import TrainerCallback

    class Killer(TrainerCallback):
        """Ends the process of rank 1 once, some steps into the second epoch."""

        def on_step_end(self, args, state, control, **kwargs):
            import torch.distributed as dist

            if state.global_step == 5 and dist.get_rank() == 1 and not flag.exists():
                flag.touch()
                os._exit(1)

    return Killer()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_two_workers_one_killed_give_what_one_process_gives(tmp_path, model, ray_local):
    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    rows = some_rows()
    rows[0]["messages"] = rows[0]["messages"][:1]
    files = write_rows(tmp_path / "rows", rows, 3)
    alone = finetune(files, tmp_path / "alone", CONFIG, model, HERE)
    two = Resources(train=2, cpus_per_worker=1, threads=1)
    flag = tmp_path / "killed"
    report = finetune(files, tmp_path / "two", CONFIG, model, two, callbacks=[worker_killer(flag)])
    assert flag.exists(), "the worker must have been killed"
    assert largest_difference(adapter_of(tmp_path / "alone", 3), adapter_of(tmp_path / "two", 3)) < 1e-5
    assert report.counts == alone.counts and report.counts["rows_no_label_tokens"] == 1
    assert [r.mean_loss for r in report.epochs] == pytest.approx([r.mean_loss for r in alone.epochs], rel=1e-5)
    assert report.model_dump(exclude={"epochs", "seconds", "tokens_per_second", "workers", "path"}) == alone.model_dump(
        exclude={"epochs", "seconds", "tokens_per_second", "workers", "path"}
    )


@pytest.mark.slow
@pytest.mark.ray
def test_fits_run_side_by_side_inside_ray_tasks(tmp_path, model, ray_local):
    import ray

    files = write_rows(tmp_path / "rows", some_rows())
    expected = finetune(files, tmp_path / "here", CONFIG, model, HERE)
    remote = ray.remote(num_cpus=1)(finetune)
    reports = ray.get([remote.remote(files, str(tmp_path / f"task-{n}"), CONFIG, model, HERE) for n in range(2)])
    for number, report in enumerate(reports):
        assert [r.mean_loss for r in report.epochs] == [r.mean_loss for r in expected.epochs]
        assert largest_difference(adapter_of(tmp_path / "here", 3), adapter_of(tmp_path / f"task-{number}", 3)) == 0.0


def test_progress_counts_every_step_and_tells_the_loss_of_the_last_ones(tmp_path, model, monkeypatch):
    from raysift.actors import step_loop

    monkeypatch.setattr(step_loop, "TELL_EVERY_S", -1.0)  # at every step
    told = []

    class Told(Bar):
        def update(self, done, total=None, words=""):
            told.append((done, total, words))

    files, config = write_rows(tmp_path / "rows", some_rows()), CONFIG.model_copy(update={"batch_size": 4, "epochs": 2})
    shown = Told("nowhere", "", None, "steps", lambda told, words: None)
    report = finetune(files, tmp_path / "out", config, model, HERE, progress=lambda total, unit: shown)
    assert [(done, total) for done, total, _ in told] == [(step, 10) for step in range(1, 11)]
    assert [words for _, _, words in told] == [f"loss {loss:.3f}" for _, loss in loss_curve(report.epochs)]

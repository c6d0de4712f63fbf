"""Measures in a worker: the real actors and the real training, on rows of the pool, each for a few seconds.

Runs as one Ray task with the resources of a stage's worker. What it writes lies in a temporary folder of that machine.
"""

from __future__ import annotations

import gc
import itertools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from raysift.jobs.runs.peaks import forget_peak, peak_memory
from raysift.planning.speed import Speed, evenly_spaced, thirds
from raysift.storage import Location, open_location

FIRST_ROWS, MOST_ROWS = 2, 64
NEW_TOKENS = 48
FEW = 4


@dataclass(frozen=True)
class Order:
    """One part to measure: an actor with its arguments, or one of the kinds that need more than rows."""

    name: str
    kind: str
    """`rows` of an actor, `answers`, `gradients`, `targets` or `train`."""
    arguments: Mapping[str, Any]
    actor: Any = None
    rows: pa.Table | None = None
    """Rows to measure with, if not the pool's."""
    seconds: float = 4.0


@dataclass
class Found:
    """What a task has measured."""

    speeds: dict[str, Speed] = field(default_factory=dict)
    lengths: np.ndarray = field(default_factory=lambda: np.empty(0))
    """Tokens of each sampled row for the model to be trained, and how many of them count."""
    labels: np.ndarray = field(default_factory=lambda: np.empty(0))
    begun: float = 0.0
    """When the task's first line ran, by the machine's clock."""
    tokenizer_s: float = 0.0
    encode_s: float = 0.0
    """Of the sample, once the tokenizer is loaded."""
    libraries_s: float = 0.0
    bare: int = 0
    """Bytes of a worker that has loaded nothing."""
    problems: dict[str, str] = field(default_factory=dict)


def measure(orders: Sequence[Order], rows: pa.Table, model: str, template: str, trusted: bool) -> Found:
    """Measure each part; what fails is told by name and does not end the others."""
    found = Found(begun=time.time())
    forget_peak()
    found.bare = peak_memory()["host"]
    clock = time.perf_counter()
    tokenizer = _tokenizer(model, trusted)
    found.tokenizer_s = time.perf_counter() - clock
    clock = time.perf_counter()
    encoded = encode(rows, tokenizer, template)
    found.encode_s = time.perf_counter() - clock
    found.lengths = np.array([len(one.input_ids) for one in encoded])
    found.labels = np.array([sum(label >= 0 for label in one.labels) for one in encoded])
    clock = time.perf_counter()
    import peft  # noqa: F401
    import torch
    from transformers import AutoModelForCausalLM, Trainer  # noqa: F401

    found.libraries_s = time.perf_counter() - clock
    ways: dict[str, Callable[..., Speed]] = {
        "rows": _rows,
        "answers": _answers,
        "gradients": _gradients,
        "targets": _targets,
        "train": _train,
    }
    with tempfile.TemporaryDirectory(prefix="raysift-plan-") as folder:
        for order in orders:
            threads = order.arguments.get("threads") or getattr(order.arguments.get("place"), "threads", None)
            torch.set_num_threads(threads or torch.get_num_threads())
            _let_go()
            forget_peak()
            try:
                found.speeds[order.name] = ways[order.kind](order, rows, found.lengths, open_location(folder))
            except Exception as error:
                found.problems[order.name] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return found


def _tokenizer(model: str, trusted: bool) -> Any:
    from raysift.actors.language_model import load_tokenizer

    return load_tokenizer(model, trusted)


def encode(rows: pa.Table, tokenizer: Any, template: str) -> list[Any]:
    """The conversations as tokens, whole; one that the template refuses counts as empty."""
    from raysift.actors.loaded import NO_LIMIT
    from raysift.errors import DataError
    from raysift.pool.given_input import conversation_of
    from raysift.templates import Encoded, encode_conversation

    found = []
    for row in rows.to_pylist():
        try:
            found.append(encode_conversation(tokenizer, conversation_of(row), NO_LIMIT, template))
        except DataError:  # the stage lists it as failed
            found.append(Encoded([0], [-100], False, False, template))
    return found


def _let_go() -> None:
    """Give freed memory back to the system, so that the next part's peak is its own."""
    import ctypes
    import sys

    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _timed(call: Callable[[], Any]) -> float:
    clock = time.perf_counter()
    call()
    torch = __import__("torch")
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - clock


def _by_thirds(read: Callable[[np.ndarray], int], lengths: np.ndarray, seconds: float) -> dict[str, Any]:
    """Tokens and seconds of rows of each third, as many as the time allows; `read` answers rows and returns their tokens."""
    groups = thirds(lengths.tolist())
    clock = time.perf_counter()
    read(evenly_spaced(groups[0], FIRST_ROWS))  # the first call also prepares
    first = time.perf_counter() - clock
    middle = groups[len(groups) // 2]
    few = evenly_spaced(middle, FIRST_ROWS)
    each = _timed(lambda: read(few)) / len(few)
    count = int(np.clip(seconds / len(groups) / max(each, 1e-6), FIRST_ROWS, MOST_ROWS))
    means, pace = [], []
    for group in groups:
        places = evenly_spaced(group, count)
        tokens: list[int] = []
        spent = _timed(lambda: tokens.append(read(places)))  # noqa: B023
        means.append(max(1.0, tokens[0] / len(places)))
        pace.append(spent / max(1, tokens[0]))
    order = np.argsort(means)
    return {
        "lengths": tuple(means[i] for i in order),
        "per_token": tuple(pace[i] for i in order),
        "once_s": 0.0,
    } | {"load_s": first}


def _rows(order: Order, rows: pa.Table, lengths: np.ndarray, folder: Location) -> Speed:
    """An actor of a map stage."""
    made: list[Any] = []
    load = _timed(lambda: made.append(order.actor(**order.arguments)))
    actor = made[0]
    if order.rows is not None:
        rows = order.rows
        lengths = np.array([sum(len(one["content"]) for one in talk) for talk in rows["messages"].to_pylist()])

    def read(places: np.ndarray) -> int:
        before = actor.tokens_read
        actor(rows.take(pa.array(places)))
        return actor.tokens_read - before or int(lengths[places].sum())

    found = _by_thirds(read, lengths, order.seconds)
    return _speed(found, load)


def _speed(found: dict[str, Any], load: float, **more: Any) -> Speed:
    peak = peak_memory()
    own = found | {"load_s": load + found.get("load_s", 0.0), "host": peak["host"], "gpu": peak.get("gpu", 0)}
    return Speed(**(own | more))


def _answers(order: Order, rows: pa.Table, lengths: np.ndarray, folder: Location) -> Speed:
    """Answers of a few tokens: the pace of reading and of each step, and how often an answer ends."""
    cap = min(NEW_TOKENS, order.arguments["max_new_tokens"])
    made: list[Any] = []
    load = _timed(lambda: made.append(order.actor(**{**order.arguments, "max_new_tokens": 1})))
    actor = made[0]
    places = evenly_spaced(np.argsort(lengths, kind="stable"), 8)
    batch = rows.take(pa.array(places))
    actor(batch.slice(0, 1))
    before = actor.tokens_read
    reading = _timed(lambda: actor(batch))
    read = actor.tokens_read - before
    actor.max_new_tokens = cap
    given: list[pa.Table] = []
    spent = _timed(lambda: given.append(actor(batch)))
    new = np.array([count or 0 for count in given[0]["n_new_tokens"].to_pylist()])
    ended = sum(bool(one) for one in given[0]["finished"].to_pylist())
    steps = max(1, int(new.max()))
    step = max(1e-6, (spent - reading) / steps)
    found = {"lengths": (read / len(places),), "per_token": (reading / max(1, read),)}
    return _speed(found, load, step_s=step / len(places), ends=ended / max(1, int(new.sum())))


def _checkpoint(order: Order, folder: Location) -> Any:
    """A new adapter with plausible moments, as a warm-up would leave one, and the number of its parameters."""
    from raysift.actors.checkpointed import Checkpoint
    from raysift.actors.trainee import build_model
    from raysift.gradients.moments import Moments, save_moments

    train = order.arguments["train"]
    home = (folder / "adapter-of-plan").make_folder()
    if not (home / "moments.safetensors").exists():
        built = build_model(train, order.arguments["model"], None, order.arguments["trust_remote_code"])
        built.save_pretrained((home / "adapter").path)
        trained = {name: tuple(one.shape) for name, one in built.named_parameters() if one.requires_grad}
        first = {name: np.full(shape, 1e-3, np.float32) for name, shape in trained.items()}
        second = {name: np.full(shape, 1e-6, np.float32) for name, shape in trained.items()}
        save_moments(home / "moments.safetensors", Moments(first, second, 10))
        del built
        _let_go()
        forget_peak()
    return Checkpoint("epoch-1", home / "adapter", home / "moments.safetensors", 1e-4)


def _loading(order: Order) -> dict[str, Any]:
    train = order.arguments["train"]
    own = {name: getattr(train, name) for name in ("template", "max_length", "dtype", "quantization")}
    placed = ("token_budget", "device", "threads", "trust_remote_code")
    return own | {name: order.arguments[name] for name in placed}


def _gradients(order: Order, rows: pa.Table, lengths: np.ndarray, folder: Location) -> Speed:
    """Row gradients at one checkpoint, matched with targets drawn at random or projected for a store."""
    from raysift.actors.row_gradients import GradientMatch, GradientVectors

    point, own = _checkpoint(order, folder), order.arguments
    made: list[Any] = []
    if own["projection"] is not None:
        arguments = {"projection": own["projection"]}
        kind: Any = GradientVectors
    else:
        from safetensors.numpy import load_file

        from raysift.tensors import save_tensors

        moments = load_file((folder / "adapter-of-plan" / "moments.safetensors").path)
        width = sum(value.size for name, value in moments.items() if name.startswith("exp_avg."))
        targets = np.random.default_rng(0).standard_normal((own["subtasks"], width), np.float32)
        save_tensors(folder / f"{point.name}.safetensors", {"targets": targets}, {})
        arguments, kind = {"targets": folder}, GradientMatch
    load = _timed(lambda: made.append(kind(own["model"], [point], own["adam"], **arguments, **_loading(order))))
    actor = made[0]

    def read(places: np.ndarray) -> int:
        before = actor.tokens_read
        actor(rows.take(pa.array(places)))
        return int(actor.tokens_read - before)

    return _speed(_by_thirds(read, lengths, order.seconds), load)


def _targets(order: Order, rows: pa.Table, lengths: np.ndarray, folder: Location) -> Speed:
    """The gradients of a few members of the target at one checkpoint, apart from the check that is made once."""
    from raysift.actors.target_gradients import TargetGradients

    point, own = _checkpoint(order, folder), order.arguments
    made: list[Any] = []
    load = _timed(
        lambda: made.append(
            TargetGradients(own["model"], [point], own["projection"] or own["whole"], **_loading(order))
        )
    )
    actor = made[0]
    checks: list[float] = []
    check = actor.check

    def timed(encoded: Any) -> Any:
        found: list[Any] = []
        checks.append(_timed(lambda: found.append(check(encoded))))
        return found[0]

    actor.check = timed
    members = own["members"]
    few = _timed(lambda: own["selector"].target_gradients(actor, members[:2])) - checks[-1]
    count = int(np.clip(order.seconds / max(few / 2, 1e-6), 2, len(members)))
    places = evenly_spaced(np.arange(len(members)), count)
    spent = _timed(lambda: own["selector"].target_gradients(actor, [members[i] for i in places])) - checks[-1]
    return _speed({"lengths": (1.0,), "per_token": (spent / len(places),)}, load, once_s=checks[-1])


def _train(order: Order, rows: pa.Table, lengths: np.ndarray, folder: Location) -> Speed:
    """A few optimizer steps of the real training."""
    from transformers import TrainerCallback

    from raysift.actors.effective_batches import EncodeRows, split_trainable
    from raysift.actors.trainee import train

    own = order.arguments
    config, place = own["train"], own["place"]
    encoded, _ = split_trainable(
        EncodeRows(own["model"], config.template, config.max_length, place.trust_remote_code)(rows)
    )
    sizes = [len(ids) for ids in encoded["input_ids"].to_pylist()]
    order_of = np.argsort(sizes, kind="stable")
    marks: list[tuple[str, float]] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            marks.append(("begin", time.perf_counter()))

        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            marks.append(("read", time.perf_counter()))

        def on_step_end(self, *_: Any, **__: Any) -> None:
            marks.append(("end", time.perf_counter()))

    def steps(batch: int, out: str) -> tuple[float, float, float, int]:
        """Seconds of reading, of the optimizer and of the checkpoint, and tokens, of two steps with so many rows."""
        batch = max(1, min(batch, len(encoded) // 2))
        few = config.model_copy(update={"batch_size": batch, "max_steps": 2, "epochs": 1})
        picked = encoded.take(pa.array(np.concatenate([_spread_over(order_of, batch, step) for step in range(2)])))
        marks.clear()
        train(picked, (folder / out).make_folder(), few, own["model"], place, callbacks=[Clock()])
        over = time.perf_counter()
        spent = {"begin": 0.0, "read": 0.0}
        for (what, then), (_, now) in itertools.pairwise(marks):
            if what in spent:
                spent[what] += now - then
        tokens = sum(len(ids) for ids in picked["input_ids"].to_pylist())
        return spent["begin"], spent["read"], over - marks[-1][1], tokens

    clock = time.perf_counter()
    reading, stepping, writing, _ = steps(min(FEW, config.batch_size), "first")
    load = time.perf_counter() - clock - reading - stepping - writing
    affordable = int(order.seconds * FEW / max(reading, 1e-6))
    reading, stepping, writing, tokens = steps(int(np.clip(affordable, FEW, config.batch_size)), "second")
    per_token = reading / max(1, tokens)
    found = {"lengths": (float(np.mean(sizes)),), "per_token": (per_token,)}
    return _speed(found, load, step_s=stepping / 2, ends=writing)


def _spread_over(order: np.ndarray, count: int, step: int) -> np.ndarray:
    """Rows of all lengths, other ones for each step."""
    places = (np.arange(count) * len(order) // max(1, count) + step) % len(order)
    return order[places]

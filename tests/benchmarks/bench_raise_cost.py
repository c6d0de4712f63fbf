"""What RAISE costs beside the training itself: choosing batches, PPO, validation; and what a whole run costs.

    python tests/benchmarks/bench_raise_cost.py --rows 100000 --steps 12 --rounds 3

A random Llama of some 30M parameters with a LoRA adapter of rank 16 is trained for a few steps under a policy over a pool of random
features; the rows that it is trained on have 40 to 200 tokens. Printed: seconds a step of choosing, training, validating, and of
the update after it; choosing and PPO as a share of the training step; peak memory of updates of T and of 4 T steps; and the account
of a whole run against one training on everything, with the paper's 20 rounds and 1 % of three epochs, validation included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import tracemalloc
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raysift.actors.effective_batches import COUNTED, INPUT_IDS, Place
from raysift.actors.episode import EpisodeRunner, EpisodeSetup
from raysift.actors.language_model import load_tokenizer
from raysift.jobs.policy.learning import actor_weights, exploring
from raysift.policy.learning import Learner
from raysift.policy.pool import PolicyPool
from raysift.policy.settings import EpisodeSettings, LearningSettings, PolicySettings
from raysift.policy.state import LOG, Episode
from raysift.records import ID, MESSAGES
from raysift.settings.training import recipe

FEATURES = 36


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="of the pool that the policy picks from")
    parser.add_argument("--token-rows", type=int, default=4000, help="different texts; the pool repeats them")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--validation", type=int, default=64)
    parser.add_argument("--classes", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        parameters = write_model(folder, options)
        setup = make_setup(folder, options)
        runner, learner = EpisodeRunner(setup), Learner(setup.pool, setup.policy, LearningSettings(), 0)
        parts: dict[str, list[float]] = {name: [] for name in ("choose", "train", "validate", "ppo")}
        episodes = []
        for number in range(1, options.rounds + 1):
            draw = exploring(setup.policy, 0, number, 1)[0]
            episode = runner(actor_weights(learner), number, 0, draw)
            clock = time.perf_counter()
            learner.update([episode], number)
            parts["ppo"].append((time.perf_counter() - clock) / options.steps)
            for name in ("choose", "train", "validate"):
                parts[name] += episode.table[f"{name}_s"].to_pylist()[1:]
            episodes.append(episode)
    medians = {name: statistics.median(found) for name, found in parts.items()}
    spreads = {name: (min(found), max(found)) for name, found in parts.items()}
    memory = {name: peak(setup, episodes[0], times) for name, times in (("T", 1), ("4T", 4))}
    show(options, parameters, medians, spreads, memory)


def write_model(folder: str, options: argparse.Namespace) -> int:
    """A random Llama with the nano tokenizer, as a folder; gives its number of parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 11 // 4,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        max_position_embeddings=1024,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    load_tokenizer("nano").save_pretrained(folder)
    return sum(weight.numel() for weight in model.parameters())


def make_setup(folder: str, options: argparse.Namespace) -> EpisodeSetup:
    """Random features for every row, random tokens for some of them, which the others share."""
    rng = np.random.default_rng(0)
    ids = np.arange(options.rows, dtype=np.int64)
    classes = rng.integers(0, options.classes, options.rows).astype(np.int32)
    features = rng.standard_normal((options.rows, FEATURES)).astype(np.float32)
    texts = [
        rng.integers(0, options.vocabulary, rng.integers(40, 201)).astype(np.int32) for _ in range(options.token_rows)
    ]
    tokens = pa.array([texts[i % len(texts)] for i in range(options.rows)], pa.list_(pa.int32()))
    counted = pa.array(
        [np.arange(len(texts[i % len(texts)])) >= len(texts[i % len(texts)]) // 2 for i in range(options.rows)],
        pa.list_(pa.bool_()),
    )
    words = "abcdefghij klmnop"
    validation = [
        {
            ID: number,
            MESSAGES: [
                {"role": "user", "content": "".join(rng.choice(list(words), 60))},
                {"role": "assistant", "content": "".join(rng.choice(list(words), 40))},
            ],
        }
        for number in range(options.validation)
    ]
    rows = pa.Table.from_pylist(validation)
    return EpisodeSetup(
        pool=PolicyPool(ids, features, classes),
        rows=pa.table({ID: ids, INPUT_IDS: tokens, COUNTED: counted}),
        validation=rows,
        report=rows.slice(0, 0),
        policy=PolicySettings(classes=options.classes),
        episode=EpisodeSettings(),
        train=recipe("nano", batch_size=options.batch),
        model=folder,
        steps=options.steps,
        place=Place(threads=options.threads),
    )


def peak(setup: EpisodeSetup, episode: Episode, times: int) -> float:
    """Peak MiB that torch and numpy hold during an update over a training `times` as long."""
    lines = episode.table.to_pylist()
    longer = [lines[0]] + [line | {"step": i + 1} for i, line in enumerate(lines[1:] * times)]
    learner = Learner(setup.pool, setup.policy, replace_passes(), 0)
    tracemalloc.start()
    with TorchPeak() as torch_peak:
        learner.update([Episode(pa.Table.from_pylist(longer, schema=LOG))], 1)
    _, numpy_peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (numpy_peak + torch_peak.bytes) / 2**20


def replace_passes() -> LearningSettings:
    """One pass is enough to see the peak."""
    return LearningSettings(passes=1)


class TorchPeak:
    """Greatest sum of tensors allocated at a time, by torch's own profiler."""

    bytes = 0

    def __enter__(self) -> TorchPeak:
        self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
        self._profile.__enter__()
        return self

    def __exit__(self, *problem: Any) -> None:
        self._profile.__exit__(*problem)
        held = most = 0
        for event in self._profile.profiler.kineto_results.events():
            if event.name() == "[memory]":
                held += event.nbytes()
                most = max(most, held)
        self.bytes = most


def show(
    options: argparse.Namespace,
    parameters: int,
    medians: dict[str, float],
    spreads: dict[str, tuple[float, float]],
    memory: dict[str, float],
) -> None:
    print(
        f"{parameters / 1e6:.1f}M parameters, batch {options.batch}, {options.rows:,} rows, {options.threads} threads"
    )
    for name, seconds in medians.items():
        low, high = spreads[name]
        print(
            f"  {name:9s} {seconds:8.3f} s a step ({low:.3f} to {high:.3f})  {seconds / medians['train']:6.1%} of training"
        )
    share = (medians["choose"] + medians["ppo"]) / medians["train"]
    print(f"choosing and PPO: {share:.1%} of the training step")
    print(
        f"peak of an update: {memory['T']:.0f} MiB over {options.steps} steps, {memory['4T']:.0f} MiB over {4 * options.steps}"
    )
    account(options, medians)
    print(json.dumps({"settings": vars(options), "median": medians, "memory": memory}))


def account(options: argparse.Namespace, medians: dict[str, float]) -> None:
    """A run of 20 rounds with 1 % of three epochs each, in units of three epochs over everything (Phi)."""
    whole = 3 * options.rows / options.batch
    steps, rounds = 0.01 * whole, 20
    phi = whole * medians["train"]
    # A forward pass is a third of a training step; a row is read with its prompt and without it, and embedded.
    preparation = 3 * (options.rows / options.batch) * medians["train"] / 3
    lines = {"preparation (estimated: three forward passes over all rows)": preparation}
    for name in ("train", "validate", "choose", "ppo"):
        lines[name] = (rounds + (name != "ppo")) * steps * medians[name]
    for name, seconds in lines.items():
        print(f"  {name:60s} {seconds / 3600:8.2f} h  {seconds / phi:6.3f} Phi")
    print(
        f"  {'all':60s} {sum(lines.values()) / 3600:8.2f} h  {sum(lines.values()) / phi:6.3f} Phi (Phi = {phi / 3600:.2f} h)"
    )


if __name__ == "__main__":
    main()

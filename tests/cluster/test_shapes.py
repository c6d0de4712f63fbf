"""Every stage of four methods on clusters of four shapes with logical GPUs: who gets which, and the selection of a CPU run.

The shapes are those of `shaped_run.py`: eight GPUs on one node; two nodes of four under a head without CPUs; GPUs that join
when a stage asks for them; one GPU beside 64 CPUs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest

from raysift.nano.world import examples, generate_pool, preference_pairs

METHODS = ("rose", "mods", "raise")
ALL = ("rose", "less", "mods", "raise", "rds")
"""On one node with eight GPUs. LESS goes through the stages of ROSE, with examples in place of pairs."""
TOKENISERS = {"EncodeRows", "TokenLengths"}
SCORED_BY = {"Reward", "Embedder", "Responder", "GradientMatch", "Difficulty"}
"""Actors of these methods' pools that load a model."""
GPUS = {"eight": {(0, 8)}, "two_nodes": {(0, 4), (1, 4)}, "late": {(0, 2)}, "one_of_many": {(0, 1)}}
SECONDS = 500


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    pairs = preference_pairs(8, 0, ["add", "subtract"], "correctness")
    files = {"pool": generate_pool(60, 4), "examples": examples(10, 0, ["add", "reverse"]), "pairs": pairs}
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_bytes(b"\n".join(orjson.dumps(row) for row in rows))
    return folder


def run_on(world: Path, shape: str, methods: Sequence[str]) -> tuple[dict[str, list[int]], list[dict[str, Any]], str]:
    """The ids that each method selects, what workers said of themselves, and the log."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    script = Path(__file__).with_name("shaped_run.py")
    command = [sys.executable, str(script), str(world), shape, *methods]
    done = subprocess.run(command, env=environment, cwd=world, capture_output=True, text=True, timeout=SECONDS)
    log = done.stdout + done.stderr
    assert done.returncode == 0, log[-4000:]
    chosen = {name: pq.read_table(world / shape / name / "selection.parquet")["id"].to_pylist() for name in methods}
    said = [json.loads(line) for file in (world / shape / "who").iterdir() for line in file.read_text().splitlines()]
    return chosen, said, log


@pytest.fixture(scope="module")
def on_cpus(world) -> dict[str, list[int]]:
    """The selections of a cluster without GPUs, whose workers hold none."""
    chosen, said, _ = run_on(world, "none", ALL)
    assert not any(one["gpus"] for one in said)
    assert {one["device"] for one in said if one["kind"] == "device"} == {"cpu"}
    return chosen


@pytest.mark.ray
@pytest.mark.cluster
@pytest.mark.timeout(2 * SECONDS + 60)
@pytest.mark.parametrize("shape", list(GPUS))
def test_each_stage_finds_its_devices_and_selects_what_cpus_select(world, on_cpus, shape):
    methods = ALL if shape == "eight" else METHODS
    chosen, said, log = run_on(world, shape, methods)
    assert chosen == {name: on_cpus[name] for name in methods}
    holders = [one for one in said if one["gpus"]]
    cards = {(one["node"], *one["gpus"]) for one in holders}
    per_node = Counter(node for node, _ in cards)
    assert sorted(per_node.values()) == sorted(count for _, count in GPUS[shape]), "all GPUs are used, and no other"
    # A process of RAISE tokenises its few validation rows itself.
    tokenisers = [one for one in said if one["what"] in TOKENISERS and not one["task"].startswith("RankProcess")]
    assert tokenisers
    assert not any(one["gpus"] for one in tokenisers), "tokenisers hold no GPU"
    assert {one["what"] for one in holders if one["kind"] == "answers"} >= SCORED_BY, (
        "each pool with a model holds some"
    )
    assert all(one["gpus"] or one["what"] not in SCORED_BY for one in said)
    by_grant = [one for one in said if one["device"] == "auto"]
    assert all(len(one["gpus"]) == 1 for one in by_grant), "who goes by the grant was granted exactly one"
    alone = [one for one in by_grant if one["task"]]
    assert {one["task"].split(".")[0] for one in alone} >= {"RankProcess", "ShardWorker", "_compute_targets"}
    assert all(one["visible"] == one["gpus"][0] for one in alone), "and sees no other"
    assert ("waiting for a machine with" in log) == (shape == "late")
    learning = {(one["node"], *one["gpus"]) for one in alone if one["task"].startswith("RankProcess")}
    assert learning == cards, "so do the two trainings of RAISE, side by side"
    ranks = {(one["pid"], one["node"], *one["gpus"]) for one in by_grant if not one["task"]}
    assert {(node, gpu) for _, node, gpu in ranks} == cards, "trainings take all GPUs"
    trainings = 2  # the warm-up that LESS and ROSE share, and the tuning of MoDS
    assert len(ranks) == trainings * len(cards), "with one rank on each"

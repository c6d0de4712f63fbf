"""One training on one and on four processes of this machine: the same weights and losses, bit for bit."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ..tiny_models import tiny_llama  # noqa: TID252

# Prints the losses of a few steps and of the validation, and a hash of the weights; argument 2 is the address or nothing.
PROCESS = """
import hashlib, json, sys

sys.path.insert(0, sys.argv[5])
import pyarrow as pa

from raysift.actors.effective_batches import EncodeRows, Place, split_trainable
from raysift.actors.peers import ALONE, Group
from raysift.actors.step_trainer import StepTrainer
from raysift.actors.validator import Validator
from raysift.policy.performance import performance
from raysift.settings.training import TrainConfig

model, address, rank, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
config = TrainConfig(lora_rank=4, learning_rate=1e-2, warmup_ratio=0.0, max_length=64, dtype="fp32", lora_dropout=0.2)
words = ["ab" * (number % 7 + 1) for number in range(40)]
rows = pa.Table.from_pylist(
    [
        {"id": n, "messages": [{"role": "user", "content": "say " + w}, {"role": "assistant", "content": w}]}
        for n, w in enumerate(words)
    ]
)
place = Place(device="cpu", threads=1, tokens_per_pass=80)
peers = Group(rank, size, address, False, 60.0) if size > 1 else ALONE
encoded, _ = split_trainable(EncodeRows(model, config.template, config.max_length)(rows))
trainer = StepTrainer(encoded, config, 4, model, place, peers=peers)
passes, usual = [], trainer._pass
trainer._pass = lambda *given: passes.append(1) or usual(*given)
validator = Validator(rows, config, model, place, batch_tokens=100, peers=peers)
found = []
for step in range(4):
    ids = peers.agree(lambda: trainer.rows.ids[step : step + 17])
    found += [trainer.step(ids), performance(validator.losses(trainer.model))]
digest = hashlib.sha256()
for name, weight in sorted(trainer.weights().items()):
    digest.update(weight.tobytes())
print(json.dumps({"found": found, "weights": digest.hexdigest(), "passes": len(passes)}))
"""


def trained_by(model: str, size: int) -> list[dict[str, object]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-c", PROCESS, model, address]
    tests = str(Path(__file__).parents[1])
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(size), tests], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(size)
    ]
    told = []
    for process in processes:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err[-3000:]
        told.append(json.loads(out.splitlines()[-1]))
    return told


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_process_or_four_train_and_measure_the_same_bits(tmp_path):
    model = tiny_llama(tmp_path)
    (alone,) = trained_by(model, 1)
    told = trained_by(model, 4)
    assert [one["found"] for one in told] == [alone["found"]] * 4
    assert [one["weights"] for one in told] == [alone["weights"]] * 4
    passes = [one["passes"] for one in told]
    assert sum(passes) == alone["passes"] and min(passes) >= 4, "every process has its share of each step"

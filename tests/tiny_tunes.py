"""Short fine-tunes of tiny models, and the gradients of a few rows at their checkpoints."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from raysift.actors.checkpointed import Checkpoint
from raysift.actors.effective_batches import Place
from raysift.actors.row_gradients import VECTORS, GradientVectors
from raysift.records import ERROR, ID, MESSAGES
from raysift.settings.gradients import AdamSettings, ProjectionSettings
from raysift.settings.training import TrainConfig
from raysift.storage import open_location

ONE = Place(device="cpu", threads=1)
WHOLE = ProjectionSettings(kind="none")
TINY = TrainConfig(
    lora_rank=4, learning_rate=1e-2, warmup_ratio=0.1, epochs=4, batch_size=8, max_length=64, dtype="fp32"
)
LOADING = {"device": "cpu", "threads": 1, "dtype": "fp32", "max_length": 64}


def conversations(count: int = 20) -> pa.Table:
    rows = [
        {
            ID: (number * 7919) % 10007,
            MESSAGES: [
                {"role": "user", "content": "repeat " + "ab" * (number % 5 + 1)},
                {"role": "assistant", "content": "ab" * (number % 5 + 1)},
            ],
        }
        for number in range(count)
    ]
    return pa.Table.from_pylist(rows)


def points_of(out) -> list[Checkpoint]:
    places = [open_location(out) / f"epoch-{number}" for number in (1, 4)]
    return [Checkpoint(place.name, place / "adapter", place / "moments.safetensors", 1e-3) for place in places]


def vectors_of(tiny, out, **changed) -> np.ndarray:
    """Unit vectors of the rows, two checkpoints of each."""
    answers = GradientVectors(tiny, points_of(out), AdamSettings(), WHOLE, **(LOADING | changed))(conversations(6))
    assert answers[ERROR].null_count == len(answers)
    return np.stack([np.frombuffer(v, "<f2").reshape(2, -1) for v in answers[VECTORS].to_pylist()]).astype(np.float32)

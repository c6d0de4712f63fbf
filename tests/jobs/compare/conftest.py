"""A small world to compare methods in."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from raysift.nano.world import examples, preference_pairs, write_pool

SKILL = "last_letters"


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings that every comparison shares: 120 rows, ten of them chosen, a dozen questions."""
    home: Path = tmp_path_factory.mktemp("world")
    write_pool(home / "pool.jsonl", 120, 5)

    def write(name: str, rows: Any) -> str:
        (home / name).write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
        return str(home / name)

    return {
        "pool": [str(home / "pool.jsonl")],
        "test": [write("test.jsonl", examples(12, 5, [SKILL], "test"))],
        "target": [write("target.jsonl", examples(4, 5, [SKILL]))],
        "budget": "10",
        "model": "nano",
        "train": {"epochs": 2},
        "evaluate": {"max_new_tokens": 4},
        "resources": {"train": 0, "threads": 1},
        "pairs": write("pairs.jsonl", preference_pairs(4, 5, [SKILL])),
    }

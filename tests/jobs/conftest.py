"""One small ROSE run that several test files look at, and ways to repeat its second half with other settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PAIRS = 8
POOL_ROWS = 80
LONG = "three one two " * 150


def nano_pairs(rows: int, seed: int, kind: str = "correctness") -> list[dict[str, Any]]:
    from raysift.nano.world import preference_pairs

    return list(preference_pairs(rows, seed, ["add", "subtract"], kind))


def write_lines(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture(scope="session")
def rose_run(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An exact run over nano rows, one prompt too long for its answer to be seen, and one answer that is cut.

    Of its target records one has no prompt, one only one side, and one two equal answers.
    """
    import raysift
    from raysift.nano.world import generate_pool

    folder = tmp_path_factory.mktemp("rose")
    rows = [
        *generate_pool(POOL_ROWS, 0),
        {"messages": [{"role": "user", "content": LONG}, {"role": "assistant", "content": "unseen"}]},
        {"messages": [{"role": "user", "content": "count"}, {"role": "assistant", "content": LONG}]},
    ]
    pairs = nano_pairs(PAIRS, 0)
    bad = [pairs[0] | {"prompt": []}, pairs[1] | {"rejected": None}, pairs[2] | {"rejected": pairs[2]["chosen"]}]
    recipe = {"recipe": "nano", "epochs": 2, "schedule": "constant", "max_length": 128}
    raysift.select(
        "rose",
        write_lines(folder / "pool.jsonl", rows),
        run=str(folder / "run"),
        target=[write_lines(folder / "pairs.jsonl", [*pairs, *bad])],
        budget="12",
        rose={"warmup_share": 0.3, "warmup": recipe},
        resources={"train": 0, "workers": 1},
    )
    return str(folder / "run")


@pytest.fixture(scope="session")
def repeat(rose_run: str) -> Callable[..., Any]:
    """Match and choose again in a run of its own, with other settings, on what `rose_run` did before."""
    from raysift.config import make_selector
    from raysift.jobs.gradients.matching import match_and_choose
    from raysift.jobs.gradients.store import own_store
    from raysift.jobs.gradients.targeting import read_targets
    from raysift.jobs.runs.reuse import REUSED
    from raysift.jobs.runs.run import Run, open_run

    def again(folder: Path, **changes: Any) -> Any:
        source = open_run(rose_run)
        changes = {"resources__store": str(folder / "store")} | changes
        overrides = [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in changes.items()]
        config = source.config({"run": str(folder)}, overrides)
        borrowed = Run(folder, reuse=[rose_run])
        rows, *_, warm = (borrowed.adopt(stage, rose_run) for stage in ("ingest", "likeness", "warmup_rows", "warmup"))
        (borrowed.folder / REUSED).delete()  # all else is done anew, also what would be the same
        run = Run(folder)
        with run.replayable(config.model_dump(mode="json")):
            selector = make_selector(config)
            found = read_targets(config, selector)
            match_and_choose(run, config, selector, found, rows, warm, None, own_store(run, config))
        return run

    return again


@pytest.fixture(scope="session")
def stored_run(repeat: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same through a store of unprojected gradients."""
    folder = tmp_path_factory.mktemp("stored")
    return repeat(folder / "run", rose__matching="store", rose__projection__kind="none")

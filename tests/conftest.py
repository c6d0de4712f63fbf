"""One local Ray for all tests that need one, and the way to the shared data, where it exists."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """Four logical CPUs on however many cores: pools, readers and filters each find room."""
    from raysift.jobs.raydata import start_ray

    started = start_ray(num_cpus=4, object_store_memory=300 * 2**20)
    yield
    if started:
        import ray

        ray.shutdown()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the project, used by tests and measurements only; never part of the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the data folder shared/data beside the project; it is not here")
    return SHARED_DATA

"""What many tests need: one local Ray, an S3-compatible server, and the way to the shared data, where it exists."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from .forked_workers import VLLM, forked_workers
from .slow_store import SlowStore

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ["RAY_ADDRESS"] = "local"  # drivers that tests start never join the cluster of a test beside them
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # engines side by side would choose the same core
for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ.setdefault(threads, "1")  # several workers share the cores

# For the S3-compatible server of the tests; set here, so that Ray's workers have it too. Without the last line the client
# sends bodies in chunks with checksums between them, which that server takes for data wherever a body holds \r\n.
os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
os.environ["AWS_REQUEST_CHECKSUM_CALCULATION"] = "when_required"

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Over several processes (`-n 2 --dist loadgroup`) one takes all tests of the shared Ray, the others go file by file.

    Tests of extras go folder by folder, each process with a Ray of its own: engines take long to start, and little else.
    """
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            group = "ray" if "ray_local" in getattr(item, "fixturenames", ()) else item.nodeid.partition("::")[0]
            extra = item.get_closest_marker("extra")
            item.add_marker(pytest.mark.xdist_group(item.path.parent.name if extra else group))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse groups that have no effect: every process would start a Ray and set up all that tests share."""
    if getattr(session.config.option, "loadgroup", False):
        assert all("@" in item.nodeid for item in session.items), "xdist did not see the groups of tests"


@pytest.fixture(scope="session")
def ray_local(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Four logical CPUs on however many cores: pools, readers and filters each find room."""
    import ray

    from raysift.jobs.cluster.starting import start_ray

    extras = any(item.get_closest_marker("extra") for item in request.session.items)
    with forked_workers(tmp_path_factory.mktemp("ray"), VLLM if extras and importlib.util.find_spec("vllm") else ()):
        started = start_ray(num_cpus=4, object_store_memory=300 * 2**20)
        yield
        if started:
            ray.shutdown()


@pytest.fixture(scope="session")
def joined(ray_local: None) -> dict[str, str]:
    """The environment of a driver in a process of its own that joins the tests' Ray, whose workers are quick to start."""
    import ray

    return os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the project, used by tests and measurements only; never part of the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the data folder shared/data beside the project; it is not here")
    return SHARED_DATA


@pytest.fixture(scope="session")
def s3_uri() -> Iterator[str]:
    """A real S3-compatible server on loopback, in a process of its own."""
    pytest.importorskip("moto", reason="needs moto's server: pip install raysift[dev]")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1)
                break
            except OSError:
                time.sleep(0.2)
        request = urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT")
        urllib.request.urlopen(request, timeout=5)
        yield f"s3://bucket/runs?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def slow_store(s3_uri: str) -> Iterator[SlowStore]:
    """The same server behind a line whose delays and faults a test sets, and on which it counts."""
    store = SlowStore(int(s3_uri.partition("127.0.0.1:")[2].partition("&")[0]))
    yield store
    store.close()

"""Rows per second and peak memory of ingest, beside `datasets.load_dataset(...).map(same normalisation and hash)`.

    python tests/benchmarks/bench_ingest.py POOL.parquet ALPACA.json --repeats 5
    python tests/benchmarks/bench_ingest.py --generated 1000000

With files, both sides run in turn, each with two processes and a fresh cache, and medians are printed. The other side
neither looks for duplicates, nor checks, nor writes shards; it writes its Arrow cache. Ray's start is timed apart: it
is paid once a session; so is the start of its workers, which falls into the first run, printed but not counted. With
`--generated` only ingest runs, to see whether its memory grows with the pool.

Memory is the sum of the resident sizes of the driver and its workers, sampled; memory that they share counts for each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from raysift.pool.checks import IngestConfig
from raysift.pool.chunks import plan_file
from raysift.pool.files import find_files
from raysift.pool.formats import LAYOUTS, recognise
from raysift.pool.row_ids import canonical_role, row_id
from raysift.records import Message
from raysift.settings.resources import Resources
from raysift.storage import open_location

PROCESSES = 2
NOT_WORKERS = ("raylet", "gcs_server", "dashboard", "agent", "monitor", "log_monitor")


class PeakMemory:
    """The largest sum of resident sizes of this process and its workers while the block runs."""

    def __enter__(self) -> PeakMemory:
        self.driver = self.workers = self.total = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        is_worker: dict[int, bool] = {}
        while not self._stop.wait(0.2):
            workers = 0
            for child in me.children(recursive=True):
                try:
                    if child.pid not in is_worker:
                        is_worker[child.pid] = not any(word in " ".join(child.cmdline()[:3]) for word in NOT_WORKERS)
                    workers += child.memory_info().rss if is_worker[child.pid] else 0
                except psutil.Error:
                    continue
            driver = me.memory_info().rss
            self.driver, self.workers = max(self.driver, driver), max(self.workers, workers)
            self.total = max(self.total, driver + workers)


def ingest(path: str) -> int:
    """Our side: checks, duplicates, shards."""
    from raysift.jobs.pool.ingest import ingest_pool

    with tempfile.TemporaryDirectory() as folder:
        return ingest_pool([path], open_location(folder) / "out", IngestConfig(), Resources()).rows_in


def load_and_map(path: str) -> int:
    """The other side: the same messages and the same ids, row by row."""
    import datasets

    datasets.disable_progress_bars()
    kind = "parquet" if path.endswith(".parquet") else "json"
    file = find_files([path])[0]
    layout = LAYOUTS[recognise(plan_file(file, 2**24).columns, "auto", {}, path).name]

    def normalise(record: dict[str, Any]) -> dict[str, Any]:
        turns = layout.read(record)[0]
        messages = [Message(canonical_role(role) or role, content) for role, content in turns]
        return {"messages": [vars(message) for message in messages], "row": row_id(messages)}

    with tempfile.TemporaryDirectory() as cache:
        rows = datasets.load_dataset(kind, data_files=path, split="train", cache_dir=cache)
        return len(rows.map(normalise, num_proc=PROCESSES))


def measure(work: Callable[[str], int], path: str) -> dict[str, float]:
    with PeakMemory() as memory:
        clock = time.perf_counter()
        rows = work(path)
        seconds = time.perf_counter() - clock
    return {
        "rows": rows,
        "seconds": round(seconds, 2),
        "rows_per_second": round(rows / seconds),
        "driver_mb": memory.driver >> 20,
        "workers_mb": memory.workers >> 20,
        "total_mb": memory.total >> 20,
    }


def compare(path: str, repeats: int) -> dict[str, Any]:
    """Medians of both sides, run in turn so that a busy machine disturbs both alike, after a first run of each."""
    first = {"raysift": measure(ingest, path)["seconds"], "datasets": measure(load_and_map, path)["seconds"]}
    runs: dict[str, list[dict[str, float]]] = {"raysift": [], "datasets": []}
    for _ in range(repeats):
        runs["raysift"].append(measure(ingest, path))
        runs["datasets"].append(measure(load_and_map, path))
    medians = {
        side: {key: statistics.median(run[key] for run in done) for key in done[0]} for side, done in runs.items()
    }
    ratios = [
        ours["rows_per_second"] / theirs["rows_per_second"]
        for ours, theirs in zip(runs["raysift"], runs["datasets"], strict=True)
    ]
    return {
        "file": Path(path).name,
        "first_run_seconds": first,
        **medians,
        "times_as_fast": round(statistics.median(ratios), 2),
        "each": [round(ratio, 2) for ratio in ratios],
    }


def generated(rows: int, folder: str) -> dict[str, float]:
    """Ingest of generated rows; the file stays in `folder` for another run."""
    path = Path(folder) / f"world-{rows}.jsonl"
    if not path.exists():
        # In a process of its own, whose memory is not taken for that of the driver.
        script = "import sys; from raysift.nano.world import WorldConfig, write_pool; "
        script += "write_pool(sys.argv[1], int(sys.argv[2]), 0, WorldConfig(number_prompts=True))"
        subprocess.run([sys.executable, "-c", script, str(path), str(rows)], check=True)
    return {"bytes": path.stat().st_size, **measure(ingest, str(path))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--generated", type=int, nargs="*", default=[], help="numbers of rows")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where generated pools are kept")
    options = parser.parse_args()

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # Ray lowers the priority of its workers, which on a busy machine would hand their share to the other side.
    os.environ.setdefault("RAY_worker_niceness", "0")
    from raysift.jobs.cluster.starting import start_ray

    clock = time.perf_counter()
    start_ray(num_cpus=PROCESSES)
    print(json.dumps({"ray_start_seconds": round(time.perf_counter() - clock, 1), "load": os.getloadavg()}))
    for path in options.files:
        print(json.dumps(compare(path, options.repeats), indent=2), flush=True)
    for rows in options.generated:
        print(json.dumps(generated(rows, options.folder), indent=2), flush=True)


if __name__ == "__main__":
    main()

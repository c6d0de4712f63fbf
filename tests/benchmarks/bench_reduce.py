"""Rows per second of the reduce over stored shards against a bare matrix product over the same numbers in memory.

    nice python tests/benchmarks/bench_reduce.py --rows 1000000 --dimension 1024 --workers 1

Both sides start from the same float16 numbers and use the same number of threads (`--workers`, one BLAS thread each), turn
them into float32 in pieces of 1,024 rows and multiply by the same targets; they take turns, medians of the rounds.

- bare: the numbers lie in one array in memory; nothing is read, nothing is written.
- shards: `store_match.match_shard`, what each Ray task of the reduce does: open the Parquet shard (in the disk cache, for it
  was just read), find the wanted ids, multiply, write the cosines of every row to a Parquet file.
- ray: the same through `match_segments` on a local Ray (`--ray`).

With `--signs` the shards hold signs in the same bytes, sixteen times the numbers; the bare product is still that of float16.

Peak memory is that of a process of its own that scores all shards: resident, mapped file pages included, and anonymous.
"""

from __future__ import annotations

import os

os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from raysift.jobs.gradients.store import SHARD_BYTES, Store
from raysift.jobs.gradients.store_match import match_segments, match_shard
from raysift.settings.gradients import AdamSettings, ProjectionSettings
from raysift.settings.resources import Resources
from raysift.storage import open_location
from raysift.store.gradient_store import Segment, Share, StoreIdentity, read_shard, shard_table, write_shard
from raysift.store.vectors import VectorForm

NAME = "bench"
PIECE = 1024
IDENTITY = StoreIdentity(
    model="", layout="", projection="", projection_settings=ProjectionSettings(), adam=AdamSettings(),
    template="auto", max_length=1, dtype="fp32",
)  # fmt: skip


def make_shards(folder: Path, rows: int, form: VectorForm) -> list[str]:
    """Random rows in shards of the usual size."""
    rng = np.random.default_rng(0)
    home = folder / "segments" / NAME / "shards"
    home.mkdir(parents=True)
    per_shard = max(PIECE, SHARD_BYTES // form.bytes // PIECE * PIECE)
    names = []
    for start in range(0, rows, per_shard):
        count = min(per_shard, rows - start)

        def pieces(start: int = start, count: int = count):  # type: ignore[no-untyped-def]
            for first in range(0, count, PIECE):
                size = min(PIECE, count - first)
                cells = form.pack(rng.standard_normal((size, form.dimension), dtype=np.float32))
                zeros = np.zeros((size, 1), np.float32)
                ids = np.arange(start + first, start + first + size)
                yield shard_table(ids, cells[:, None], zeros, zeros, [NAME], form)

        names.append(f"shards/part-{len(names):05d}.parquet")
        write_shard(open_location(folder / "segments" / NAME / names[-1]), [NAME], form, pieces())
    return names


def score_shards(folder: Path, shards: list[str], targets: np.ndarray, wanted: np.ndarray, workers: int) -> None:
    """The reduce's own function over all shards, in threads."""
    with ThreadPoolExecutor(workers) as pool:
        home = open_location(folder / "segments" / NAME)
        out = open_location(folder / "out").make_folder()
        jobs = [
            pool.submit(match_shard, home / shard, [NAME], [targets], wanted, out / f"{i}.parquet")
            for i, shard in enumerate(shards)
        ]
        assert sum(job.result() for job in jobs) == len(wanted)


def score_by_ray(folder: Path, shards: list[str], targets: np.ndarray, wanted: np.ndarray, workers: int) -> None:
    """The whole reduce over the store, as a run does it."""
    segment = Segment(
        name=NAME, store=IDENTITY.hash, checkpoints=(NAME,), dimension=targets.shape[1], rows=len(wanted), failed=0,
        shards=tuple(shards),
    )  # fmt: skip
    store = Store(str(folder), IDENTITY, {}, targets.shape[1])
    out = open_location(folder / "out").make_folder()
    match_segments(store, [(segment, Share((NAME,), wanted))], {NAME: targets}, out, Resources(workers=workers))


def multiply(numbers: np.ndarray, targets: np.ndarray, workers: int) -> None:
    """The bare product, its rows dealt out to threads in equal parts."""
    wide, bounds = np.ascontiguousarray(targets.T), np.linspace(0, len(numbers), workers + 1).astype(int)
    scores = np.empty((len(numbers), len(targets)), np.float32)

    def part(start: int, stop: int) -> None:
        piece = np.zeros((PIECE, numbers.shape[1]), np.float32)
        for first in range(start, stop, PIECE):
            size = min(PIECE, stop - first)
            piece[:size] = numbers[first : first + size]
            scores[first : first + size] = (piece @ wide)[:size]

    with ThreadPoolExecutor(workers) as pool:
        for job in [pool.submit(part, *pair) for pair in itertools.pairwise(bounds)]:
            job.result()


def timed(body: Callable[[], None]) -> float:
    clock = time.perf_counter()
    body()
    return time.perf_counter() - clock


def measure_memory(folder: Path, shards: list[str], targets: np.ndarray, wanted: np.ndarray, workers: int) -> None:
    """Print what this process needed at most, in MiB: resident, and anonymous memory above what it began with."""
    anonymous, stop = [_status_mib("RssAnon")], threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            anonymous.append(_status_mib("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    score_shards(folder, shards, targets, wanted, workers)
    stop.set()
    watcher.join()
    peak = _status_mib("VmHWM")  # getrusage's peak would be that of the parent, which holds all the numbers
    print(json.dumps({"peak_resident": round(peak), "anonymous_above_start": round(max(anonymous) - anonymous[0])}))


def _status_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=1024, help="float16 numbers of a row")
    parser.add_argument("--signs", action="store_true", help="16 times as many signs instead")
    parser.add_argument("--subtasks", type=int, default=8)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ray", action="store_true", help="also through Ray tasks")
    parser.add_argument("--folder", help="where the shards go; default: a temporary folder")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    form = VectorForm(args.dimension * 16, signs=True) if args.signs else VectorForm(args.dimension)
    targets = np.random.default_rng(1).standard_normal((args.subtasks, form.dimension)).astype(np.float32)
    wanted = np.arange(args.rows)
    if args.memory_of:
        shards = sorted(
            str(p.relative_to(p.parents[1])) for p in Path(args.memory_of).glob(f"segments/{NAME}/shards/*")
        )
        measure_memory(Path(args.memory_of), shards, targets, wanted, args.workers)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        compare(args, Path(name), form, targets, wanted)


def compare(args: argparse.Namespace, folder: Path, form: VectorForm, targets: np.ndarray, wanted: np.ndarray) -> None:
    """Alternate the sides and print medians, ratios and the memory of the reduce."""
    shards = make_shards(folder, args.rows, form)
    numbers = np.empty((args.rows, args.dimension), np.float16)
    for shard in shards:
        for ids, (units,) in read_shard(open_location(folder / "segments" / NAME / shard), [NAME]):
            # Of signs any numbers do: the time of a product does not depend on them.
            numbers[ids] = units[:, : args.dimension] if form.signs else units
    short = targets[:, : args.dimension]
    sides: dict[str, Callable[[], None]] = {
        "bare": lambda: multiply(numbers, short, args.workers),
        "shards": lambda: score_shards(folder, shards, targets, wanted, args.workers),
    }
    if args.ray:
        from raysift.jobs.cluster.starting import start_ray

        start_ray(num_cpus=args.workers, object_store_memory=200 * 2**20)
        sides["ray"] = lambda: score_by_ray(folder, shards, targets, wanted, args.workers)
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for body in sides.values():
        body()  # once for the disk cache, threads and worker processes
    for _ in range(args.rounds):
        for side, body in sides.items():
            seconds[side].append(timed(body))
    size = args.rows * args.dimension * 2 / 2**30
    print(f"{args.rows:,} x {args.dimension} ({size:.2f} GiB), {len(shards)} shards, {args.workers} threads a side")
    for side, values in seconds.items():
        median = statistics.median(values)
        ratio = statistics.median(seconds["bare"]) / median
        spread = f"{min(values):.2f} to {max(values):.2f} s"
        print(f"{side:>7}: {median:6.2f} s ({spread}), {args.rows / median:12,.0f} rows/s, {ratio:.2f} of bare")
    command = [sys.executable, __file__, "--memory-of", str(folder), "--rows", str(args.rows)]
    command += ["--dimension", str(args.dimension), "--subtasks", str(args.subtasks), "--workers", str(args.workers)]
    command += ["--signs"] * form.signs
    print("memory, MiB:", subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())


if __name__ == "__main__":
    main()

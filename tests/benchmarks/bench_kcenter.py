"""Milliseconds a centre of greedy k-center against the loop of MoDS and packages of PyPI; a large pool against its forecast.

    python tests/benchmarks/bench_kcenter.py --other-python PATH --rivals k-center fpsample
    python tests/benchmarks/bench_kcenter.py --large 1000000 --centers 10000

Each contestant runs in a process of its own, one after the other, with all cores, on the same float32 rows, from the same
first centre; reading rows and importing libraries are not timed. The slow ones pick `--loop` centres (a pick costs them
the same whether it is the first or the last), or all with `--full`; what they picked must be what ours did. Seconds of CPU
are printed too: other work on the machine disturbs them less.

- ours: `raysift.kcenter.picking.k_center`, also with pruning switched off.
- sklearn: the official code's loop: `pairwise_distances` to the new centre, `np.minimum`, `argmax`.
- numpy: the same with |x|^2 + |c|^2 - 2 x.c in float32, norms computed once.
- k-center, fpsample: KCenter and fps_sampling of these packages (`--rivals`); the trees of fpsample refuse so many dimensions.

sklearn and rivals are taken from `--other-python`, an environment with numpy, scikit-learn and them. `--vectors FILE.npy` adds
rows of your own. The large pool goes through Parquet files and `raysift.jobs.coverage.covering.cover` in one process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

CLUSTERS = {"clustered": 0.5, "tight": 0.1}  # noise against the spread of 500 cluster centres
OURS = {"ours": {}, "ours, no pruning": {"prune": False}}
LOOPS = ("sklearn", "numpy")
RIVALS = ("k-center", "fpsample")


def make_rows(kind: str, rows: int, dimension: int, seed: int = 0) -> np.ndarray:
    """Rows around 500 cluster centres, or without any structure, or from a file."""
    if kind.endswith(".npy"):
        return np.ascontiguousarray(np.load(kind)[:rows], np.float32)
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, dimension), np.float32)
    if kind != "gaussian":
        centers = np.random.default_rng(1).standard_normal((500, dimension), np.float32)
        x *= np.float32(CLUSTERS[kind])
        x += centers[rng.integers(0, 500, rows)]
    return x


def run_child(name: str, rows: Path, count: int) -> dict[str, Any]:
    """Pick `count` centres after row 0; gives seconds and picks."""
    x = np.load(rows)
    body = {"sklearn": sklearn_loop, "numpy": numpy_loop}.get(name, ours if name in OURS else rival)
    load(name)
    clock, cpu = time.perf_counter(), time.process_time()
    picks, extra = body(name, x, count)
    seconds, cpu = time.perf_counter() - clock, time.process_time() - cpu
    return {"seconds": seconds, "cpu": cpu, "picks": [int(i) for i in picks], **extra}


def load(name: str) -> None:
    """Import what the contestant needs."""
    if name in OURS:
        import torch  # noqa: F401

        import raysift.kcenter.picking  # noqa: F401
    elif name == "sklearn":
        import sklearn.metrics  # noqa: F401
    elif name in RIVALS:
        __import__({"k-center": "k_center"}.get(name, "fpsample"))


def ours(name: str, x: np.ndarray, count: int) -> tuple[Any, dict[str, Any]]:
    from raysift.kcenter.picking import k_center

    found = k_center(x, count, initial=([-1], x[:1]), **OURS[name])
    return found.ids, {"passes": found.passes, "share": found.products / found.possible, "radius": found.final_radius}


def sklearn_loop(name: str, x: np.ndarray, count: int) -> tuple[Any, dict[str, Any]]:
    from sklearn.metrics import pairwise_distances

    near = pairwise_distances(x, x[:1], metric="euclidean")
    picks = []
    for _ in range(count):
        u = int(np.argmax(near))
        near = np.minimum(near, pairwise_distances(x, x[[u]], metric="euclidean"))
        picks.append(u)
    return picks, {}


def numpy_loop(name: str, x: np.ndarray, count: int) -> tuple[Any, dict[str, Any]]:
    norms = np.einsum("nd,nd->n", x, x)
    near = norms + norms[0] - 2 * (x @ x[0])
    picks = []
    for _ in range(count):
        u = int(np.argmax(near))
        np.minimum(near, norms + norms[u] - 2 * (x @ x[u]), out=near)
        picks.append(u)
    return picks, {}


def rival(name: str, x: np.ndarray, count: int) -> tuple[Any, dict[str, Any]]:
    if name == "k-center":
        from k_center import KCenter

        found = KCenter(n_clusters=count + 1, random_state=None).fit(x)
        return found.center_indices_[1:], {}
    import fpsample

    sample = fpsample.fps_sampling if name == "fpsample" else fpsample.bucket_fps_kdtree_sampling
    return sample(x, count + 1, start_idx=0)[1:], {}


def ask(python: str, name: str, rows: Path, count: int) -> dict[str, Any]:
    """The answer of a child process."""
    command = [python, __file__, "--child", name, "--rows-file", str(rows), "--centers", str(count)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def compare(args: argparse.Namespace, kind: str, folder: Path) -> None:
    """Print the milliseconds a centre of all contestants on one set of rows."""
    place = folder / "rows.npy"
    x = make_rows(kind, args.rows, args.dimension)
    np.save(place, x)
    print(f"\n{kind}: {len(x):,} x {x.shape[1]}, {args.centers:,} centres; load {os.getloadavg()[0]:.1f}")
    answers = {name: [ask(sys.executable, name, place, args.centers) for _ in range(args.repeats)] for name in OURS}
    best = answers["ours"][0]
    for name, runs in answers.items():
        assert all(run["picks"] == best["picks"] for run in runs)
        seconds = [run["seconds"] for run in runs]
        spread = f"{min(seconds):.2f} to {max(seconds):.2f} s"
        share = f"{runs[0]['passes']} passes, {runs[0]['share']:.0%} of products"
        cpu = statistics.median(run["cpu"] for run in runs) / args.centers
        each = statistics.median(seconds) / args.centers
        print(f"{name:>17}: {1e3 * each:8.3f} ms a centre ({spread}), {1e3 * cpu:8.3f} ms of CPU ({share})")
    mine, mine_cpu = (
        statistics.median(run[key] for run in answers["ours"]) / args.centers for key in ("seconds", "cpu")
    )
    for name in [*LOOPS, *args.rivals]:
        count = args.centers if args.full else args.loop
        answer = ask(sys.executable if name == "numpy" else args.other_python, name, place, count)
        same = next((i for i, (a, b) in enumerate(zip(answer["picks"], best["picks"], strict=False)) if a != b), count)
        each, cpu = answer["seconds"] / count, answer["cpu"] / count
        note = "the same centres" if same == count else f"other centres from number {same + 1} on"
        times = f"{each / mine:6.1f} times ours; {1e3 * cpu:8.3f} ms of CPU, {cpu / mine_cpu:6.1f} times ours"
        print(f"{name:>17}: {1e3 * each:8.3f} ms a centre, {times} ({count} centres; {note})")
        if name in LOOPS:
            assert same == count or kind.endswith(".npy"), f"{name} and ours differ"


def large(args: argparse.Namespace) -> None:
    """Cover a large pool from files in this process, and set forecast beside fact."""
    import torch  # noqa: F401

    from raysift.jobs.coverage.covering import cover

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tiny_embeddings import write_embeddings

    from raysift.storage import open_location

    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder, files = open_location(name), []
        for number, start in enumerate(range(0, args.large, 50_000)):
            rows = min(50_000, args.large - start)
            files.append(folder / f"{number:05d}.parquet")
            ids = np.arange(start, start + rows)
            write_embeddings(files[-1], ids, make_rows(args.data[0], rows, args.dimension, seed=number))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(
            f"{args.data[0]}: {args.large:,} x {args.dimension}, {args.centers:,} centres; load {os.getloadavg()[0]:.1f}"
        )
        values = cover(files, args.centers, folder=folder / "out").values
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    matrix = args.large * args.dimension * 4 / 2**20
    print(f"forecast {values['forecast_seconds']} s, measured {values['seconds_picking']} s picking", end=", ")
    print(f"{values['seconds']} s in all; load {os.getloadavg()[0]:.1f}")
    print(f"{values['passes']} passes, {values['products_share']:.0%} of products, radius {values['radius']:.4f}")
    print(
        f"peak {peak / 1024:,.0f} MiB of memory ({before / 1024:,.0f} before), the rows are {matrix:,.0f} MiB", end="; "
    )
    print(f"forecast {values['forecast_bytes_a_shard'] / 2**20:,.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--centers", type=int, default=5000)
    parser.add_argument("--data", nargs="+", default=["clustered", "gaussian"], choices=[*CLUSTERS, "gaussian"])
    parser.add_argument("--vectors", nargs="+", default=[])
    parser.add_argument("--loop", type=int, default=300)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--other-python", default=sys.executable)
    parser.add_argument("--rivals", nargs="*", default=[], choices=RIVALS)
    parser.add_argument("--large", type=int)
    parser.add_argument("--folder", help="where the large pool is written")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--rows-file", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(run_child(args.child, args.rows_file, args.centers)))
    elif args.large:
        large(args)
    else:
        with tempfile.TemporaryDirectory() as folder:
            for kind in [*args.data, *args.vectors]:
                compare(args, kind, Path(folder))


if __name__ == "__main__":
    main()

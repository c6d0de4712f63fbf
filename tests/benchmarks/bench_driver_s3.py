"""What the driver of a MoDS run asks of an object store, and how long it waits: each request is delayed by 30 ms.

    python tests/benchmarks/bench_driver_s3.py
    git worktree add /tmp/before COMMIT && python tests/benchmarks/bench_driver_s3.py --against /tmp/before
    python tests/benchmarks/bench_driver_s3.py --memory

Stages run as in a real run, but answers of actors are made up and put on the store past the line that delays and counts: what
is left is the driver. A block of 2,000 rows makes one file of answers, so 500 files are 1,000,000 rows; requests grow with the
files, not with the rows in them, so files hold few rows here. Printed per stage, from two numbers of files: requests per file of
answers and beside them, and both requests and seconds for 500 files. `again` is the same command on the finished run.

`--memory` prints the driver's peak memory by stage for pools of two sizes on a disk, and from them the bytes of a row.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FILES_OF_A_MILLION = 500
ROWS_OF_A_FILE = 6
WEIGHED = (2_000_000, 5_000_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, nargs=2, default=(30, 90))
    parser.add_argument("--delay", type=float, default=0.03)
    parser.add_argument("--against", help="a checkout of other code, measured first")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(json.loads(args.child))
    elif args.memory:
        weigh([args.against] if args.against else [], WEIGHED)
    else:
        measure([*([args.against] if args.against else []), str(ROOT)], tuple(args.files), args.delay)


# --- requests and seconds --------------------------------------------------------------------------------------------


def measure(checkouts: list[str], sizes: tuple[int, int], delay: float) -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        make_bucket(port)
        for number, checkout in enumerate(checkouts):
            few, many = (count(checkout, f"bench-{number}-{files}", files, port, delay) for files in sizes)
            show(checkout, sizes, few, many)
    finally:
        server.kill()


Counted = dict[str, tuple[float, int]]


def count(checkout: str, name: str, files: int, port: int, delay: float) -> Counted:
    """Seconds and requests of each stage."""
    from slow_store import SlowStore

    store = SlowStore(port, delay)
    found: Counted = {}
    direct = store.uri(name).replace(str(store.port), str(port))
    with start(checkout, {"uri": store.uri(name), "direct": direct, "files": files}) as process:
        assert process.stdout is not None and process.stdin is not None
        for line in process.stdout:
            if line.startswith("mark "):  # between two stages the child waits for its count to be taken
                _, stage, seconds = line.split()
                found[stage] = float(seconds), len(store.requests)
                store.requests.clear()
                process.stdin.write("\n")
                process.stdin.flush()
    store.close()
    if process.returncode:
        raise SystemExit(process.returncode)
    return found


def show(checkout: str, sizes: tuple[int, int], few: Counted, many: Counted) -> None:
    print(f"\n{checkout}\n| stage | requests a file | requests beside | requests at 500 files | seconds at 500 files |")
    print("|---|---:|---:|---:|---:|")
    total = [0.0] * 4
    for stage in [name for name in many if name != "ingest"]:
        (seconds, requests), (more_seconds, more_requests) = few[stage], many[stage]
        each, slope = ((b - a) / (sizes[1] - sizes[0]) for a, b in ((requests, more_requests), (seconds, more_seconds)))
        beside, fixed = requests - each * sizes[0], seconds - slope * sizes[0]
        line = [each, beside, beside + each * FILES_OF_A_MILLION, max(0.0, fixed) + slope * FILES_OF_A_MILLION]
        total = total if stage == "again" else [a + b for a, b in zip(total, line, strict=True)]
        print(f"| {stage} | {line[0]:.1f} | {line[1]:.0f} | {line[2]:,.0f} | {line[3]:,.0f} |")
    print(
        f"| together, without again | {total[0]:.1f} | {total[1]:.0f} | {total[2]:,.0f} | {total[3]:,.0f} |", flush=True
    )


def start(checkout: str, given: dict[str, Any]) -> subprocess.Popen[str]:
    """A child that imports the package of this checkout."""
    folder = tempfile.mkdtemp(prefix="raysift-bench-")
    package = Path(folder) / "raysift"
    package.mkdir()
    for entry in (Path(checkout) / "engine").iterdir():
        (package / entry.name).symlink_to(entry)
    for name in ("actors", "jobs"):
        (package / name).symlink_to(Path(checkout) / name)
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
    environment = os.environ | keys | {"PYTHONPATH": folder, "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required"}
    command = [sys.executable, __file__, "--child", json.dumps(given)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment, cwd=folder)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_bucket(port: int) -> None:
    for _ in range(200):
        try:
            request = urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT")
            urllib.request.urlopen(request, timeout=5)
            return
        except OSError:
            time.sleep(0.2)


# --- memory ----------------------------------------------------------------------------------------------------------


def weigh(checkouts: list[str], sizes: tuple[int, ...]) -> None:
    for checkout in [*checkouts, str(ROOT)]:
        print(f"\n{checkout}\n| stage | " + " | ".join(f"{rows:,} rows, MiB" for rows in sizes) + " | bytes a row |")
        print("|---|" + "---:|" * (len(sizes) + 1))
        peaks: dict[str, list[float]] = {}
        for rows in sizes:
            for stage in ("quality", "good", "needed", "order", "lengths", "choose", "choose tokens"):
                with tempfile.TemporaryDirectory() as folder:
                    with start(checkout, {"weighed": stage, "rows": rows, "folder": folder}) as process:
                        told = process.communicate()[0]
                    peaks.setdefault(stage, []).append(float(told.split()[-1]))
        for stage, found in peaks.items():
            slope = (found[-1] - found[0]) * 2**20 / (sizes[-1] - sizes[0])
            print(f"| {stage} | " + " | ".join(f"{peak:.0f}" for peak in found) + f" | {slope:.0f} |")


# --- the child: stages as the package has them, answers made up ------------------------------------------------------


def child(given: dict[str, Any]) -> None:
    import raysift.jobs.on_ray.raydata as raydata
    from raysift.jobs.on_ray import fitting

    answering = Answering(given)
    raydata.map_rows = answering
    fitting.with_room = lambda run, stage, config, need, work, *more, **others: work(config)
    fitting.need_to_answer = lambda *given, **others: None
    try:
        from raysift.jobs.cluster import machines as cluster

        cluster.for_role = lambda config, role, model=None: config
    except ImportError:  # code that knows no roles
        pass
    if "weighed" in given:
        weighed(given["weighed"], given["rows"], given["folder"])
    else:
        stages_of(given, answering)


class Answering:
    """Stands for `map_rows`: files of made-up answers to the rows of `files`, written past the delayed line."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given, self.seconds = given, 0.0

    def __call__(self, files: Any, actor: Any, arguments: Any, out: Any, resources: Any, **others: Any) -> list[Any]:
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        from raysift.storage import Location, open_location

        began = time.perf_counter()
        fs = open_location(self.given["direct"]).fs
        ids = np.concatenate(
            [pq.read_table(file.path, filesystem=fs, columns=["id"])["id"].to_numpy() for file in files]
        )
        ids = np.random.default_rng(0).permutation(ids)
        columns = {
            "Reward": lambda part: {"reward": np.random.default_rng(1).random(len(part))},
            "Embedder": lambda part: {"embedding": [[0.5, 1.0]] * len(part)},
            "Responder": lambda part: {"answer": ["yes"] * len(part), "finished": [True] * len(part)},
        }[actor.__name__]

        def write(item: tuple[int, Any]) -> Location:
            number, part = item
            more = {"truncated": [False] * len(part), "error": pa.nulls(len(part), pa.string())}
            path = f"{out.path}/answers/{number:05d}.parquet"
            pq.write_table(pa.table({"id": part} | columns(part) | more), path, filesystem=fs)
            return Location(out.fs, path)

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(write, enumerate(np.array_split(ids, self.given["files"]))))
        backend = {"backend": "transformers", "version": "0"}
        (Location(fs, out.path) / "backend.json").write(json.dumps(backend))
        self.seconds += time.perf_counter() - began
        return found


def stages_of(given: dict[str, Any], answering: Answering) -> None:
    """Each stage of MoDS whose driver reads answers, with a mark after each."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from raysift.config import make_config, make_selector
    from raysift.jobs import stages
    from raysift.jobs.coverage import centers
    from raysift.jobs.runs.run import Run, StageResult
    from raysift.jobs.runs.tables import read_ids
    from raysift.jobs.scoring import mods, quality
    from raysift.records import KEPT_ROWS
    from raysift.storage import Location, open_location

    uri, files = given["uri"], given["files"]
    count = files * ROWS_OF_A_FILE
    config = make_config({"method": "mods", "budget": str(count // 10), "model": "nano"})
    selector = make_selector(config)
    settings = selector.config
    fs = open_location(given["direct"]).fs
    mark_time = time.perf_counter()

    def mark(stage: str) -> None:
        nonlocal mark_time
        print("mark", stage, round(time.perf_counter() - mark_time - answering.seconds, 2), flush=True)
        sys.stdin.readline()
        answering.seconds, mark_time = 0.0, time.perf_counter()

    def ingest(folder: Any) -> Any:
        names = []
        talk = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "because"}]
        for part in range(max(1, files // 50)):  # shards of 100,000 rows
            rows = [
                {
                    "id": number * 7919,
                    "source": "s",
                    "messages": talk,
                    "meta": None,
                    "raw": None,
                    "file": "f",
                    "position": 1,
                }
                for number in range(part, count, max(1, files // 50))
            ]
            table = pa.Table.from_pylist(rows, schema=KEPT_ROWS)
            pq.write_table(table, f"{folder.path}/rows-{part}.parquet", filesystem=fs)
            names.append(f"rows-{part}.parquet")
        counts = {"rows_in": count, "kept": count}
        return StageResult({"rows": names}, counts, {"by_source": {"s": count}}, rows=count)

    def chosen(name: str, rows: Any, taken: int) -> Any:
        def body(folder: Any) -> Any:
            ids = read_ids([Location(fs, place.path) for place in run.files(rows, "rows")])[:taken]
            mods.write_centers(ids, Location(fs, folder.path))
            return centers.chosen_rows(run, rows, ids, taken, folder, {})

        return run.stage(name, {}, {"rows": rows.fingerprint}, body)

    def tune(folder: Any) -> Any:
        (Location(fs, folder.path) / "epoch-1/adapter/adapter_config.json").write("{}")
        return StageResult({"epochs": ["epoch-1"]}, {}, {})

    run = Run(uri)
    for again in (False, True):
        with run.replayable(config.model_dump(mode="json")):
            rows = run.stage("ingest", {}, {}, ingest)
            again or mark("ingest")
            judged = quality.judge(run, config, settings.scorer, rows)
            again or mark("quality")
            good = quality.keep(run, "good", settings.alpha, "above", rows, judged, "reward", needed_by="mods.alpha")
            again or mark("good")
            vectors = centers.embed(run, config, settings.embedding, good)
            again or mark("embed")
            seeds = chosen("seeds", good, count // 20)
            tuned = run.stage("tune", {}, {}, tune)
            again or mark("seeds")
            answers = mods.generate(run, config, settings, good, tuned)
            again or mark("generate")
            known = mods.necessity(run, config, settings, good, answers)
            again or mark("necessity")
            needed = quality.keep(run, "needed", settings.beta, "below", good, known, "reward")
            again or mark("needed")
            added = chosen("augmented", needed, count // 40)
            again or mark("augmented")
            scores = mods.order(run, selector, judged, good, vectors, seeds, (known, needed, added))
            again or mark("order")
            stages.choose(run, config, selector, rows, scores, None)
            mark("again" if again else "choose")


def weighed(stage: str, rows: int, folder: str) -> None:
    """Prints the peak of this process above what it had before the stage, in MiB."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from raysift.jobs.runs import tables
    from raysift.methods.choose import choose_top
    from raysift.methods.mods import Stages, place_rows
    from raysift.scoring.settings import Threshold
    from raysift.settings.budget import parse_budget
    from raysift.storage import open_location

    rng = np.random.default_rng(0)
    place = open_location(folder)
    for number in range(20):
        ids = rng.integers(-(2**62), 2**62, rows // 20)
        columns = {"id": ids, "reward": rng.random(len(ids)), "score": rng.random(len(ids)), "truncated": ids % 2 == 0}
        columns |= {"n_tokens": np.abs(ids) % 500, "error": pa.nulls(len(ids), pa.string())}
        pq.write_table(pa.table(columns), (place / f"{number:02d}.parquet").path)
    del ids, columns
    files = place.files(".parquet")
    pa.default_memory_pool().release_unused()
    list(tables.read_chunks(files[:2], ["id", "reward", "error"]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if stage in ("quality", "lengths"):
        tables.count_answers(stage, files, rows)
    elif stage in ("good", "needed"):
        run_keep(folder, files, rows, Threshold(quantile=0.5))
    elif stage == "order":
        scored = tables.read_numbers(files, "reward", "quality")
        ids = scored["id"].to_numpy()
        centres = pa.table({"id": ids[: rows // 20], "radius": pa.nulls(rows // 20, pa.float64())})
        place_rows(Stages(scored, np.sort(ids[: rows // 2]), centres))
    elif stage == "choose":
        choose_top(tables.read_chunks(files, ["id", "score"]), parse_budget("5%"), rows)
    else:
        budget = parse_budget(f"{rows}tok")
        chosen, _ = choose_top(tables.with_tokens(tables.read_chunks(files, ["id", "score"]), files), budget, rows)
        tables.sum_tokens(files, chosen)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def run_keep(folder: str, files: list[Any], rows: int, bar: Any) -> None:
    from raysift.jobs.runs.run import Run, StageResult
    from raysift.jobs.scoring import quality

    quality.write_rows = lambda files, ids, folder: []
    run = Run(f"{folder}/run")
    with run.replayable({}):
        names = [os.path.relpath(file.path, f"{folder}/run/quality/x") for file in files]
        scored = run.stage("quality", {}, {}, lambda place: StageResult({"answers": []}, {}, {}))
        run.files = lambda manifest, kind: files  # type: ignore[method-assign]
        assert names
        quality.keep(run, "good", bar, "above", scored, scored, "reward")


if __name__ == "__main__":
    main()

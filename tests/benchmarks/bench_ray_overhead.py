"""What Ray Data costs: the gradient stage through `map_rows` against the same actor class called in a plain loop.

    nice python tests/benchmarks/bench_ray_overhead.py --rows 3000 --cores 2

Both sides use the same number of single-threaded processes and the same rows, batches and files. Each side's clock starts once
its actors have loaded the model, since a run loads it once however long it is: for Ray, at the first answered batch, whose
rows are then left out of its count; for the plain loop, after the constructor. The plain loop reads the rows and writes its
answers to Parquet too. The sides take turns; medians of the rounds. Pinned to the first `--cores` cores.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysift.actors.checkpointed import Checkpoint
from raysift.actors.row_gradients import GradientVectors
from raysift.records import ID, MESSAGES
from raysift.settings.gradients import AdamSettings, ProjectionSettings
from raysift.storage import Location, open_location

BATCH_ROWS = 64


class Timed(GradientVectors):
    """Writes down when it began and ended each batch."""

    def __init__(self, log: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._log = f"{log}/{os.getpid()}.jsonl"

    def __call__(self, batch: pa.Table) -> pa.Table:
        began = time.time()
        answers = super().__call__(batch)
        with Path(self._log).open("a") as log:
            log.write(json.dumps([began, time.time(), len(batch)]) + "\n")
        return answers


def rows_per_second(log: Path, ended: float) -> float:
    """Rows after the batch in which the last process got going, over the time from then to the end of the stage."""
    batches = [[json.loads(line) for line in file.read_text().splitlines()] for file in log.glob("*.jsonl")]
    start = max(mine[0][0] for mine in batches)
    counted = sum(rows for mine in batches for began, _, rows in mine if began >= start)
    return counted / (ended - start)


def by_ray(files: list[Location], arguments: dict[str, Any], folder: Path, cores: int) -> float:
    from raysift.jobs.on_ray.raydata import map_rows
    from raysift.settings.resources import Resources

    log = folder / "log"
    log.mkdir()
    resources = Resources(workers=cores, batch_rows=BATCH_ROWS, block_rows=4 * BATCH_ROWS)
    map_rows(files, Timed, arguments | {"log": str(log)}, open_location(folder / "out"), resources)
    return rows_per_second(log, time.time())


def plain_loop(files: list[Location], arguments: dict[str, Any], folder: Path, cores: int) -> float:
    log = folder / "log"
    log.mkdir()
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(cores)
    workers = [
        context.Process(target=_loop, args=(files, arguments | {"log": str(log)}, folder, i, cores, barrier))
        for i in range(cores)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return rows_per_second(log, time.time())


def _loop(
    files: list[Location], arguments: dict[str, Any], folder: Path, number: int, cores: int, barrier: Any
) -> None:
    actor = Timed(**arguments)
    barrier.wait()
    table = pa.concat_tables([pq.read_table(file.path, columns=[ID, MESSAGES]) for file in files])
    batches = [table.slice(start, BATCH_ROWS) for start in range(0, len(table), BATCH_ROWS)]
    answers = [actor(batch) for batch in batches[number::cores]]
    pq.write_table(pa.concat_tables(answers), folder / f"answers-{number}.parquet")


def make_checkpoint(folder: Path) -> Checkpoint:
    """A LoRA adapter on the nano model, with moments that are not zero."""
    import numpy as np
    import torch
    from peft import LoraConfig, get_peft_model

    from raysift.actors.language_model import load_language_model
    from raysift.gradients.moments import Moments, save_moments

    torch.manual_seed(0)
    adapter = LoraConfig(r=16, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(load_language_model("nano", device="cpu"), adapter)
    place = open_location(folder / "epoch-1")
    model.save_pretrained((place / "adapter").path, save_embedding_layers=False)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    rng = np.random.default_rng(0)
    first = {name: rng.standard_normal(shape).astype(np.float32) * 1e-3 for name, shape in shapes.items()}
    save_moments(place / "moments.safetensors", Moments(first, {n: v * v for n, v in first.items()}, 10))
    return Checkpoint("epoch-1", place / "adapter", place / "moments.safetensors", 1e-3)


def write_rows(folder: Path, rows: int) -> list[Location]:
    from raysift.nano.world import generate_pool

    kept = [{ID: i, MESSAGES: row["messages"]} for i, row in enumerate(generate_pool(rows, 0))]
    place = open_location(folder / "rows.parquet")
    pq.write_table(pa.Table.from_pylist(kept), place.path, row_group_size=500)
    return [place]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    from raysift.jobs.cluster.starting import start_ray

    # Logical CPUs beyond the cores leave room for Ray's readers and writers; the actors are as many as the cores.
    start_ray(num_cpus=args.cores + 2, object_store_memory=200 * 2**20)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files, point = write_rows(folder, args.rows), make_checkpoint(folder)
        arguments = {
            "model": "nano", "checkpoints": [point], "adam": AdamSettings(), "projection": ProjectionSettings(kind="sketch"),
            "device": "cpu", "threads": 1, "max_length": 512,
        }  # fmt: skip
        rates: dict[str, list[float]] = {"plain": [], "ray": []}
        for number in range(args.rounds):
            for side, body in (("plain", plain_loop), ("ray", by_ray)):
                place = folder / f"{side}-{number}"
                place.mkdir()
                rates[side].append(body(files, arguments, place, args.cores))
    plain, ray = (statistics.median(rates[side]) for side in ("plain", "ray"))
    print(
        f"{args.rows:,} rows, {args.cores} cores: plain {plain:,.0f} rows/s, through Ray Data {ray:,.0f}, {ray / plain:.2f} of it"
    )
    print(json.dumps({side: [round(rate, 1) for rate in values] for side, values in rates.items()}))


if __name__ == "__main__":
    main()

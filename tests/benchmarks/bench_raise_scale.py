"""RAISE beyond 100,000 rows, without a GPU: CPU time of choosing, bytes that the driver holds, and a step's arithmetic.

    python tests/benchmarks/bench_raise_scale.py --rows 250000 1000000

Choosing is timed in pairs: the host's own way, and what is left to the host once a device has the pool. Torch's CPU stands for
the device, and the time inside its operations is taken off; what is left includes counting them, so it is an upper bound.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from raysift.actors.effective_batches import COUNTED, INPUT_IDS, split_trainable
from raysift.actors.encoded_rows import by_id
from raysift.actors.token_files import TokenFiles
from raysift.jobs.policy.token_stage import merge_part
from raysift.jobs.runs.tables import read_chunks
from raysift.policy.arithmetic import step_seconds
from raysift.policy.device_picking import DevicePicker
from raysift.policy.drawing import Draw
from raysift.policy.network import Acquisition
from raysift.policy.picking import Picker
from raysift.policy.pool import PolicyPool
from raysift.policy.settings import PolicySettings
from raysift.policy.state import State, stage_inputs
from raysift.records import ERROR, ID
from raysift.settings.memory import Shape
from raysift.storage import Location, open_location

FEATURES, BATCH = 36, 32
LLAMA_8B = Shape(4096, 32, 128_256, 4096, 1024, 14_336, gated=True, tied=False, positions=8192)
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[250_000, 1_000_000])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--token-rows", type=int, default=40_000, help="rows whose tokens the driver is made to hold")
    parser.add_argument("--tokens", type=int, default=300, help="of each of these rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for rows in options.rows:
        show_choosing(rows, options.pairs)
    show_driver(options.token_rows, options.tokens)
    for rank in (16, 128):
        show_weights(rank)
    for rows in (1_000_000, 5_000_000):
        show_step(rows)


def show_choosing(rows: int, pairs: int) -> None:
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 4, rows).astype(np.int32)
    pool = PolicyPool(np.arange(rows), rng.standard_normal((rows, FEATURES)).astype(np.float32), classes)
    settings = PolicySettings(classes=4)
    network = Acquisition(FEATURES, settings.hidden, seed=0)
    host, device = Picker(pool, settings, network), DevicePicker(pool, settings, network, "cpu")
    counts = np.zeros(rows, np.int32)
    counts[rng.choice(rows, rows // 100, replace=False)] = 1
    before, after = [], []
    for step in range(1, pairs + 1):
        state = State(stage_inputs(-2.0, -1.5, step, pairs), counts)
        for picker, found in ((host, before), (device, after)):
            found.append(cpu_seconds(lambda: picker.batch(state, BATCH, step, Draw(0, "a")), picker is device))  # noqa: B023
    ratios = [one / other for one, other in zip(before, after, strict=True)]
    print(
        f"choosing among {rows:,} rows: {statistics.median(before) * 1e3:.0f} ms of CPU on the host, "
        f"{statistics.median(after) * 1e3:.1f} ms with the pool on a device: a ratio of {statistics.median(ratios):.0f} "
        f"({min(ratios):.0f} to {max(ratios):.0f}, {pairs} pairs)"
    )


def cpu_seconds(work: Callable[[], Any], without_operations: bool) -> float:
    with Timed() as timed:
        clock = time.process_time()
        work()
        spent = time.process_time() - clock
        timed.kept.clear()
    return spent - (timed.seconds if without_operations else 0.0)


class Timed(TorchDispatchMode):
    """CPU time inside torch's operations; what they make is freed afterwards, which takes a device no time of the host."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self.kept: list[Any] = []

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        clock = time.process_time()
        found = operation(*arguments, **(named or {}))
        self.seconds += time.process_time() - clock
        self.kept.append(found)
        return found


def show_driver(rows: int, tokens: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        answers = write_answers(open_location(folder), rows, tokens)
        files = TokenFiles((merge_part(open_location(folder), 0, [answers]),))
        whole = peak_bytes(lambda: old_rows(answers))
        flat = peak_bytes(files.ids)
        print(
            f"tokens of {rows:,} rows of {tokens}: the driver held {whole / rows:,.0f} bytes a row at its peak "
            f"({whole * 5e6 / rows / GIB:.1f} GiB at 5 million rows), now {flat / rows:,.1f} ({flat * 5e6 / rows / GIB:.2f} GiB)"
        )


def write_answers(folder: Location, rows: int, tokens: int) -> Location:
    rng = np.random.default_rng(0)
    starts = pa.array(np.arange(0, (rows + 1) * tokens, tokens, dtype=np.int32))
    ids = pa.ListArray.from_arrays(starts, pa.array(rng.integers(0, 128_000, rows * tokens).astype(np.int32)))
    counted = pa.ListArray.from_arrays(starts, pa.array(np.tile(np.arange(tokens) > tokens // 3, rows)))
    columns = {ID: pa.array(rng.permutation(rows)), INPUT_IDS: ids, COUNTED: counted}
    place = folder / "answers.parquet"
    pq.write_table(pa.table(columns | {ERROR: pa.nulls(rows, pa.string())}), place.path)
    return place


def old_rows(answers: Location) -> pa.Table:
    """What the driver did before token files: all tokens as one table."""
    chunks = read_chunks([answers], [ID, INPUT_IDS, COUNTED, ERROR])
    return by_id(pa.concat_tables([split_trainable(chunk)[0] for chunk in chunks]))


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most that Python and numpy allocate, and arrow if that is its highest so far; call with the largest first."""
    pool = pa.default_memory_pool()
    begun, highest = pool.bytes_allocated(), pool.max_memory()
    tracemalloc.start()
    try:
        work()
        _, numpy_peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return numpy_peak + (pool.max_memory() - begun if pool.max_memory() > highest else 0)


def show_weights(rank: int) -> None:
    size = 4 * LLAMA_8B.adapter(rank, "all-linear")
    print(
        f"LoRA rank {rank} on an 8B model, 8 processes, a step: before, {8 * size / 2**20:,.0f} MiB of weights through host and "
        f"object store ({size / 2**20:,.0f} MiB out, the same into each of 7 validators); now 0, and {3 * size / 2**20:,.0f} MiB "
        "of gradients from each GPU to its peers"
    )


def show_step(rows: int) -> None:
    for ranks in (1, 8):
        step = step_seconds(
            LLAMA_8B, LLAMA_8B.adapter(16, "all-linear"), BATCH * 330, 300 * 330, pool_rows=rows, ranks=ranks
        )
        print(
            f"8B, {rows:,} rows, {ranks} H100 (arithmetic): train {step.train:.3f} s, exchange {step.exchange:.4f}, validate "
            f"{step.validate:.3f}, choose {step.choose:.4f} ({step.choose / step.total:.2%}), all {step.total:.3f}"
        )


if __name__ == "__main__":
    main()

"""Does RAISE work? On the nano world, where the truth about every row is known.

    python tests/benchmarks/bench_raise.py --out runs/raise --seeds 0 1 2 --ablations

Per seed: a pool of 40,000 noisy rows, and one skill of 22 as the target (8 % of the rows). RAISE learns for 20 rounds and trains
once under its policy, for as many steps as 1 % of the pool makes in three epochs. Beside it, with as many steps: 1 % at random
for three epochs, fresh random batches, the 1 % of IFD, of LESS and of an oracle; and three epochs over everything. Printed: the
learning curve, what was picked in the first and the last rounds, accuracy on the target. `--ablations` leaves out one block of
features at a time. Validation answers are worded as in the pool, half of them as a sentence: accuracy does not depend on the
wording, and a loss over one wording alone would reward that wording before the skill.

Several processes may work on one --out, each on its own --seeds; a last call with all seeds prints the tables.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from trained_cells import Cell, compare_cells, show_comparison, tested_scores

import raysift
from raysift.config import make_config
from raysift.draws import uniform_of
from raysift.jobs.cluster.session import own_session
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.run import Run
from raysift.jobs.runs.tables import read_chunks
from raysift.manifest import Manifest
from raysift.nano.styles import STYLES, style_answer
from raysift.nano.world import examples, is_clean, is_relevant, write_pool
from raysift.policy.saved import load_episodes
from raysift.policy.settings import Block
from raysift.policy.state import Episode
from raysift.records import ID, META, ROWS
from raysift.storage import Location, open_location

BLOCKS: tuple[Block, ...] = ("stage", "difficulty", "semantic", "availability")
SHARED = ("ingest", "validation", "encode", "difficulty", "embed", "features")
TRAIN = {"epochs": 3}
YARDSTICKS: dict[str, dict[str, Any]] = {
    "uniform": {"method": "uniform", "budget": "1%", "epochs": 3},
    "batches": {"method": "uniform", "budget": "3%", "epochs": 1},
    "ifd": {"method": "quality", "budget": "1%", "epochs": 3, "quality": {"scorer": {"kind": "ifd"}}},
    "less": {"method": "less", "budget": "1%", "epochs": 3},
    "oracle": {},
    "everything": {},
}
"""Static choices that make as many steps; what no method can know; and all rows."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/raise")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--skills", nargs="+", default=["last_letters"])
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--questions", type=int, default=300, help="of the test set, over the skills")
    parser.add_argument("--ablations", action="store_true")
    parser.add_argument("--yardsticks", nargs="*", default=list(YARDSTICKS), help=", ".join(YARDSTICKS))
    parser.add_argument("settings", nargs="*", help="raise settings, as raise.policy.classes=2")
    options = parser.parse_args()
    console, folder = Console("plain"), Path(options.out).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(
        folder / "target.jsonl", worded_both_ways(examples(160, 1000, options.skills, "validation"), options.skills)
    )
    write_lines(folder / "test.jsonl", examples(options.questions, 1000, options.skills, "test"))
    cells, curves = [Cell("base model", 0, None)], []
    with own_session():
        for seed in options.seeds:
            curves += policies(folder, seed, options, cells)
            cells += yardsticks(folder, seed, options)
        config = make_config({"test": [str(folder / "test.jsonl")], "evaluate": {"max_new_tokens": 32}, "train": TRAIN})
        result = compare_cells(cells, config, (Run(str(folder / "compare")).folder / "cells").make_folder(), console)
    show_curves(curves, console)
    values = Manifest(stage="compare", fingerprint="", values=dict(result.values))
    show_comparison(values, console, len(options.seeds), ", ".join(options.skills))


def worded_both_ways(records: Iterable[dict[str, Any]], skills: list[str]) -> Iterator[dict[str, Any]]:
    """References in the styles of the pool, in turn for each of the skills, which come in turn."""
    for number, record in enumerate(records):
        style = STYLES[number // len(skills) % len(STYLES)]
        yield record | {"reference": style_answer(record["reference"], style)}


def common(folder: Path, seed: int, name: str) -> dict[str, Any]:
    return {"seed": seed, "run": str(folder / f"{name}-{seed}"), "train": TRAIN, "console": Console("plain")}


def policies(folder: Path, seed: int, options: argparse.Namespace, cells: list[Cell]) -> list[dict[str, Any]]:
    """RAISE with all features, and without one block each where asked for."""
    pool = folder / f"pool-{seed}.jsonl"
    if not pool.exists():
        write_pool(pool, options.rows, 3000 + seed)
    left_out: list[Block | None] = [None, *(BLOCKS if options.ablations else ())]
    curves = []
    for block in left_out:
        name = f"raise without {block}" if block else "raise"
        settings = common(folder, seed, name.replace(" ", "-")) | {
            "budget": "1%",
            "target": [str(folder / "target.jsonl")],
        }
        settings |= {
            "test": [str(folder / "test.jsonl")],
            "evaluate": {"max_new_tokens": 32},
            "resources": {"threads": 1},
        }
        own: dict[str, Any] = {
            "learning": {"rounds": options.rounds},
            "policy": {"blocks": [b for b in BLOCKS if b != block]},
            "episode": {"validation_rows": 72},
        }
        for setting in options.settings:
            path, _, value = setting.partition("=")
            *sections, key = path.split(".")[1:]
            place = own
            for section in sections:
                place = place.setdefault(section, {})
            place[key] = json.loads(value)
        if block:
            share_stages(folder / f"raise-{seed}", Path(settings["run"]))
        selection = raysift.select("raise", str(pool), **settings, **{"raise": own})
        cells.append(Cell(name, seed, tuple(selection.files()), scores=tested_scores(selection.run.opened)))
        curves.append(curve(selection.run.opened, name, seed, options.skills))
    return curves


def share_stages(source: Path, target: Path) -> None:
    """What does not depend on the policy is computed once."""
    for stage in SHARED:
        if not (target / stage / "manifest.json").exists():
            shutil.copytree(source / stage, target / stage, dirs_exist_ok=True)


def yardsticks(folder: Path, seed: int, options: argparse.Namespace) -> list[Cell]:
    """The training sets that RAISE is set beside."""
    cells = []
    for name in options.yardsticks:
        settings = dict(YARDSTICKS[name])
        if not settings:
            continue
        method, epochs = settings.pop("method"), settings.pop("epochs")
        if method == "less":
            settings["target"] = [str(folder / "target.jsonl")]
        pool = str(folder / f"pool-{seed}.jsonl")
        selection = raysift.select(method, pool, **common(folder, seed, name), **settings)
        cells.append(Cell(f"{name} {settings['budget']}, epochs {epochs}", seed, tuple(selection.files()), epochs))
    pool_run = Run(str(folder / f"raise-{seed}"), Console("quiet"))
    rows = pool_run.manifest("ingest")
    assert rows is not None
    if "oracle" in options.yardsticks:
        right = oracle_rows(pool_run, rows, seed, folder, options.skills)
        cells.append(Cell("oracle 1%, epochs 3", seed, (right,), 3))
    if "everything" in options.yardsticks:
        cells.append(Cell("everything, epochs 3", seed, tuple(pool_run.files(rows, "rows")), 3))
    return cells


def oracle_rows(run: Run, rows: Manifest, seed: int, folder: Path, skills: list[str]) -> Location:
    """1 % of the pool, of the skills and known to be right: what no method can know."""
    found = pa.concat_tables(read_chunks(run.files(rows, "rows"), ROWS.names))
    right = found.filter(pa.array([judge(json.loads(meta), skills)["clean"] for meta in found[META].to_pylist()]))
    order = uniform_of(right[ID].to_numpy(), seed).argsort()[: int(0.01 * rows.counts["kept"])]
    place = open_location(str(folder)) / f"oracle-{seed}.parquet"
    pq.write_table(right.take(pa.array(order)), place.path, filesystem=place.fs)
    return place


def curve(run: Run, name: str, seed: int, skills: list[str]) -> dict[str, Any]:
    """Performance and picks of every round, and of the final training."""
    rows, learned, final = (run.manifest(stage) for stage in ("ingest", "learn", "final"))
    assert rows and learned and final
    truth = {
        row: json.loads(meta)
        for chunk in read_chunks(run.files(rows, "rows"), [ID, META])
        for row, meta in zip(chunk[ID].to_pylist(), chunk[META].to_pylist(), strict=True)
    }
    rounds = []
    for place in run.files(learned, "rounds"):
        account = json.loads(place.read_text())
        picks = load_episodes(Location(place.fs, place.path.rpartition("/")[0]))
        rounds.append(account | {"picked": picked_shares(picks, truth, skills)})
    everything = {"target": 0.0, "clean": 0.0, "noise": 0.0}
    for row in truth.values():
        for key, value in judge(row, skills).items():
            everything[key] += value / len(truth)
    return {"name": name, "seed": seed, "rounds": rounds, "final": dict(final.values), "pool": everything}


def judge(row: dict[str, Any], skills: list[str]) -> dict[str, bool]:
    target = is_relevant(row, skills)
    return {"target": target, "clean": target and is_clean(row), "noise": not is_clean(row)}


def picked_shares(episodes: list[Episode], truth: dict[int, dict[str, Any]], skills: list[str]) -> dict[str, float]:
    picks = [judge(truth[row], skills) for episode in episodes for batch in episode.picks for row in batch.tolist()]
    return {key: float(np.mean([one[key] for one in picks])) for key in ("target", "clean", "noise")}


def show_curves(curves: list[dict[str, Any]], console: Console) -> None:
    """The mean of the first three and of the last three rounds."""
    lines = []
    for found in curves:
        first, last = found["rounds"][:3], found["rounds"][-3:]
        line = [found["name"], str(found["seed"]), f"{first[0]['start']:.3f}"]
        for key in ("performance", "report"):
            line += [f"{np.mean([r[key] for r in part]):.3f}" for part in (first, last)]
        line.append(f"{found['final']['report']:.3f}")
        for key in ("target", "clean", "noise"):
            shares = [f"{np.mean([r['picked'][key] for r in part]):.2f}" for part in (first, last)]
            line.append(f"{found['pool'][key]:.2f} {shares[0]} {shares[1]}")
        lines.append(line)
    heads = ["", "seed", "start", "P first", "P last", "report first", "report last", "report final"]
    console.table("Rounds", [*heads, "target: pool first last", "clean target", "noise"], lines)
    for found in curves:
        curve_of = " ".join(f"{r['performance']:.3f}" for r in found["rounds"])
        console.note(f"{found['name']}, seed {found['seed']}: {curve_of}")


def write_lines(path: Path, records: Any) -> None:
    path.write_bytes(b"\n".join(map(orjson.dumps, records)))


if __name__ == "__main__":
    main()

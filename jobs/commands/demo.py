"""`raysift demo`: every method on the nano world, in minutes and offline; one call of `raysift compare`.

In the pool, one row in twelve practises the target skill, and a third of all rows is spoilt. Methods are compared with the
yardsticks and with two references: training on everything, and on rows known to be right (the oracle). The distance from
uniform to oracle is the room in which a method can show its worth. All figures come from the comparison; only the demo
knows the truth about each row, and tells how many rows of the skill, and how many spoilt ones, each method chose.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from raysift.jobs.cluster.session import own_session
from raysift.jobs.compare import rendering
from raysift.jobs.compare.compare import compare
from raysift.jobs.compare.plan import make_plan
from raysift.jobs.report.writing import report_at_end
from raysift.jobs.runs.console import Console, printable
from raysift.jobs.runs.run import Run
from raysift.jobs.runs.table_layout import duration
from raysift.methods import METHODS
from raysift.nano.world import examples, generate_pool, is_clean, is_relevant, preference_pairs, write_pool
from raysift.records import MESSAGES, META
from raysift.storage import Location

TARGET = "last_letters"
POOL_ROWS = 2000
WORLD_SEED = 1000
TEST_ROWS = 160
TARGET_ROWS = 32
BUDGET = 80
SHOWN_ROWS = 3
SHOWN_CHARACTERS = 60
CUT = (
    "cut to be quick: a pool of {rows:,} rows, {seeds} seeds, one selection of each method, gradients at 2 checkpoints of 4, "
    "10 rounds of RAISE instead of 20. More: raysift demo --seeds 5 --run runs/demo5"
)


def run_demo(folder: str, seeds: int, console: Console, report: bool = True) -> None:
    """Select with every method, train, test, and tell what came out; the report is a page of the same."""
    run = Run(folder, console)
    run.claim()
    values = write_world(run.folder) | {"compare": {"methods": contenders(run.folder), "seeds": seeds, "selections": 1}}
    plan = make_plan(values)
    console.note(
        f"{len(plan.contenders)} training sets of {BUDGET} rows from a pool of {POOL_ROWS:,}; target skill: {TARGET}"
    )
    with own_session(console) as start:
        run.start = start
        found = compare(run, plan, values, every_stage=False)
    rendering.show(found, console, all_tables=False)
    show_truth(run, found, console)
    show_rows(run, "less", console)
    report_at_end(run, report)
    console.note("time: " + ", ".join(f"{part} {duration(seconds)}" for part, seconds in found["seconds"].items()))
    console.note(CUT.format(rows=POOL_ROWS, seeds=seeds))
    for line in next_commands(folder):
        console.note(line)


def write_world(folder: Location) -> dict[str, Any]:
    """Write pool, targets and test set as files like a user's own; return the settings that all methods share."""
    home = (folder / "world").make_folder()
    pool = write_pool(f"{home.path}/pool.jsonl", POOL_ROWS, WORLD_SEED)
    _write(home / "test.jsonl", examples(TEST_ROWS, WORLD_SEED, [TARGET], "test"))
    _write(home / "target.jsonl", examples(TARGET_ROWS, WORLD_SEED, [TARGET], "validation"))
    _write(home / "pairs.jsonl", preference_pairs(TARGET_ROWS, WORLD_SEED, [TARGET]))
    _write(home / "oracle.jsonl", oracle_rows())
    return {
        "pool": [str(pool)],
        "test": [f"{home.path}/test.jsonl"],
        "budget": str(BUDGET),
        "model": "nano",
        "evaluate": {"max_new_tokens": 32},
        "resources": {"train": 0},
    }


def _write(place: Location, rows: Iterable[Mapping[str, Any]]) -> None:
    place.write(b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows))


def oracle_rows() -> list[dict[str, Any]]:
    """As many rows as the budget allows, all of the target skill and known to be right; no method can know them."""
    right: dict[str, dict[str, Any]] = {}
    for row in generate_pool(POOL_ROWS, WORLD_SEED):
        if is_clean(row) and is_relevant(row, TARGET) and row["duplicate"] is None:
            right.setdefault(json.dumps(row["messages"]), row)
    return list(right.values())[:BUDGET]


def contenders(folder: Location) -> dict[str, dict[str, Any]]:
    """Every method that takes part in the papers' comparisons, and the two references."""
    home = f"{folder.path}/world"
    return {
        "less": {"target": [f"{home}/target.jsonl"], "less": {"checkpoints": 2}},
        "rose": {"target": [f"{home}/pairs.jsonl"], "rose": {"checkpoints": 2}},
        "mods": {},
        "raise": {"target": [f"{home}/target.jsonl"], "raise": {"learning": {"rounds": 10}}},
        "full pool": {"rows": [f"{home}/pool.jsonl"], "train": {"epochs": 1}},
        "oracle": {"rows": [f"{home}/oracle.jsonl"]},
    }


def show_truth(run: Run, found: Mapping[str, Any], console: Console) -> None:
    """Print how many chosen rows practise the target skill and how many are spoilt, which only the nano world knows."""
    lines = []
    for line in found["methods"]:
        rows = chosen_rows(run, line["name"])
        if rows is None:
            continue
        truth = [json.loads(meta) for meta in rows[META].to_pylist()]
        share = sum(is_relevant(row, TARGET) for row in truth) / len(truth)
        spoilt = sum(not is_clean(row) for row in truth) / len(truth)
        lines.append([line["name"], f"{share:.0%}", f"{spoilt:.0%}"])
    console.table("What was chosen, of the first seed", ["trained on", f"practises {TARGET}", "spoilt"], lines)


def show_rows(run: Run, name: str, console: Console) -> None:
    """Print a few rows that a method chose."""
    rows = chosen_rows(run, name)
    assert rows is not None
    texts = [
        [_short(message["content"]) for message in row[:2]] for row in rows[MESSAGES].slice(0, SHOWN_ROWS).to_pylist()
    ]
    console.table(f"Some rows that {name} chose", ["question", "answer"], texts)


def chosen_rows(run: Run, name: str) -> pa.Table | None:
    """The rows of the first selection; None for the untrained model."""
    home = run.folder / name.replace(" ", "_") / "seed-0"
    stage = "choose" if name in METHODS else "ingest"
    own = Run(home)
    manifest = own.manifest(stage)
    if manifest is None:
        return None
    return pa.concat_tables([pq.read_table(file.path, filesystem=file.fs) for file in own.files(manifest, "rows")])


def next_commands(folder: str) -> list[str]:
    """What to type after the demo."""
    world = f"{folder}/world"
    return [
        f"see more:  raysift show {folder}   and   raysift show {folder}/less/seed-0",
        f"try one:   raysift less --pool {world}/pool.jsonl --target {world}/target.jsonl --budget 5% --run runs/less",
        "your own:  raysift look MY_POOL.jsonl --target MY_EXAMPLES.jsonl --write my.yaml",
    ]


def _short(text: str) -> str:
    line = printable(" ".join(text.split()))
    return line if len(line) <= SHOWN_CHARACTERS else line[: SHOWN_CHARACTERS - 1] + "…"


__all__ = ["run_demo"]

"""Before and after: who is in the pool, and who is in the selection."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa

from raysift.jobs.report.features import ANSWER, PROMPT, SCRIPT, TURNS, meta_groups
from raysift.jobs.report.gather import Gathered
from raysift.report.blocks import Bars, Block, Section
from raysift.report.groups import NO_GROUP, before_and_after, by_length

MOST_TURNS = 8


def groups_section(found: Gathered) -> Section | None:
    """Paired bars by source, small columns of the meta, turns, lengths and writing system."""
    if found.choose is None or found.ingest is None:
        return None
    pool, picked = found.pool.features, found.picked.features
    note = "" if len(pool) == found.pool_rows else f"From {len(pool):,} rows of the pool, drawn by id."
    blocks: list[Bars | None] = [before_and_after("By source", *source_counts(found))]
    for name, (before, after) in meta_groups(pool, picked).items():
        sides = _whole(before, len(pool)), _whole(after, len(picked))
        blocks.append(before_and_after(f"By {name}", *sides, (), note))
    scripts = _counts(pool, SCRIPT), _counts(picked, SCRIPT)
    blocks.append(before_and_after("By writing system", *scripts, (), "Of the letters of the answers, in a sample."))
    blocks.append(before_and_after("By turns", _turns(pool), _turns(picked), _TURNS, note))
    for name, column in (("prompt", PROMPT), ("answer", ANSWER)):
        lengths = pool[column].to_pylist(), picked[column].to_pylist()
        blocks.append(by_length(f"By length of the {name}, in characters", *lengths, note))
    shown: tuple[Block, ...] = tuple(block for block in blocks if block is not None)
    lead = "Lift is the share of the selection over the share of the pool: 1 is what a random draw gives on average."
    return Section(key="groups", title="Before and after", lead=lead, blocks=shown) if shown else None


def source_counts(found: Gathered) -> tuple[dict[str, int], dict[str, int]]:
    """Rows of each source in the pool and in the selection."""
    lines = found.choose.values["by_source"] if found.choose else {}
    pool, selected = ({name: int(line[key]) for name, line in lines.items()} for key in ("pool", "selected"))
    return pool, selected


def _whole(counts: Counter[str], rows: int) -> Counter[str]:
    """The counts, with the rows that have no value as a group of their own."""
    return counts + Counter({NO_GROUP: rows - counts.total()})


def _counts(table: pa.Table, column: str) -> dict[str, int]:
    return {str(one["values"]): one["counts"] for one in table[column].drop_null().value_counts().to_pylist()}


_TURNS = [*(str(n) for n in range(1, MOST_TURNS)), f"{MOST_TURNS} and more"]


def _turns(table: pa.Table) -> dict[str, int]:
    found: Counter[str] = Counter()
    for turns, count in ((one["values"], one["counts"]) for one in table[TURNS].value_counts().to_pylist()):
        found[_TURNS[min(turns, MOST_TURNS) - 1]] += count
    return dict(found)

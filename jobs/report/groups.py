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
    blocks: list[Bars | None] = [by_source(found)]
    for name, (before, after) in meta_groups(pool, picked).items():
        whole = (Counter({NO_GROUP: len(table)}) for table in (pool, picked))
        sides = [
            counts + (rest - Counter({NO_GROUP: counts.total()}))
            for counts, rest in zip((before, after), whole, strict=True)
        ]
        blocks.append(before_and_after(f"By {name}", *sides, note=note))
    blocks += [
        before_and_after(
            "By writing system", *(_counts(table, SCRIPT) for table in (pool, picked)), note="Of the answers."
        ),
        before_and_after("By turns", *(_turns(table) for table in (pool, picked)), order=_TURNS, note=note),
        by_length(
            "By length of the prompt, in characters", *(table[PROMPT].to_pylist() for table in (pool, picked)), note
        ),
        by_length(
            "By length of the answer, in characters", *(table[ANSWER].to_pylist() for table in (pool, picked)), note
        ),
    ]
    shown: tuple[Block, ...] = tuple(block for block in blocks if block is not None)
    lead = "Lift is the share of the selection over the share of the pool: 1 is what a random draw gives on average."
    return Section(key="groups", title="Before and after", lead=lead, blocks=shown) if shown else None


def by_source(found: Gathered) -> Bars | None:
    """Exact for every source: from the counts of the stages."""
    if found.choose is None:
        return None
    sides = source_counts(found)
    return before_and_after("By source", *sides)


def source_counts(found: Gathered) -> tuple[dict[str, int], dict[str, int]]:
    """Rows of each source in the pool and in the selection."""
    lines = found.choose.values["by_source"] if found.choose else {}
    return tuple({name: int(line[key]) for name, line in lines.items()} for key in ("pool", "selected"))  # type: ignore[return-value]


def _counts(table: pa.Table, column: str) -> dict[str, int]:
    return {str(one["values"]): one["counts"] for one in table[column].drop_null().value_counts().to_pylist()}


_TURNS = [*(str(n) for n in range(1, MOST_TURNS)), f"{MOST_TURNS} and more"]


def _turns(table: pa.Table) -> dict[str, int]:
    found: Counter[str] = Counter()
    for turns, count in ((one["values"], one["counts"]) for one in table[TURNS].value_counts().to_pylist()):
        found[_TURNS[min(turns, MOST_TURNS) - 1]] += count
    return dict(found)

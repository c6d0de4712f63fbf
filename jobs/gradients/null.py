"""The null of a run by gradient: plans its columns, holds the scores against it, and joins the result with the selection.

Whether a row stands above the null is known after `influence`, whatever the budget. What it means for the chosen rows is put
together from the tables where it is asked for (`found_null`), so another budget computes nothing again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysift.draws import seed_for, uniform_of
from raysift.gradients.influence import TargetColumns, weigh_checkpoints
from raysift.gradients.null import WHOLE, NullReduce, excess, stands_above, verdict, without_null
from raysift.gradients.null_columns import (
    NO_KIND,
    NO_ROWS,
    ROWS,
    SEED,
    SIGNS,
    SMALL_POOL,
    TOO_FEW,
    Kind,
    NullColumns,
    NullPlan,
    enough_pairs,
    plan_rows,
    replicates,
    split,
)
from raysift.jobs.runs.chosen_rows import chosen_chunks
from raysift.jobs.runs.run import Run
from raysift.jobs.runs.tables import read_ids
from raysift.manifest import Manifest
from raysift.methods.gradient import GradientSelector
from raysift.records import ABOVE_NULL, ID, MESSAGES, META, SCORE
from raysift.storage import Location
from raysift.topk import top_k

if TYPE_CHECKING:
    from raysift.gradients.preference import Targets

NULL, NULL_FILE, NULL_ROWS = "null", "null.json", "null_rows.parquet"
SPARE = 16  # rows drawn beyond those that are wanted, for those without a token that counts
OF_ROWS = pa.schema([("replicate", pa.int32()), (ID, pa.int64())])


# --- the targets stage -----------------------------------------------------------------------------------------------


def plan_null(
    run: Run,
    selector: GradientSelector,
    keys: Sequence[int],
    subtasks: Sequence[str],
    rows: Manifest,
) -> tuple[NullPlan | None, str]:
    """The null columns to compute for members of these content keys and subtasks, or why there are none."""
    counts = Counter(subtasks)
    columns = replicates(len(counts))
    if selector.null_kind == SIGNS:
        different = Counter(subtask for subtask, _ in set(zip(subtasks, keys, strict=True)))
        if not enough_pairs(list(different.values())):
            return None, TOO_FEW
        return NullPlan(SIGNS, columns, keys=tuple(keys)), ""
    if selector.null_kind == ROWS:
        planned = plan_rows(counts, columns, rows.counts["kept"])
        if planned is None:
            return None, SMALL_POOL
        sizes, most = planned
        drawn = _draw_rows(run.files(rows, "rows"), most + max(SPARE, most // 4))
        return NullPlan(ROWS, columns, candidates=drawn, sizes=sizes, most=most), ""
    return None, NO_KIND


def _draw_rows(files: Sequence[Location], count: int) -> tuple[dict[str, Any], ...]:
    """Rows of the pool in the order of a draw by id."""
    ids = read_ids(files)
    chosen, _ = top_k(ids, uniform_of(ids, seed_for(SEED, "null rows")), count)
    found: dict[int, dict[str, Any]] = {}
    known = pq.read_schema(files[0].path, filesystem=files[0].fs).names
    columns = [ID, MESSAGES, *([META] if META in known else [])]
    for chunk, places in chosen_chunks(files, chosen, columns):
        found.update(zip(places.tolist(), chunk.to_pylist(), strict=True))
    return tuple(found[place] for place in sorted(found))


def null_values(kind: Kind | None, plan: NullPlan | None, why: str, found: Sequence[Targets]) -> dict[str, Any]:
    """What the manifest of the targets tells of the null, from the targets at all checkpoints (see `NullColumns`)."""
    counts = Counter(member.subtask for member in found[0].members)
    members = [counts[name] for name in found[0].subtasks]
    if plan and plan.kind == SIGNS and not enough_pairs(members):
        why = TOO_FEW
    if any(target.empty_nulls for target in found):
        why = NO_ROWS
    return {"kind": kind or SIGNS, "columns": plan.columns if plan else 0, "why": why, "members": members}


def save_null_rows(place: Location, replicates_of: Sequence[Sequence[int]]) -> None:
    """Write which rows each replicate's targets are made of."""
    lines = [(number, row) for number, own in enumerate(replicates_of) for row in own]
    numbers, ids = zip(*lines, strict=True) if lines else ((), ())
    table = pa.table([pa.array(numbers, pa.int32()), pa.array(ids, pa.int64())], schema=OF_ROWS)
    with place.open_output() as stream:
        pq.write_table(table, stream, compression="zstd")


def null_rows(run: Run, target: Manifest, columns: int) -> list[np.ndarray]:
    """The rows of each replicate; nothing for a null of signs."""
    if NULL not in target.files:
        return []
    place = run.files(target, NULL)[0]
    table = pq.read_table(place.path, filesystem=place.fs)
    numbers, ids = table["replicate"].to_numpy(), table[ID].to_numpy()
    return [ids[numbers == number] for number in range(columns)]


# --- the influence stage ---------------------------------------------------------------------------------------------


def weigh(matches: np.ndarray, weights: np.ndarray, null: NullColumns) -> tuple[np.ndarray, np.ndarray]:
    """Weighed over checkpoints: real columns (rows, subtasks), and null ones (rows, subtasks, columns)."""
    return split(weigh_checkpoints(matches, weights), null.each)


def hold_against_null(
    chunks: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]],
    weights: np.ndarray,
    null: NullColumns,
    columns: TargetColumns,
    rule: str,
    members: Sequence[np.ndarray],
) -> dict[str, dict[str, Any]]:
    """How all scores of a run stand against its null (see `raysift.gradients.null.stand`), by subtask."""
    reduce = NullReduce(null, columns, rule, members)
    for ids, matches, _ in chunks:
        reduce.add(ids, *weigh(matches, weights, null))
    return reduce.result()


# --- joined with the selection ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PartNull:
    """How the chosen rows of a subtask stand against its null."""

    subtask: str
    pool: int
    """Rows of the pool whose score for the subtask stands above."""
    selected: int
    """Chosen rows that help this subtask most."""
    above: int | None
    """Of these, rows whose score for it stands above; None where its pairs are too few for a null."""
    excess: float | None


@dataclass(frozen=True)
class FoundNull:
    """What a run tells of noise."""

    sentence: str
    kind: str
    pool: int | None = None
    """Rows of the pool that stand above the null; None without a null."""
    rows: int = 0
    """Rows of the pool that have a score."""
    selected: int | None = None
    """Chosen rows; None before rows are chosen."""
    above: int | None = None
    excess: float | None = None
    """By how many spreads of the null the median chosen row lies above what the null has at its place."""
    parts: tuple[PartNull, ...] = ()
    whole: dict[str, Any] = field(default_factory=dict)
    """The numbers of `raysift.gradients.null.stand`."""


def found_null(run: Run) -> FoundNull | None:
    """How a run stands against its null; None for runs without a target by gradient, or before they have scores."""
    scores = run.manifest("influence")
    if scores is None:
        return None
    told = scores.values.get(NULL)
    if told is None or told["why"]:
        why = told["why"] if told else ""
        return FoundNull(without_null(why), told["kind"] if told else SIGNS)
    by_name = json.loads(run.files(scores, NULL)[0].read_text())
    whole = by_name[WHOLE]
    found = FoundNull("", told["kind"], whole["above"], whole["rows"], whole=whole)
    chosen = run.manifest("choose")
    if chosen is None:
        return replace(found, sentence=f"{whole['above']:,} of {whole['rows']:,} rows stand above the null")
    place = run.files(chosen, "selection")[0]
    table = pq.read_table(place.path, filesystem=place.fs, columns=[SCORE, "subtask", "by_subtask", ABOVE_NULL])
    selected, above = len(table), int(np.count_nonzero(table[ABOVE_NULL].fill_null(False).to_numpy()))
    return replace(
        found,
        sentence=verdict(told["kind"], selected, above),
        selected=selected,
        above=above,
        excess=excess(whole, table[SCORE].to_numpy()),
        parts=tuple(_parts(table, told["subtasks"], by_name)),
    )


def _parts(table: pa.Table, subtasks: Sequence[str], by_name: dict[str, dict[str, Any]]) -> Iterator[PartNull]:
    if len(subtasks) < 2:
        return
    best = np.asarray(table["subtask"].to_pylist(), dtype=object)
    scores = np.stack([np.asarray(row) for row in table["by_subtask"].to_pylist()])
    for number, name in enumerate(subtasks):
        own, found = scores[best == name, number], by_name.get(name) or {}
        above = int(stands_above(found, own).sum()) if found else None
        yield PartNull(name, found.get("above", 0), len(own), above, excess(found, own))

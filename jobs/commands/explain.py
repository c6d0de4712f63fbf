"""What a run knows about a row: its text and origin, score and rank, cosines by checkpoint and subtask, why it is in or out.

Works on any run; runs by gradient have more to tell. `explained.py` prints it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from raysift.actors.row_gradients import MATCHES
from raysift.errors import ConfigError, DataError
from raysift.jobs.commands.console import Console
from raysift.jobs.gradients.pulls import Pull, changed_targets, compute_pulls
from raysift.jobs.runs.run import Run, open_run
from raysift.jobs.runs.tables import read_chunks
from raysift.manifest import Manifest
from raysift.pool.given_input import conversation_of
from raysift.pool.id_text import id_ranges, id_text
from raysift.records import ERROR, FATE, FILE, ID, MESSAGES, META, ORDER, POSITION, RANK, RAW, REASON, SCORE, SOURCE
from raysift.scoring.embeddings import find_vectors
from raysift.settings.budget import parse_budget
from raysift.settings.config import CommonConfig, make_selector
from raysift.storage import Location

if TYPE_CHECKING:
    from raysift.jobs.policy.story import RowStory

SHOWN_IDS = 10
NEAREST_ROW = "nearest chosen row"
ANSWERING = ("match", "gradients", "necessity", "generate", "difficulty", "embed", "encode", "quality", "lengths")


@dataclass(frozen=True)
class Standing:
    """Where a row's score stands among all. `better` counts rows with a higher score, or an equal score and a smaller id."""

    score: float
    better: int
    worse: int
    scored: int

    @property
    def percentile(self) -> float:
        """Percentage of the other scored rows with a lower score."""
        return 100.0 * self.worse / max(1, self.scored - 1)


@dataclass(frozen=True)
class Explanation:
    """All that a run knows about one row; None for what it does not have."""

    id: int
    verdict: str
    source: str | None = None
    file: str | None = None
    position: int | None = None
    """Line of a JSONL file, or number of a record, from 1."""
    own_id: Any = None
    """The id that the record itself names."""
    rejections: list[str] = field(default_factory=list)
    standing: Standing | None = None
    rank: int | None = None
    own: dict[str, Any] = field(default_factory=dict)
    checkpoints: list[str] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    subtasks: list[str] = field(default_factory=list)
    subtask_weights: list[float] | None = None
    """The weight of each subtask's target, if there are several targets."""
    matches: list[list[float]] | None = None
    pulls: list[Pull] | None = None
    no_pulls: str | None = None
    """Why the pulls are missing although requested."""
    policy: RowStory | None = None
    """What only a run of RAISE knows."""
    messages: list[dict[str, str]] | None = None
    raw: str | None = None
    """The record of a rejected row."""


def explain(
    folder: str, row_id: int | str, *, pairs: bool = True, text: bool = False, console: Console | None = None
) -> Explanation:
    """Look up a row in all results of the run; with `pairs`, load the model if the run was by gradient.

    `row_id` is a number, as in the tables, or text: the first digits of an id as raysift shows it.
    """
    run = open_run(folder, console)
    config = run.config()
    rows = run.manifest("ingest")
    if rows is None:
        raise ConfigError(f"explain: {folder} has not finished ingest. Finish it with the command that began it.")
    row_id = find_id(run, rows, row_id)
    kept = find_row(run.files(rows, "rows"), row_id, [SOURCE, MESSAGES, META, FILE, POSITION])
    rejected = list(_rejected(run, rows, row_id))
    rejections = [_rejection(line) for line in rejected]
    if kept is None:
        first = rejected[0]
        place = {"source": first[SOURCE], "file": first[FILE], "position": first[POSITION]}
        raw = first[RAW] if text else None
        return Explanation(row_id, f"not in the pool: {rejections[0]}", rejections=rejections, raw=raw, **place)
    scores, chosen = run.manifest("influence", "score", "order"), run.manifest("choose")
    standing, own = _standing(run, scores, row_id) if scores else (None, {})
    if chosen and own.get(FATE) and own.get(ORDER) is None:
        own |= _nearest(run, row_id, chosen)
    rank, verdict = _verdict(run, config, row_id, standing, own, chosen, scored=scores is not None)
    found: dict[str, Any] = {"own": own, "standing": standing, "rank": rank, "rejections": rejections}
    if scores and scores.stage == "influence" and standing:
        found |= _matches(run, scores, row_id)
        if pairs and (changed := changed_targets(run, config)):
            found["no_pulls"] = f"{changed}; the pairs or examples that pull most are left out"
        elif pairs:
            found["pulls"] = compute_pulls(run, config, conversation_of(kept), scores)
    if run.manifest("final") and run.manifest("order"):
        from raysift.jobs.policy.story import row_story

        found["policy"] = row_story(run, row_id)
    found |= {"file": kept[FILE], "position": kept[POSITION], "own_id": json.loads(kept[META] or "{}").get(ID)}
    return Explanation(row_id, verdict, kept[SOURCE], messages=kept[MESSAGES] if text else None, **found)


def find_id(run: Run, rows: Manifest, wanted: int | str) -> int:
    """The id that a number or a text means, among the rows that ingest kept or rejected."""
    ranges = id_ranges(wanted) if isinstance(wanted, str) else [(wanted, wanted)]
    if not ranges:
        raise ConfigError(
            f"explain: '{wanted}' is no row id. Ids have up to 16 digits of 0-9 and a-f, as `raysift show` prints them; "
            "some of the first ones are enough."
        )
    found: set[int] = set()
    for kind in ("rows", "rejected"):
        for chunk in read_chunks(run.files(rows, kind), [ID]):
            ids = chunk[ID].drop_null()
            for low, high in ranges:
                within = pc.and_(pc.greater_equal(ids, low), pc.less_equal(ids, high))
                found.update(ids.filter(within).to_pylist())
    if not found:
        raise DataError(
            f"explain: no row of {run.name} has the id {wanted}, kept or rejected. `raysift show {run.name}` prints some; "
            "selection.parquet holds them as numbers."
        )
    if len(found) > 1:
        listed = ", ".join(id_text(one) for one in sorted(found)[:SHOWN_IDS])
        more = f" and {len(found) - SHOWN_IDS:,} more" if len(found) > SHOWN_IDS else ""
        raise ConfigError(f"explain: {len(found):,} rows have an id like '{wanted}': {listed}{more}. Give more digits.")
    return found.pop()


def find_row(files: Sequence[Location], row_id: int, columns: Sequence[str]) -> dict[str, Any] | None:
    """The line with this id in a stage's tables, or None."""
    for chunk in read_chunks(files, [ID, *columns]):
        where = np.flatnonzero(chunk[ID].to_numpy(zero_copy_only=False) == row_id)
        if len(where):
            line: dict[str, Any] = chunk.slice(int(where[0]), 1).to_pylist()[0]
            return line
    return None


def _rejected(run: Run, rows: Manifest, row_id: int) -> Iterator[dict[str, Any]]:
    """Rejected records with this id; a kept row may have rejected duplicates."""
    for chunk in read_chunks(run.files(rows, "rejected"), [ID, SOURCE, FILE, POSITION, REASON, "message", RAW]):
        yield from chunk.filter(pc.equal(chunk[ID], row_id)).to_pylist()


def _rejection(line: dict[str, Any]) -> str:
    more = f" ({line['message']})" if line["message"] else ""
    return f"{line[REASON]}: {line[FILE]}, record {line[POSITION]}{more}"


def _standing(run: Run, scores: Manifest, row_id: int) -> tuple[Standing | None, dict[str, Any]]:
    """The row's place among all scored rows, and its values in the method's own columns."""
    files = run.files(scores, "scores")
    line = find_row(files, row_id, _columns(files))
    if line is None:
        return None, {}
    own = {name: value for name, value in line.items() if name not in (ID, SCORE)}
    if line[SCORE] is None:
        return None, own
    better = worse = scored = 0
    for chunk in read_chunks(files, [ID, SCORE]):
        good = chunk.filter(chunk[SCORE].is_valid())
        ids, values = good[ID].to_numpy(), good[SCORE].to_numpy()
        ahead = (values > line[SCORE]) | ((values == line[SCORE]) & (ids < row_id))
        better, scored = better + int(ahead.sum()), scored + len(good)
        worse += int((values < line[SCORE]).sum())
    return Standing(line[SCORE], better, worse, scored), own


def _columns(files: Sequence[Location]) -> list[str]:
    import pyarrow.parquet as pq

    return [name for name in pq.read_schema(files[0].path, filesystem=files[0].fs).names if name != ID]


def _verdict(
    run: Run,
    config: CommonConfig,
    row_id: int,
    standing: Standing | None,
    own: dict[str, Any],
    chosen: Manifest | None,
    scored: bool,
) -> tuple[int | None, str]:
    """The rank if the row was selected, and one sentence on why it was or was not selected."""
    if own.get(FATE) and own.get(ORDER) is None:
        failure = _failure(run, row_id)
        return None, f"not selected: {own[FATE]}" + (f" ({failure})" if failure else "")
    if standing is None:
        why = f"not selected: no score: {_failure(run, row_id) or 'no stage tells why'}"
        return None, why if scored else "kept; the run has no scores yet"
    if chosen and own.get(ORDER) and own[ORDER] > chosen.counts["kept"]:
        taken = f"a budget of {config.budget} took the first {chosen.counts['kept']:,}"
        return None, f"not selected: {own.get(FATE) or 'ranked'} as number {own[ORDER]:,}; {taken}"
    in_turn = make_selector(config).picks_in_turn
    place = f"rank {standing.better + 1:,} of {standing.scored:,} by score"
    if in_turn:
        place += ", that of its best subtask"
    if chosen is None:
        return None, f"{place}; the run has not chosen yet"
    files = run.files(chosen, "selection")
    count = chosen.counts["kept"]
    if line := find_row(files, row_id, [RANK]):
        return line[RANK], f"selected as number {line[RANK]:,} of {count:,}; {own.get(FATE) or place}"
    taken = f"a budget of {config.budget} took {count:,} rows"
    if in_turn:
        return None, f"not selected: {place}; {taken}, which the subtasks picked in turn, and none had come to this one"
    if parse_budget(config.budget).counts_tokens and (failure := _failure(run, row_id, ("lengths",))):
        return None, f"not selected: {place}; a budget in tokens cannot take it: {failure}"
    last = min(float(np.min(chunk[SCORE].to_numpy())) for chunk in read_chunks(files, [SCORE]))
    own_score = f"this row has {standing.score:.6g}"
    if standing.score == last:
        own_score = "this row has the same, and of equal scores the smaller id comes first"
    return None, f"not selected: {place}; {taken}, the lowest of them with score {last:.6g}, {own_score}"


def _failure(run: Run, row_id: int, stages: Sequence[str] = ANSWERING) -> str | None:
    """The first error that a stage recorded for this row, or None."""
    for name in stages:
        manifest = run.manifest(name)
        line = find_row(run.files(manifest, "answers"), row_id, [ERROR]) if manifest else None
        if line and line[ERROR]:
            return f"{name}: {line[ERROR]}"
    return None


def _nearest(run: Run, row_id: int, chosen: Manifest) -> dict[str, Any]:
    """The nearest chosen row and its distance, if the run has embedded both."""
    embedded = run.manifest("embed")
    if embedded is None:
        return {}
    files = run.files(embedded, "answers")
    ids = np.concatenate([chunk[ID].to_numpy() for chunk in read_chunks(run.files(chosen, "selection"), [ID])])
    try:
        _, own = find_vectors(files, [row_id])
    except DataError:  # an earlier stage set this row aside before the embedding
        return {}
    _, vectors = find_vectors(files, ids)
    away = np.linalg.norm(vectors.astype(np.float64) - own.astype(np.float64), axis=1)
    best = int(np.lexsort((ids, away))[0])
    return {NEAREST_ROW: id_text(int(ids[best])), "distance": float(away[best])}


def _matches(run: Run, scores: Manifest, row_id: int) -> dict[str, Any]:
    """Cosines per checkpoint and subtask, with the weights of checkpoints and targets."""
    matched, target = run.manifest("match", "gradients"), run.manifest("targets")
    if matched is None or target is None:
        return {}
    line = find_row(run.files(matched, "answers"), row_id, [MATCHES])
    by_target = scores.values.get("target_weights", [])
    return {
        "matches": line[MATCHES] if line else None,
        "checkpoints": scores.values["checkpoints"],
        "weights": scores.values["checkpoint_weights"],
        "subtasks": target.values["subtasks"],
        "subtask_weights": [by_target[of] for of in target.values["target_of"]] if len(by_target) > 1 else None,
    }

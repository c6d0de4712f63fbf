"""`raysift.explain`: puts together what a run knows about a row, whatever its method. `commands/explained.py` prints it."""

from __future__ import annotations

import json
from dataclasses import replace
from os import PathLike, fspath
from typing import Any

from raysift.config import make_selector
from raysift.errors import ConfigError
from raysift.jobs.explaining.changes import changes_of
from raysift.jobs.explaining.facts import Facts, matches_at, rank_of, scores_of, standing_of, verdict_of
from raysift.jobs.explaining.figures import figures_of
from raysift.jobs.explaining.finding import copies_of, failure_of, find_id, find_row, rejected_lines
from raysift.jobs.explaining.nearest import nearest_chosen
from raysift.jobs.explaining.record import Explanation
from raysift.jobs.explaining.rejected import keeping, rejection, verdict_on
from raysift.jobs.gradients.pulls import changed_targets, compute_pulls, pulls_by_example
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.run import Run, open_run
from raysift.manifest import Manifest
from raysift.methods.rds import Rds
from raysift.pool.given_input import conversation_of
from raysift.records import FATE, FILE, ID, MESSAGES, META, ORDER, POSITION, RAW, SOURCE


def explain(
    run: str | PathLike[str] | Any,
    row_id: int | str,
    *,
    pairs: bool = True,
    text: bool = True,
    console: Console | None = None,
) -> Explanation:
    """Why a row of a run's pool was taken or not: of any row that was read, also of those that were rejected.

    `run` is a run folder, or an object that has one: a run or a selection. `row_id` is a number, as in the tables, or
    text: the first digits of an id as raysift shows it. With `pairs`, the model is loaded if the run was by gradient, to
    tell which records of the target pull the row; without `text`, no text of rows and targets is in the result.
    """
    opened = open_any(run, console)
    rows = opened.manifest("ingest")
    if rows is None:
        raise ConfigError(f"explain: {opened.name} has not finished ingest. Finish it with the command that began it.")
    found_id = find_id(opened, rows, row_id)
    kept = find_row(opened.files(rows, "rows"), found_id, [SOURCE, MESSAGES, META, FILE, POSITION])
    rejected = list(rejected_lines(opened, rows, found_id))
    if kept is None:
        return _of_rejected(opened, rows, found_id, rejected, text)
    found = _of_kept(opened, rows, found_id, kept, rejected, pairs, text)
    return found if text else without_text(found)


def open_any(run: Any, console: Console | None = None) -> Run:
    """The run of a folder, or of an object that has one as `run` or `folder`."""
    if isinstance(run, str | PathLike):
        return open_run(fspath(run), console)
    inner = getattr(run, "run", run)
    if isinstance(inner, Run):
        return inner
    folder = getattr(inner, "folder", None)
    if folder is None:
        raise ConfigError(f"explain: found a {type(run).__name__}, expected a run folder, a run or a selection.")
    return open_run(str(folder), console)


def without_text(found: Explanation) -> Explanation:
    """The explanation without any text of rows and targets."""
    pulls = [replace(pull, text="", answer="", rejected=None) for pull in found.pulls] if found.pulls else found.pulls
    nearest = replace(found.nearest, messages=None) if found.nearest else None
    return replace(found, messages=None, raw=None, pulls=pulls, nearest=nearest)


def _of_rejected(run: Run, rows: Manifest, row_id: int, rejected: list[dict[str, Any]], text: bool) -> Explanation:
    first = rejected[0]
    changes, none = keeping(run, rows, run.config().ingest, first) if run.made_with() else ([], None)
    return Explanation(
        row_id,
        verdict_on(first),
        changes=changes,
        no_change=none,
        copies=copies_of(None, rejected),
        rejections=[rejection(line) for line in rejected],
        raw=first[RAW] if text else None,
        source=first[SOURCE],
        file=first[FILE],
        position=first[POSITION],
    )


def _of_kept(
    run: Run,
    rows: Manifest,
    row_id: int,
    kept: dict[str, Any],
    rejected: list[dict[str, Any]],
    pairs: bool,
    text: bool,
) -> Explanation:
    told: dict[str, Any] = {
        "copies": copies_of(kept, rejected),
        "messages": kept[MESSAGES],
        "source": kept[SOURCE],
        "file": kept[FILE],
        "position": kept[POSITION],
        "own_id": json.loads(kept[META] or "{}").get(ID),
        "rejections": [rejection(line) for line in rejected],
    }
    scores = scores_of(run)
    if scores is None:
        return Explanation(row_id, "kept when the pool was read; the run has no scores yet", **told)
    facts = gather(run, rows, scores, row_id, text)
    if facts.standing and facts.own.get("by_subtask"):
        told |= _pulls(facts, kept, pairs)
    found = changes_of(facts)
    return Explanation(
        row_id,
        verdict_of(facts),
        reasons=figures_of(facts),
        nearest=facts.nearest,
        changes=found.changes,
        no_change=found.none,
        rank=facts.rank,
        standing=facts.standing,
        own=facts.own,
        policy=facts.policy,
        **facts.matches,
        **told,
    )


def gather(run: Run, rows: Manifest, scores: Manifest, row_id: int, text: bool) -> Facts:
    """All numbers that the run's tables hold on one scored row."""
    config, chosen = run.config(), run.manifest("choose")
    selector = make_selector(config)
    standing, own = standing_of(run, scores, row_id)
    rank = rank_of(run, chosen, row_id)
    nearest = None
    if chosen:
        metric = getattr(getattr(selector.config, "centers", None), "metric", "euclidean")
        nearest = nearest_chosen(run, rows, row_id, chosen, metric, text)
    is_lost = standing is None or (own.get(FATE) and own.get(ORDER) is None)
    policy = None
    if run.manifest("final") and run.manifest("order"):
        from raysift.jobs.policy.story import row_story

        policy = row_story(run, row_id)
    return Facts(
        run,
        config,
        selector,
        row_id,
        rows,
        scores,
        chosen,
        standing=standing,
        own=own,
        rank=rank,
        failure=failure_of(run, row_id) if is_lost else None,
        nearest=nearest,
        matches=matches_at(run, scores, row_id) if standing else {},
        policy=policy,
    )


def _pulls(facts: Facts, kept: dict[str, Any], pairs: bool) -> dict[str, Any]:
    if not pairs:
        return {}
    if changed := changed_targets(facts.run, facts.config):
        return {"no_pulls": f"{changed}; the pairs or examples that pull most are left out"}
    if isinstance(facts.selector, Rds):
        return {"pulls": pulls_by_example(facts.config, facts.own["by_subtask"])}
    assert facts.scores
    return {"pulls": compute_pulls(facts.run, facts.config, conversation_of(kept), facts.scores)}

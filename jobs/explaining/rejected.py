"""Rows that were not kept when the pool was read: why, and which setting of `ingest` would have kept them.

A setting is told only if the record, read again with it, gives a row that is not in the pool already.
"""

from __future__ import annotations

import json
from typing import Any

from raysift.errors import RaysiftError
from raysift.jobs.explaining.finding import find_row
from raysift.jobs.runs.run import Run
from raysift.manifest import Manifest
from raysift.pool.checks import REASONS, IngestConfig
from raysift.pool.files import SourceFile
from raysift.pool.formats import LAYOUTS
from raysift.pool.normalise import Normaliser
from raysift.pool.reading import TextBatch
from raysift.reasons.changes import Change
from raysift.records import FILE, ID, MESSAGES, POSITION, RAW, REASON

REPORT = "ingest.json"
NO_SETTING = "No setting keeps it: the record itself would have to change."


def rejection(line: dict[str, Any]) -> str:
    """The reason of a rejected record and its place."""
    more = f" ({line['message']})" if line["message"] else ""
    return f"{line[REASON]}: {line[FILE]}, record {line[POSITION]}{more}"


def verdict_on(line: dict[str, Any]) -> str:
    """Why a record did not become a row, in one sentence."""
    told, more = REASONS.get(line[REASON], ""), line["message"] or ""
    told = f"{told[:1].lower()}{told[1:]}"
    return f"not in the pool ({line[REASON]}): " + (f"{told} ({more})" if told and more else told or more)


def keeping(run: Run, rows: Manifest, config: IngestConfig, line: dict[str, Any]) -> tuple[list[Change], str | None]:
    """The setting that would have kept a rejected record, or why none is told."""
    settings: dict[str, dict[str, Any]] = {
        "too_short": {"min_response_chars": 0},
        "too_long": {"max_chars": None},
        "empty_response": {"allow_empty_response": True},
        "ends_with_user": {"trailing_user": "trim"},
    }
    again = settings.get(line[REASON])
    if again is None:
        return [], NO_SETTING
    row = _read(rows, config, config.model_copy(update=again), line)
    if row is None:
        return [], "No single setting keeps it: another reason speaks against it, too."
    if find_row(run.files(rows, "rows"), row[ID], []):
        return [], "No setting keeps it: without this reason it would be a duplicate of a kept row."
    lengths = [len(message["content"]) for message in row[MESSAGES]]
    exact = {
        "too_short": f"min_response_chars={lengths[-1]}",
        "too_long": f"max_chars={sum(lengths)}",
        "empty_response": "allow_empty_response=true",
        "ends_with_user": "trailing_user=trim",
    }
    setting = f"ingest.{exact[line[REASON]]}"
    return [Change(f"{setting} would have kept it; a score decides then.", (setting,))], None


def _read(rows: Manifest, config: IngestConfig, again: IngestConfig, line: dict[str, Any]) -> dict[str, Any] | None:
    """The row that the record gives under the settings `again` and not under its own; None if it gives none."""
    place = rows.home / rows.fingerprint / REPORT
    layouts = json.loads(place.read_text())["layouts"] if place.exists() else {}
    layout = LAYOUTS.get(layouts.get(line[FILE], ""))
    if layout is None or line[RAW] is None:
        return None
    file = SourceFile(place, line[FILE], line[FILE], 0, 0)
    batch = TextBatch([line[RAW].encode()], [0], 1)
    try:
        before, after = (Normaliser(file, layout, one)(batch).rows.to_pylist() for one in (config, again))
    except RaysiftError:
        return None
    known = {row[ID] for row in before}
    return next((row for row in after if row[ID] not in known), None)

"""The rows of a report: a few of each kind, each with its text and a sentence on what became of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysift.jobs.report.gather import BY_REASON, Gathered
from raysift.jobs.report.scored import is_in, shown_columns
from raysift.jobs.runs.tables import read_chunks
from raysift.pool.checks import REASONS
from raysift.pool.id_text import id_text
from raysift.records import (
    ERROR,
    FATE,
    FILE,
    ID,
    MESSAGES,
    META,
    ORDER,
    POSITION,
    RANK,
    RAW,
    REASON,
    SCORE,
    SOURCE,
)
from raysift.report.blocks import ROW_ITEMS, TEXT_CHARACTERS, Message, Other, Row, Rows, Section, cut
from raysift.report.words import fate_of, tidy
from raysift.storage import Location

MOST_MESSAGES, ROW_CHARACTERS = 12, 6_000
TEXT_BYTES = 4_000_000
"""Most bytes of all texts together, as JSON; beyond them all texts are cut shorter."""
LEAST_CHARACTERS = 100
OWN_ANSWER = "answer"
MEANINGS = {
    "chosen": "in the selection",
    "top": "the first rows of the selection",
    "just in": "the last rows that were taken",
    "just out": "the next rows, which were not taken",
    "bottom": "the lowest scores that were not taken",
    "random": "drawn by id from the whole pool",
    "tied at the cut": "not taken, with the very score of the last row taken",
    "same text": "selected rows that differ in case, spaces and punctuation alone",
    "same question": "selected rows that ask the same",
    "asked in the target": "selected rows that ask what the target asks",
    "asked in the test set": "selected rows that ask what the test set asks",
}


def rows_section(found: Gathered) -> Section | None:
    """Examples of every kind of row."""
    rejected = list(_rejected(found))[:ROW_ITEMS]
    texts = found.pool  # reading the pool also draws the random rows
    items = [*list(kept_rows(found, found.chips, texts.lines))[: ROW_ITEMS - len(rejected)], *rejected]
    if not items:
        return None
    names = {chip for item in items for chip in item.chips}
    chips = {name: meaning for name, meaning in MEANINGS.items() if name in names}
    chips |= {name: _meaning(name) for name in sorted(names - chips.keys())}
    block = Rows(items=tuple(fit(items)), chips=chips)
    lead = f"{len(items):,} rows, a few of each kind. Click a chip to see one kind."
    return Section(key="rows", title="Rows", lead=lead, blocks=(block,))


def _meaning(chip: str) -> str:
    kind, _, what = chip.partition(": ")
    meanings = {"rejected": REASONS.get(what, what), "failed": f"failed in {what}", "cut": f"cut by {what}"}
    return meanings.get(kind, chip)


def kept_rows(
    found: Gathered, chips: Mapping[int, Sequence[str]], texts: Mapping[int, Mapping[str, Any]] | None = None
) -> Iterator[Row]:
    """Rows of the pool with these chips, the selected ones first; without `texts`, the pool is read for them."""
    ids = np.array(sorted(chips), np.int64)
    if texts is None and found.ingest is not None:
        texts = _lines(found.run.files(found.ingest, "rows"), [ID, SOURCE, MESSAGES, META, FILE, POSITION], ids)
    scored = _score_lines(found, ids)
    table = found.selection.filter(pa.array(np.isin(found.ids, ids)))
    ranks = dict(zip(table[ID].to_pylist(), table[RANK].to_pylist(), strict=True))
    failures: dict[int, str] = {}
    for stage, lines in found.failures.items():
        for line in lines:
            failures.setdefault(line[ID], f"{stage}: {line[ERROR]}")
    own = _own_answers(found, ids)
    last = len(found.ids)
    for row_id in sorted(chips, key=lambda row_id: (ranks.get(row_id, last + 1), row_id)):
        text, line = (texts or {}).get(row_id), scored.get(row_id, {})
        if text is None:  # of another pool, or gone
            continue
        rank = ranks.get(row_id)
        yield Row(
            id=id_text(row_id),
            chips=("chosen",) * (rank is not None) + tuple(chips[row_id]),
            verdict=fate_of(
                rank=rank,
                count=last if found.choose else None,
                score=line.get(SCORE),
                has_scores=found.scores is not None,
                cut=found.scored.cut if found.scored else None,
                order=line.get(ORDER),
                fate=line.get(FATE),
                failure=failures.get(row_id),
            ),
            source=text[SOURCE],
            file=text[FILE],
            position=text[POSITION],
            own_id=_own_id(text[META]),
            rank=rank,
            score=line.get(SCORE),
            figures=tidy({k: v for k, v in line.items() if k not in (ID, SCORE, ORDER, FATE)}),
            messages=shortened(text[MESSAGES]) if found.with_text else None,
            other=tuple(
                Other(title="the model's own answer", text=cut(answer) if found.with_text else None)
                for answer in own.get(row_id, [])
            ),
        )


def _score_lines(found: Gathered, ids: np.ndarray) -> dict[int, dict[str, Any]]:
    if found.scores is None:
        return {}
    files = found.run.files(found.scores, "scores")
    return _lines(files, shown_columns(files), ids)


def _lines(files: Sequence[Location], columns: Sequence[str], ids: np.ndarray) -> dict[int, dict[str, Any]]:
    """Lines of these rows, by id."""
    lines: dict[int, dict[str, Any]] = {}
    for chunk in read_chunks(files, columns):
        there = chunk.filter(pa.array(is_in(chunk[ID].to_numpy(), ids)))
        lines |= {line[ID]: line for line in there.to_pylist()}
    return lines


def _own_answers(found: Gathered, ids: np.ndarray) -> dict[int, list[str]]:
    """What the tuned model answered itself, where a stage let it answer the rows."""
    stage = found.stage("generate")
    if stage is None:
        return {}
    files = found.run.files(stage, "answers")
    if not files or OWN_ANSWER not in pq.read_schema(files[0].path, filesystem=files[0].fs).names:
        return {}
    lines = _lines(files, [ID, OWN_ANSWER], ids)
    return {row_id: [line[OWN_ANSWER]] for row_id, line in lines.items() if line[OWN_ANSWER]}


def _rejected(found: Gathered) -> Iterator[Row]:
    """The first rows of each reason, in the order of the pool."""
    if found.ingest is None:
        return
    shown: dict[str, int] = {}
    columns = [ID, SOURCE, FILE, POSITION, REASON, "message", RAW]
    for chunk in read_chunks(found.run.files(found.ingest, "rejected"), columns):
        reasons = chunk[REASON].to_pylist()
        for place, reason in enumerate(reasons):
            if shown.get(reason, 0) < BY_REASON:
                shown[reason] = shown.get(reason, 0) + 1
                yield _rejected_row(chunk.slice(place, 1).to_pylist()[0], found.with_text)


def _rejected_row(line: Mapping[str, Any], with_text: bool) -> Row:
    more = f" ({line['message']})" if line["message"] else ""
    return Row(
        id=id_text(line[ID]) if line[ID] is not None else f"{line[FILE]}:{line[POSITION]}",
        chips=(f"rejected: {line[REASON]}",),
        verdict=f"Not in the pool: {REASONS.get(line[REASON], line[REASON])}{more}",
        source=line[SOURCE],
        file=line[FILE],
        position=line[POSITION],
        raw=cut(line[RAW]) if with_text and line[RAW] is not None else None,
    )


def _own_id(meta: str | None) -> str | None:
    known = json.loads(meta) if meta else {}
    value = known.get(ID) if isinstance(known, dict) else None
    return cut(value if isinstance(value, str) else json.dumps(value), 100) if value is not None else None


def shortened(messages: Sequence[Mapping[str, str]]) -> tuple[Message, ...]:
    """A conversation that fits a page: the first and the last messages, each cut, at most ROW_CHARACTERS in all."""
    shown = [Message(role=one["role"], content=one["content"]) for one in messages]
    if len(shown) > MOST_MESSAGES:
        half = MOST_MESSAGES // 2
        gap = Message(role="…", content=f"{len(shown) - 2 * half:,} more messages")
        shown = [*shown[:half], gap, *shown[-half:]]
    total = sum(min(len(one.content), TEXT_CHARACTERS) for one in shown)
    each = TEXT_CHARACTERS if total <= ROW_CHARACTERS else ROW_CHARACTERS // len(shown)
    return tuple(Message(role=one.role, content=cut(one.content, each)) for one in shown)


def fit(items: Sequence[Row], most: int = TEXT_BYTES) -> list[Row]:
    """The rows, with all texts cut shorter and shorter until they fit into so many bytes."""
    characters, shown = ROW_CHARACTERS, list(items)
    while _text_bytes(shown) > most and characters > LEAST_CHARACTERS:
        characters //= 2
        shown = [
            dataclasses.replace(
                one,
                messages=one.messages
                and tuple(Message(role=m.role, content=_cut_again(m.content, characters)) for m in one.messages),
                raw=one.raw and _cut_again(one.raw, characters),
                other=tuple(Other(title=o.title, text=o.text and _cut_again(o.text, characters)) for o in one.other),
            )
            for one in items
        ]
    return shown


def _cut_again(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[:characters] + "…"


def _text_bytes(items: Sequence[Row]) -> int:
    texts = [text for one in items for text in (*(m.content for m in one.messages or ()), one.raw or "")]
    texts += [other.text or "" for one in items for other in one.other]
    return sum(len(json.dumps(text, ensure_ascii=False).encode("utf-8", "replace")) for text in texts)

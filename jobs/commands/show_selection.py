"""What a selection looks like: its groups with lift, its scores, and rows with their text, escaped and shortened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysift.draws import seed_for, uniform_of
from raysift.evaluation.lift import Lift, lifts
from raysift.jobs.runs.chosen_rows import chosen_chunks
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.labels import labels_of
from raysift.jobs.runs.run import Run
from raysift.jobs.runs.selection import SELECTED
from raysift.jobs.runs.tables import read_chunks
from raysift.manifest import Manifest
from raysift.methods import METHODS
from raysift.pool.id_text import short_id
from raysift.records import ID, MESSAGES, RANK, SCORE
from raysift.scoring.thresholds import histogram
from raysift.storage import Location

TOP_ROWS, SHOWN_TEXTS, SHOWN_GROUPS = 5, 3, 24
BAR_WIDTH = 40
ASKED_CHARS, ANSWER_CHARS = 60, 40
NO_GROUP = "(none)"


def show_selection(run: Run, manifest: Manifest, console: Console, whole: bool = False, by: str | None = None) -> None:
    """Print the groups of a selection, its first and last rows with their text, and where it lies.

    `whole` adds what needs a pass over the pool: rows left out, scores, and the groups of the column `by`.
    """
    counts, sources = manifest.counts, manifest.values["by_source"]
    console.table(
        f"Selected {counts['kept']:,} of {counts['rows_in']:,} rows",
        *_groups("source", *(Counter({s: line[key] for s, line in sources.items()}) for key in ("pool", "selected"))),
    )
    for name, share in manifest.values.get("toys", {}).items():
        from raysift.jobs.runs.toys import tell_toy

        console.warn(tell_toy(name, share))
    if asked := counts.get("tokens_asked"):
        console.note(f"tokens: {counts['tokens']:,} selected, {asked:,} asked for")
    show_null(run, console, whole)
    place = run.files(manifest, "selection")[0]
    chosen = pq.read_table(place.path, filesystem=place.fs)
    ingested = run.manifest("ingest") if whole else None
    scores = next((one for one in run.manifests() if "scores" in one.files), None) if whole else None
    if by and ingested:
        _show_by(run, ingested, chosen, by, console)
    scored = _scores_of(run, scores) if scores else None
    if scored is not None:
        _show_scores(scored, chosen, console)
    _show_rows(run, manifest, ingested, chosen, scored, console)
    if whole:
        show_columns(run, chosen, console)
    written = run.files(manifest, "selected")[0]
    console.note(f"selected rows: {run.folder / SELECTED / written.name}")
    if not whole:
        console.note(
            f"more of it: raysift show {run.folder}; why a row: raysift explain {run.folder} {short_id(chosen[ID][0].as_py())}"
        )


def show_null(run: Run, console: Console, whole: bool) -> None:
    """Print whether the selection stands above noise; `whole` adds the subtasks."""
    from raysift.jobs.gradients.null import found_null

    found = found_null(run)
    if found is None:
        return
    far = "" if found.excess is None else f" (the median selected row: {found.excess:.1f} spreads of the null above it)"
    console.note(f"null: {found.sentence}{far}")
    if whole and found.parts:
        heads = ["subtask", "rows of the pool above", "selected", "of these above", "spreads above"]
        rows = [
            [p.subtask, p.pool, p.selected, p.above, None if p.excess is None else round(p.excess, 1)]
            for p in found.parts
        ]
        console.table("Against the null", heads, rows)


def _groups(name: str, pool: Counter[str], selected: Counter[str]) -> tuple[list[str], list[list[Any]]]:
    lines = lifts(pool, selected, SHOWN_GROUPS)
    return [name, "pool", "selected", "lift", "95 %", ""], [_line(line) for line in lines]


def _line(one: Lift) -> list[Any]:
    told = "" if one.is_chance else "more than by chance" if one.lift > 1 else "less than by chance"
    return [one.group, one.pool, one.selected, round(one.lift, 2), f"{one.low:.2f} to {one.high:.2f}", told]


def _show_by(run: Run, rows: Manifest, chosen: pa.Table, by: str, console: Console) -> None:
    ids, values = labels_of(run, rows, by)
    names = np.array([NO_GROUP if value is None else value for value in values.to_pylist()], dtype=object)
    taken = np.isin(ids, chosen[ID].to_numpy())
    console.table(f"Selected by {by}", *_groups(by, Counter(names.tolist()), Counter(names[taken].tolist())))


def _scores_of(run: Run, scores: Manifest) -> pa.Table:
    """Id and score of the rows that have one."""
    chunks = list(read_chunks(run.files(scores, "scores"), [ID, SCORE]))
    table = pa.concat_tables(chunks)
    return table.filter(table[SCORE].is_valid())


def _show_scores(scored: pa.Table, chosen: pa.Table, console: Console) -> None:
    """Print a histogram of all scores, in which `#` stands for rows taken; nothing if only rows taken have a score."""
    taken = np.isin(scored[ID].to_numpy(), chosen[ID].to_numpy())
    values = scored[SCORE].to_numpy()
    if taken.all():
        return
    bins = histogram(values)
    edges = np.array([*(one.low for one in bins), bins[-1].high])
    selected = np.histogram(values[taken], bins=edges)[0] if len(bins) > 1 else [int(taken.sum())]
    most = max(one.count for one in bins)
    rows = []
    for one, own in zip(bins, selected, strict=True):
        wide, solid = (-(-count * BAR_WIDTH // most) for count in (one.count, int(own)))
        rows.append([f"{one.low:.3g} to {one.high:.3g}", one.count, int(own), "#" * solid + "." * (wide - solid)])
    console.table("Scores of all rows (# selected)", ["score", "rows", "selected", ""], rows)


def _show_rows(
    run: Run, manifest: Manifest, pool: Manifest | None, chosen: pa.Table, scored: pa.Table | None, console: Console
) -> None:
    """Print the first rows taken, those at the border, and the last ones of the pool, with their text."""
    taken = [("first", chosen.slice(0, SHOWN_TEXTS))]
    taken += [("last taken", chosen.slice(max(SHOWN_TEXTS, len(chosen) - SHOWN_TEXTS)))]
    lines = _with_texts(taken, run.files(manifest, "rows"))
    if pool and scored is not None:
        lines += _with_texts(_left_out(chosen, scored), run.files(pool, "rows"))
    console.table("Rows", ["which", "id", "score", "text"], lines)


def _with_texts(parts: Sequence[tuple[str, pa.Table]], files: Sequence[Location]) -> list[list[Any]]:
    """Lines of the table of rows, in one pass over the files."""
    found = [(name, row[ID], row[SCORE]) for name, rows in parts for row in rows.select([ID, SCORE]).to_pylist()]
    texts = {
        row[ID]: _short_exchange(row[MESSAGES])
        for chunk, _ in chosen_chunks(files, np.array([row_id for _, row_id, _ in found], np.int64), [ID, MESSAGES])
        for row in chunk.to_pylist()
    }
    return [[name, short_id(row_id), score, texts[row_id]] for name, row_id, score in found]


def _left_out(chosen: pa.Table, scored: pa.Table) -> list[tuple[str, pa.Table]]:
    """Rows not taken: the best and the worst by score, or a draw where the selection does not follow the scores."""
    rest = scored.filter(pa.array(~np.isin(scored[ID].to_numpy(), chosen[ID].to_numpy())))
    if not len(rest):
        return []
    ids, scores = rest[ID].to_numpy(), rest[SCORE].to_numpy()
    if scores.max() > np.min(chosen[SCORE].to_numpy()):
        drawn = np.argsort(uniform_of(ids, seed_for(0, "shown")), kind="stable")[:SHOWN_TEXTS]
        return [("not taken", rest.take(pa.array(drawn)))]
    order = np.lexsort((ids, -scores))
    return [
        ("next, not taken", rest.take(pa.array(order[:SHOWN_TEXTS]))),
        ("last of all", rest.take(pa.array(order[max(SHOWN_TEXTS, len(order) - SHOWN_TEXTS) :]))),
    ]


def show_columns(run: Run, chosen: pa.Table, console: Console) -> None:
    """Print the first ranks with the method's own columns, and what these mean."""
    told = [name for name in chosen.column_names if not pa.types.is_nested(chosen.schema.field(name).type)]
    # Skip a method's own column that repeats the rank or the score; space is short.
    again = [name for name in told if name not in (RANK, SCORE) and _repeats(chosen, name)]
    first = chosen.slice(0, TOP_ROWS).select([name for name in told if name not in again])
    rows = [[short_id(value) if name == ID else value for name, value in row.items()] for row in first.to_pylist()]
    console.table("First ranks", first.column_names, rows)
    method = METHODS.get(str((run.made_with() or {}).get("method")))
    if method and method.reading:
        console.note(method.reading)


def _repeats(chosen: pa.Table, name: str) -> bool:
    def numbers(column: str) -> pa.ChunkedArray:
        return chosen[column].cast(pa.float64(), safe=False)  # ids use all 64 bits

    if not (pa.types.is_integer(chosen[name].type) or pa.types.is_floating(chosen[name].type)):
        return False
    return any(numbers(name).equals(numbers(other)) for other in (RANK, SCORE))


def _short_exchange(messages: Sequence[dict[str, str]]) -> str:
    """The last question and its answer, each on one line and shortened."""
    answer = messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""
    asked = next((m["content"] for m in reversed(messages) if m["role"] != "assistant"), "")
    return (
        f"{shorten(asked, ASKED_CHARS)} -> {shorten(answer, ANSWER_CHARS)}" if answer else shorten(asked, ASKED_CHARS)
    )


def shorten(text: str, most: int) -> str:
    """The text on one line, at most so many characters of it."""
    line = " ".join(text[: 10 * most].split())
    return line if len(line) <= most else line[: most - 3] + "..."

"""Several runs in one report: the settings and rows in which they differ, and their sections side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from raysift.evaluation.comparison import overlap, rank_correlation
from raysift.jobs.report.alerts import alerts_section
from raysift.jobs.report.cost import defaults_of, flat_settings, told
from raysift.jobs.report.features import ANSWER, first_by_chance
from raysift.jobs.report.gather import Gathered
from raysift.jobs.report.groups import source_counts
from raysift.jobs.report.rows import MEANINGS, fit, kept_rows
from raysift.jobs.report.training import TASK_COLUMNS, task_line
from raysift.jobs.report.verdict import tokens_of, verdict_section
from raysift.report.bins import largest
from raysift.report.blocks import (
    ROW_ITEMS,
    TABLE_ROWS,
    Alerts,
    Bar,
    Bars,
    Block,
    Column,
    Heatmap,
    Line,
    Lines,
    Rows,
    Section,
    Table,
    Text,
)
from raysift.report.groups import POOL

ALL_CHOSE, ONLY = "all chose it", "only"


def differing_sections(found: Sequence[Gathered]) -> list[Section]:
    """What differs first, then what each run has to say."""
    names = short_names([one.run.name for one in found])
    sections = [
        _differences(found, names),
        _verdicts(found, names),
        _alerts(found, names),
        _scores(found, names),
        _groups(found, names),
        _rows(found, names),
        _training(found, names),
        _evaluation(found, names),
        _cost(found, names),
    ]
    return [section for section in sections if section and (section.blocks or section.lead)]


def short_names(names: Sequence[str]) -> list[str]:
    """The ends of the paths by which the runs are told apart."""
    parts = [name.rstrip("/").split("/") for name in names]
    for length in range(1, max(map(len, parts)) + 1):
        ends = ["/".join(part[-length:]) for part in parts]
        if len({*ends}) == len({*names}):
            return ends
    return list(names)


def _differences(found: Sequence[Gathered], names: Sequence[str]) -> Section:
    settings = [dict(flat_settings(one.made_with)) for one in found]
    usual = [defaults_of(one.made_with) for one in found]
    every = list(dict.fromkeys(name for one in settings for name in one))
    rows = []
    for name in every:
        values = [one.get(name, default.get(name)) for one, default in zip(settings, usual, strict=True)]
        has = [name in one for one in settings]
        if len({*map(told, values)}) > 1 and (all(has) or "." not in name):
            rows.append((name, *map(told, values)))
    columns = (Column(name="setting"), *(Column(name=name) for name in names))
    blocks: list[Block] = [
        Table(title="Settings that differ", columns=columns, rows=tuple(rows[:TABLE_ROWS]))
        if rows
        else Text(text="The runs have the same settings.")
    ]
    chosen = [(one, name) for one, name in zip(found, names, strict=True) if one.choose]
    if len(chosen) > 1:
        blocks += [_overlaps(chosen), *_ranks(chosen)]
    return Section(key="differences", title="Differences", lead=_shared_words(chosen), blocks=tuple(blocks))


def _overlaps(chosen: Sequence[tuple[Gathered, str]]) -> Heatmap:
    values: list[list[float | None]] = [[None] * len(chosen) for _ in chosen]
    for (i, (one, _)), (j, (other, _)) in combinations(enumerate(chosen), 2):
        rows = max(one.pool_rows, other.pool_rows, len(one.ids), len(other.ids))
        values[i][j] = values[j][i] = overlap(one.ids, other.ids, rows).jaccard
    names = tuple(name for _, name in chosen)
    return Heatmap(
        title="Rows in common, of the rows of both",
        label="share",
        columns=names,
        rows=names,
        values=tuple(map(tuple, values)),
    )


def _ranks(chosen: Sequence[tuple[Gathered, str]]) -> list[Heatmap]:
    values: list[list[float | None]] = [[None] * len(chosen) for _ in chosen]
    for (i, (one, _)), (j, (other, _)) in combinations(enumerate(chosen), 2):
        if one.scored and other.scored:
            _, at, at_other = np.intersect1d(one.scored.ids, other.scored.ids, return_indices=True)
            if len(at) > 2:
                found = rank_correlation(one.scored.scores[at], other.scored.scores[at_other])
                values[i][j] = values[j][i] = found
    if all(value is None for line in values for value in line):
        return []
    names = tuple(name for _, name in chosen)
    return [
        Heatmap(
            title="Rank correlation of the rows' scores",
            label="correlation",
            columns=names,
            rows=names,
            values=tuple(map(tuple, values)),
            diverging=True,
        )
    ]


def _shared_words(chosen: Sequence[tuple[Gathered, str]]) -> str:
    if len(chosen) < 2:
        return ""
    common = chosen[0][0].ids
    for one, _ in chosen[1:]:
        common = np.intersect1d(common, one.ids)
    sizes = ", ".join(f"{len(one.ids):,} ({name})" for one, name in chosen)
    return f"{len(common):,} rows are in all selections, of {sizes}."


def _verdicts(found: Sequence[Gathered], names: Sequence[str]) -> Section:
    blocks = tuple(Text(title=name, text=verdict_section(one).lead) for one, name in zip(found, names, strict=True))
    return Section(key="verdict", title="Verdict", blocks=blocks)


def _alerts(found: Sequence[Gathered], names: Sequence[str]) -> Section:
    blocks: list[Block] = []
    for one, name in zip(found, names, strict=True):
        blocks += [
            Alerts(title=name, items=tuple(replace(item, chip=None) for item in block.items))
            for block in alerts_section(one).blocks
            if isinstance(block, Alerts)
        ]
    return Section(key="alerts", title="Alerts", lead="" if blocks else "Nothing stands out.", blocks=tuple(blocks))


def _scores(found: Sequence[Gathered], names: Sequence[str]) -> Section | None:
    """Each score's share of its own range by rank: methods score on scales of their own."""
    curves = []
    for one, name in zip(found, names, strict=True):
        scored = one.scored
        if scored is None or scored.high <= scored.low:
            continue
        falling = np.sort(scored.scores[np.isfinite(scored.scores)])[::-1]
        places = np.unique(np.geomspace(1, len(falling), 200).astype(int))
        points = [
            (place / len(falling), (falling[place - 1] - scored.low) / (scored.high - scored.low)) for place in places
        ]
        curves.append(Line(name=name, points=tuple((float(x), float(y)) for x, y in points)))
    block = Lines(
        title="Score by rank",
        note="Each between its lowest and its highest score.",
        x="share of the pool",
        y="score, from lowest 0 to highest 1",
        series=tuple(curves),
        log_x=True,
    )
    return Section(key="scores", title="Scores", blocks=(block,)) if curves else None


def _groups(found: Sequence[Gathered], names: Sequence[str]) -> Section | None:
    """Sources of every selection beside those of the pool, and how long the answers are."""
    chosen = [(one, name) for one, name in zip(found, names, strict=True) if one.choose]
    if not chosen:
        return None
    pool: dict[str, int] = {}
    for one, _ in chosen:
        pool = {source: max(pool.get(source, 0), count) for source, count in source_counts(one)[0].items()} | {
            source: count for source, count in pool.items() if source not in source_counts(one)[0]
        }
    shown = largest(pool)
    series = [Bar(name=POOL, values=_shares(pool, shown))]
    series += [Bar(name=name, values=_shares(source_counts(one)[1], shown)) for one, name in chosen]
    blocks: list[Block] = [
        Bars(title="By source", label="share of the rows", type="percent", groups=tuple(shown), series=tuple(series))
    ]
    columns = (
        Column(name="run"),
        *(Column(name=name, type="count") for name in ("selected", "tokens", "median characters of the answer")),
    )
    rows = tuple(
        (name, len(one.ids), tokens_of(one), float(np.median(one.picked.features[ANSWER].to_numpy())))
        for one, name in chosen
    )
    blocks.append(Table(title="Size", columns=columns, rows=rows))
    return Section(key="groups", title="Before and after", blocks=tuple(blocks))


def _shares(counts: dict[str, int], names: Sequence[str]) -> tuple[float, ...]:
    total = max(1, sum(counts.values()))
    return tuple(counts.get(name, 0) / total for name in names)


def _rows(found: Sequence[Gathered], names: Sequence[str]) -> Section | None:
    """A few rows that all chose, and a few that one alone chose."""
    chosen = [(one, name) for one, name in zip(found, names, strict=True) if one.choose and one.ingest]
    if len(chosen) < 2:
        return None
    each = ROW_ITEMS // (2 * len(chosen) + 1)
    counts: dict[int, int] = {}
    for one, _ in chosen:
        for row_id in one.ids.tolist():
            counts[row_id] = counts.get(row_id, 0) + 1
    items, chips = [], {"chosen": MEANINGS["chosen"], ALL_CHOSE: "in every selection"}
    for number, (one, name) in enumerate(chosen):
        only = [row_id for row_id in one.ids.tolist() if counts[row_id] == 1]
        common = [row_id for row_id in one.ids.tolist() if counts[row_id] == len(chosen)] if not number else []
        chip = f"{ONLY} {name}"
        wanted = {row_id: [chip] for row_id in first_by_chance(only, each)}
        wanted |= {row_id: [ALL_CHOSE] for row_id in first_by_chance(common, each)}
        chips[chip] = f"chosen by {name} alone"
        items += list(kept_rows(one, wanted))
    return Section(key="rows", title="Rows", blocks=(Rows(items=tuple(fit(items)), chips=chips),)) if items else None


def _training(found: Sequence[Gathered], names: Sequence[str]) -> Section | None:
    curves = [
        Line(name=f"{name}: {one.stage}", points=tuple((float(x), float(y)) for x, y in one.values["losses"][:500]))
        for run, name in zip(found, names, strict=True)
        for one in run.manifests
        if one.values.get("losses")
    ]
    block = Lines(title="Loss", x="step", y="loss", series=tuple(curves))
    return Section(key="training", title="Training", blocks=(block,)) if curves else None


def _evaluation(found: Sequence[Gathered], names: Sequence[str]) -> Section | None:
    rows: list[tuple[Any, ...]] = []
    for one, name in zip(found, names, strict=True):
        tested = one.stage("evaluate")
        lines = [*tested.values["tasks"], tested.values["overall"]] if tested else []
        rows += [(name, *task_line(line)) for line in lines]
    table = Table(title="Scores by task", columns=(Column(name="run"), *TASK_COLUMNS), rows=tuple(rows[:TABLE_ROWS]))
    return Section(key="evaluation", title="Evaluation", blocks=(table,)) if rows else None


def _cost(found: Sequence[Gathered], names: Sequence[str]) -> Section:
    stages = list(dict.fromkeys(one.stage for run in found for one in run.manifests))
    columns = (Column(name="stage"), *(Column(name=name, type="seconds") for name in names))
    rows = []
    for stage in stages:
        found_here = [run.stage(stage) for run in found]
        rows.append((stage, *(None if one is None or one.reused_from else one.seconds for one in found_here)))
    note = "Nothing where a run has no such stage, or took it from another run."
    return Section(
        key="cost",
        title="Cost",
        blocks=(Table(title="Seconds", note=note, columns=columns, rows=tuple(rows[:TABLE_ROWS])),),
    )

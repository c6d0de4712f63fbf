"""Scores: how they spread, where the cut lies, which sources score high, and what another budget would take."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from raysift.gradients.null import null_counts
from raysift.jobs.report.features import ANSWER, PROMPT
from raysift.jobs.report.gather import Gathered
from raysift.jobs.report.scored import Scored
from raysift.methods import METHODS
from raysift.records import ID, SOURCE
from raysift.report.bins import by_rank, largest, thinned, what_if
from raysift.report.blocks import Bar, Bars, Block, Counts, Histogram, Line, Lines, Mark, Section

CUT = "the last row taken"


def scores_section(found: Gathered) -> Section | None:
    """Everything that is told by scores alone, or by scores with sources and lengths."""
    scored = found.scored
    if scored is None or not len(scored.edges):
        return None
    blocks: list[Block] = [_histogram(found, scored), _by_rank(found, scored)]
    joined = joined_scores(found)
    if joined is not None and len(joined):
        blocks += [block for block in (_by_source(joined), _what_if(found, scored, joined)) if block]
    method = METHODS.get(str(found.made_with.get("method")))
    return Section(key="scores", title="Scores", lead=method.reading if method else "", blocks=tuple(blocks))


def _histogram(found: Gathered, scored: Scored) -> Histogram:
    series = [Counts(name="pool", counts=tuple(scored.pool.tolist()))]
    if found.choose:
        series.append(Counts(name="selected", counts=tuple(scored.selected.tolist())))
    if found.null and found.null.whole:
        expected = null_counts(found.null.whole, scored.edges)
        series.append(Counts(name="null", counts=tuple(expected.tolist())))
    marks = (Mark(value=scored.cut, label=CUT),) if scored.cut is not None else ()
    note = "" if scored.cut is not None or not found.choose else "The selection does not follow these scores alone."
    return Histogram(
        title="Scores of all rows",
        note=note,
        label="score",
        edges=tuple(scored.edges.tolist()),
        series=tuple(series),
        marks=marks,
    )


def _by_rank(found: Gathered, scored: Scored) -> Lines:
    """Scores from the best row on: a knee shows where good rows end."""
    falling = np.sort(scored.scores[np.isfinite(scored.scores)])[::-1]
    shares = np.unique(np.geomspace(1, len(falling), 200).astype(int))
    scale = (scored.rows - scored.missing) / len(falling)
    points = thinned([(float(place * scale), float(falling[place - 1])) for place in shares.tolist()])
    marks = (Mark(value=float(len(found.ids)), label="budget"),) if scored.cut is not None else ()
    line = Line(name="score", points=points)
    return Lines(
        title="Score by rank", x="rank", y="score", series=(line,), marks=marks, log_x=True, note=_sampled(scored)
    )


def joined_scores(found: Gathered) -> pa.Table | None:
    """Scores with the figures of the rows, of the sample that both have."""
    scored, features = found.scored, found.pool.features
    if scored is None or not len(features) or not len(scored.ids):
        return None
    scores = pa.table({ID: scored.ids, "score": scored.scores})
    return features.join(scores, ID, join_type="inner").sort_by(ID)


def _by_source(joined: pa.Table) -> Bars | None:
    joined = joined.filter(pa.array(np.isfinite(joined["score"].to_numpy())))
    sources = joined[SOURCE].combine_chunks().dictionary_encode()
    codes, scores = sources.indices.to_numpy(), joined["score"].to_numpy()
    names = sources.dictionary.to_pylist()
    counts = dict(zip(names, np.bincount(codes, minlength=len(names)).tolist(), strict=True))
    if len(names) < 2:
        return None
    shown = largest(counts)
    quarters = [np.quantile(scores[codes == names.index(name)], (0.25, 0.5, 0.75)).tolist() for name in shown]
    low, middle, high = (tuple(side) for side in zip(*quarters, strict=True))
    return Bars(
        title="Scores by source",
        note="The bar is the median, the line reaches from the lower to the upper quarter.",
        label="score",
        groups=tuple(shown),
        series=(Bar(name="median score", values=middle, low=low, high=high),),
    )


def _what_if(found: Gathered, scored: Scored, joined: pa.Table) -> Block | None:
    """Only where the selection follows the scores: else nothing tells what another budget would take."""
    if scored.cut is None or found.ingest is None:
        return None
    order = by_rank(joined["score"].to_numpy(), joined[ID].to_numpy())
    lengths = joined[PROMPT].to_numpy() + joined[ANSWER].to_numpy()
    return what_if(
        order,
        joined[SOURCE].to_pylist(),
        lengths,
        {str(name): int(count) for name, count in found.ingest.values["by_source"].items()},
        scored.rows - scored.missing,
        len(found.ids) / found.pool_rows,
        "What if the budget were another?",
        "The same scores, more or fewer rows. " + _sampled(scored),
    )


def _sampled(scored: Scored) -> str:
    return "" if scored.is_whole else f"From {len(scored.ids):,} rows drawn by id."

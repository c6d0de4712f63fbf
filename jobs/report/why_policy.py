"""What a run of RAISE tells of its policy: how it learned, what it picked when, and which features and classes it prefers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from raysift.errors import RaysiftError
from raysift.jobs.policy.attribution import credit_weights
from raysift.jobs.policy.story import final_training, learning_curve, policy_rows, round_folders
from raysift.jobs.runs.chosen_rows import chosen_chunks
from raysift.jobs.runs.run import Run
from raysift.policy.pool import PolicyPool, positions
from raysift.policy.saved import load_episodes
from raysift.policy.state import Episode
from raysift.policy.verdict import DOUBT
from raysift.records import ID, SOURCE
from raysift.report.blocks import Bar, Bars, Block, Line, Lines

STEPS_SHOWN, SOURCES_SHOWN, DIRECTIONS_SHOWN = 40, 8, 5
OTHERS = "other sources"
FEATURES = (
    "length of the prompt",
    "length of the answer",
    "how likely the answer is after the prompt",
    "how likely the answer is by itself",
)


def why_policy(run: Run, with_text: bool) -> tuple[str, list[Block]]:
    """The learning curve, the picks by source over steps and rounds, and what the picked rows have more of."""
    lead = "A policy picked every batch of the training. It learned, round by round, which rows raise the measured performance."
    trained = run.manifest("final")
    if trained and (doubt := trained.values.get(DOUBT)):
        lead = f"{lead} {doubt}"
    try:
        pool, final = policy_rows(run), final_training(run)
    except RaysiftError:
        return lead, [block for block in [curve_of(run)] if block]
    logs = [load_episodes(folder) for folder in round_folders(run)]
    groups = sources_of(run, pool, [final, *(one for log in logs for one in log)])
    blocks = [
        curve_of(run),
        _over("Picks of the final training, by source", "step", _bins(final.picks), groups),
        _over("Picks while the policy learned, by source", "round", _by_round(logs), groups),
        preferred(run, pool, final, logs),
        classes(pool, final),
    ]
    return lead, [block for block in blocks if block]


def curve_of(run: Run) -> Lines | None:
    """Performance of each round on the examples that reward, and on those kept for the report."""
    lines = learning_curve(run).to_pylist()
    if not lines:
        return None
    series = []
    for key, name in (("performance", "examples that reward the policy"), ("report", "examples kept for the report")):
        start = lines[0]["start" if key == "performance" else "report_start"]
        points = [(float(line["round"]), float(line[key])) for line in lines if line[key] is not None]
        begun = [(0.0, float(start))] if start is not None else []
        if points:
            series.append(Line(name=name, points=(*begun, *points)))
    return Lines(
        title="Performance after each round of learning",
        note="Round 0 is the model before any training. A curve that does not rise has taught the policy nothing.",
        x="round",
        y="performance (minus the loss)",
        series=tuple(series),
    )


def sources_of(run: Run, pool: PolicyPool, trainings: Sequence[Episode]) -> dict[int, str]:
    """The source of every picked row, rare ones together."""
    rows = run.manifest("ingest")
    picked = np.unique(np.concatenate([np.concatenate(one.picks) for one in trainings]))
    found: dict[int, str] = {}
    if rows:
        for chunk, _ in chosen_chunks(run.files(rows, "rows"), picked, [ID, SOURCE]):
            found.update(zip(chunk[ID].to_pylist(), chunk[SOURCE].to_pylist(), strict=True))
    usual = Counter(found.values())
    kept = {name for name, _ in sorted(usual.items(), key=lambda item: (-item[1], item[0]))[:SOURCES_SHOWN]}
    return {row: name if name in kept else OTHERS for row, name in found.items()}


def _over(title: str, x: str, parts: Sequence[tuple[float, np.ndarray]], groups: dict[int, str]) -> Lines | None:
    """The share of each source among the picks of each part."""
    names = sorted(set(groups.values()) - {OTHERS}) + [OTHERS] * (OTHERS in groups.values())
    if not parts or not names:
        return None
    shares = []
    for _, picks in parts:
        found = Counter(groups[row] for row in picks.tolist())
        shares.append([found[name] / max(1, len(picks)) for name in names])
    places = [place for place, _ in parts]
    lines = [
        Line(name=name, points=tuple(zip(places, column, strict=True)))
        for name, column in zip(names, zip(*shares, strict=True), strict=True)
    ]
    return Lines(title=title, x=x, y="share of the picks", series=tuple(lines))


def _bins(picks: Sequence[np.ndarray]) -> list[tuple[float, np.ndarray]]:
    """The picks of neighbouring steps or rounds together, each under the last of them."""
    parts = np.array_split(np.arange(len(picks)), min(STEPS_SHOWN, max(1, len(picks))))
    return [(float(part[-1] + 1), np.concatenate([picks[place] for place in part])) for part in parts if len(part)]


def _by_round(logs: Sequence[Sequence[Episode]]) -> list[tuple[float, np.ndarray]]:
    return _bins([np.concatenate([batch for one in log for batch in one.picks]) for log in logs])


def preferred(run: Run, pool: PolicyPool, final: Episode, logs: list[list[Episode]]) -> Bars:
    """What picked rows have more of than the pool, and the credit that each feature had, in standard deviations."""
    mean, spread = pool.features.mean(axis=0, dtype=np.float64), pool.features.std(axis=0, dtype=np.float64)
    picked = pool.features[positions(pool, np.concatenate(final.picks))].mean(axis=0, dtype=np.float64)
    more = np.divide(picked - mean, spread, out=np.zeros(len(mean)), where=spread > 0)
    shown = min(pool.features.shape[1], len(FEATURES) + DIRECTIONS_SHOWN)
    names = [*FEATURES, *(f"direction {i + 1} of the row's vector" for i in range(shown - len(FEATURES)))]
    series = [Bar(name="picked rows above the pool", values=tuple(more[:shown].tolist()))]
    weights = credit_weights(run, pool, logs)
    if weights is not None:
        series.append(Bar(name="credit for one deviation more", values=tuple((weights * spread)[:shown].tolist())))
    return Bars(
        title="What the policy goes by",
        note="In standard deviations of the pool. Credit is what a regression over all rounds lays to the feature's account.",
        label="standard deviations",
        groups=tuple(names),
        series=tuple(series),
    )


def classes(pool: PolicyPool, final: Episode) -> Bars | None:
    """The share of each class in the pool and in the picks; None if there is one class."""
    sizes = np.bincount(pool.classes)
    if len(sizes) < 2:
        return None
    picked = np.bincount(pool.classes[positions(pool, np.concatenate(final.picks))], minlength=len(sizes))
    own, mine = sizes / sizes.sum(), picked / picked.sum()
    return Bars(
        title="Weights of the classes",
        note="Each class gives an equal share of every batch, whatever its size.",
        label="share",
        type="percent",
        groups=tuple(f"class {number} ({size:,} rows)" for number, size in enumerate(sizes.tolist())),
        series=(Bar(name="pool", values=tuple(own.tolist())), Bar(name="picks", values=tuple(mine.tolist()))),
        lift=tuple(np.divide(mine, own, out=np.zeros(len(own)), where=own > 0).tolist()),
    )

"""The standings of a comparison: figures and a verdict for each method, and how similar the selections are."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raysift.errors import ConfigError
from raysift.evaluation.comparison import (
    FEWEST_SEEDS,
    Difference,
    Scores,
    overlap,
    paired_difference,
    rank_correlation,
    split_spread,
    verdict,
)
from raysift.evaluation.entries import BASE, LONGEST, UNIFORM
from raysift.evaluation.intervals import seeds_interval

CLAIM = re.compile(r"\s*(?P<better>[^<>=]+?)\s*(?P<sign>>=|>|<=|<)\s*(?P<worse>[^<>=]+?)\s*")


class Ranked(NamedTuple):
    """Scores of rows, sorted by id."""

    ids: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass
class Measured:
    """All measurements of one method, by the seed of its selection."""

    rows: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    """Ids of the chosen rows."""
    scores: dict[int, list[list[float]]] = field(default_factory=dict)
    """One list of scores, question by question, for each training of the selection."""
    losses: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    selection_seconds: list[float] = field(default_factory=list)
    training_seconds: list[float] = field(default_factory=list)
    ranked: dict[int, Ranked] = field(default_factory=dict)

    def by_seed(self) -> Scores:
        """The score of every question, averaged over the trainings of a selection."""
        return {seed: np.mean(np.asarray(trainings, np.float64), axis=0) for seed, trainings in self.scores.items()}


def standings(
    measured: Mapping[str, Measured], pool_rows: int, gain: float, confidence: float = 0.95
) -> dict[str, Any]:
    """The comparison as plain JSON types; `measured` has a line for the base model and one for `uniform`."""
    seeds = len(measured[UNIFORM].scores)
    names = list(measured)
    chosen = [name for name in names if measured[name].rows]
    ranked = [name for name in names if measured[name].ranked]
    return {
        "seeds": seeds,
        "trainings": max(len(trainings) for own in measured.values() for trainings in own.scores.values()),
        "questions": len(next(iter(measured[UNIFORM].scores.values()))[0]),
        "pool_rows": pool_rows,
        "indicative": seeds < FEWEST_SEEDS,
        "gain": gain,
        "confidence": confidence,
        "methods": [_line(name, measured, pool_rows, gain, confidence) for name in names],
        "overlap": _matrix(chosen, lambda a, b: _overlap(measured[a], measured[b], pool_rows)[0]),
        "ranks": _matrix(ranked, lambda a, b: _rank(measured[a], measured[b])),
    }


def _line(
    name: str, measured: Mapping[str, Measured], pool_rows: int, gain: float, confidence: float
) -> dict[str, Any]:
    own = measured[name]
    scores = own.by_seed()
    mean, low, high = seeds_interval(np.stack(list(scores.values())), confidence).within(0, 1)
    found = None if name == UNIFORM else difference_of(measured, name, UNIFORM, gain, confidence)
    line: dict[str, Any] = {
        "name": name,
        "rows": _mean([len(ids) for ids in own.rows.values()]),
        "tokens": _mean(own.tokens),
        "steps": _mean(own.steps),
        "selection_seconds": _mean(own.selection_seconds),
        "training_seconds": _mean(own.training_seconds),
        "score": mean,
        "low": low,
        "high": high,
        "difference": found.interval.mean if found else None,
        "difference_low": found.interval.low if found else None,
        "difference_high": found.interval.high if found else None,
        "loss": _mean(own.losses),
        "seeds": len(own.scores),
        "verdict": verdict(name, UNIFORM, found, gain) if found else f"{name}: the baseline of all differences",
    }
    for other in (UNIFORM, LONGEST):
        both = (
            _overlap(own, measured[other], pool_rows)
            if own.rows and name != other and other in measured
            else (None,) * 2
        )
        line |= {f"overlap_{other}": both[0], f"chance_{other}": both[1]}
    line["length_rank"] = _rank(own, measured[LONGEST]) if LONGEST in measured and name != LONGEST else None
    line["spread"] = _spread(own)
    return line


def difference_of(
    measured: Mapping[str, Measured], name: str, against: str, gain: float, confidence: float = 0.95
) -> Difference:
    """How far one method scores above another, over the seeds of both; the untrained model scores the same in all."""
    own, other = measured[name].by_seed(), measured[against].by_seed()
    if name == BASE:
        own = dict.fromkeys(other, next(iter(own.values())))
    if against == BASE:
        other = dict.fromkeys(own, next(iter(other.values())))
    return paired_difference(own, other, gain, confidence)


def check_claim(text: str, names: Sequence[str]) -> tuple[str, str, str]:
    """A claim such as `rose>uniform` as (better, sign, worse); raises if it names anything that is not compared."""
    found = CLAIM.fullmatch(text)
    if not found:
        raise ConfigError(f"--assert: '{text}' is no claim. Expected A>B (A is better) or A>=B (A is not worse).")
    first, sign, second = found["better"], found["sign"], found["worse"]
    if sign.startswith("<"):
        first, sign, second = second, sign.replace("<", ">"), first
    if unknown := [name for name in (first, second) if name not in names]:
        raise ConfigError(f"--assert: '{unknown[0]}' is not compared. Known: {', '.join(names)}.")
    return first, sign, second


def claim_holds(claim: tuple[str, str, str], measured: Mapping[str, Measured], gain: float) -> tuple[bool, str]:
    """Whether the claim holds, and the verdict: `A>B` needs all of the interval above 0, `A>=B` not all below."""
    first, sign, second = claim
    found = difference_of(measured, first, second, gain)
    _, low, high = found.interval
    holds = low is not None and low > 0 if sign == ">" else high is None or high >= 0
    return holds, verdict(first, second, found, gain)


def _overlap(one: Measured, other: Measured, pool_rows: int) -> tuple[float | None, float | None]:
    """Overlap and the overlap by chance, averaged over the seeds that both have."""
    seeds = [seed for seed in one.rows if seed in other.rows]
    both = [overlap(one.rows[seed], other.rows[seed], max(pool_rows, len(one.rows[seed]))) for seed in seeds]
    return _mean([found.jaccard for found in both]), _mean([found.by_chance for found in both])


def _rank(one: Measured, other: Measured) -> float | None:
    """Rank correlation of the rows that both have scored, averaged over seeds."""
    found = []
    for seed in one.ranked.keys() & other.ranked.keys():
        a, b = one.ranked[seed], other.ranked[seed]
        _, at_a, at_b = np.intersect1d(a.ids, b.ids, assume_unique=True, return_indices=True)
        correlation = rank_correlation(a.values[at_a], b.values[at_b]) if len(at_a) > 2 else None
        found += [] if correlation is None else [correlation]
    return _mean(found)


def _spread(own: Measured) -> dict[str, float] | None:
    """Standard deviations over seeds of the selection and of the training; None unless both were repeated."""
    table = [[float(np.mean(scores)) for scores in trainings] for trainings in own.scores.values()]
    if len(table) < 2 or min(map(len, table)) < 2:
        return None
    return dict(split_spread(table)._asdict())


def _matrix(names: Sequence[str], of: Callable[[str, str], float | None]) -> dict[str, Any]:
    values: list[list[float | None]] = [[None] * len(names) for _ in names]
    for i, one in enumerate(names):
        for j, other in enumerate(names[:i]):
            values[i][j] = values[j][i] = of(one, other)
    return {"names": list(names), "values": values}


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None

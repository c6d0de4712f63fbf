"""What a policy picked when: per step of the final training, per stretch of it, or per round."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raysift.errors import DataError
from raysift.jobs.policy.opened import PolicyRun, on_pool, open_policy_run, round_folders
from raysift.jobs.runs.run import Run
from raysift.policy.pool import PolicyPool, positions
from raysift.policy.saved import load_episodes
from raysift.policy.state import Episode
from raysift.records import META, SOURCE

CLASS = "class"
OTHERS = "(others)"
MOST_VALUES = 200
"""Of a column by which picks are told apart; the rarest beyond them are `(others)`."""


class PickTables(NamedTuple):
    """`numbers`: a line a moment; `shares`: a line for each moment, column and value, with the value's share of the pool."""

    numbers: pa.Table
    shares: pa.Table


class Labels(NamedTuple):
    """The value of a column for each row of the pool: its number among `names`."""

    column: str
    codes: NDArray[np.int64]
    names: list[str | None]


def picks_over_time(
    run: str | Run | PolicyRun,
    by: str | None = None,
    *,
    over: Literal["steps", "rounds"] = "steps",
    stretches: int | None = None,
) -> PickTables:
    """What was picked: at each step of the final training, or in as many stretches of it; or in each round.

    Shares are by source and class, and by a column of the rows' meta where `by` names one. `repeats` is the share of picks
    that their training had picked before.
    """
    opened = run if isinstance(run, PolicyRun) else open_policy_run(run)
    labels = [labels_of(opened, None), _classes(opened.pool), *([labels_of(opened, by)] if by else [])]
    if over == "rounds":
        rounds = [load_episodes(folder) for folder in round_folders(opened.run)]
        whens: list[dict[str, Any]] = [{"round": number + 1} for number in range(len(rounds))]
        parts = [[_picked(opened.pool, episode) for episode in group] for group in rounds]
        places = [np.concatenate([batch for steps in group for batch in steps]) for group in parts]
        again = [np.concatenate([_again(np.concatenate(steps)) for steps in group]) for group in parts]
        return _tables(opened, whens, places, again, labels)

    steps = _picked(opened.pool, opened.episode)
    edges = _edges(len(steps), stretches or len(steps))
    ends = np.cumsum([0, *map(len, steps)])
    cuts = [int(ends[edge]) for edge in edges[1:-1]]
    every = np.concatenate(steps)
    known, losses = opened.episode.known_performance, opened.episode.table["loss"].to_numpy()[1:]
    whens = [
        {
            "first_step": first + 1,
            "last_step": last,
            "performance": float(known[last]),
            "gain": float(known[last] - known[first]),
            "loss": float(np.mean(losses[first:last])),
        }
        for first, last in pairwise(edges)
    ]
    return _tables(opened, whens, np.split(every, cuts), np.split(_again(every), cuts), labels)


def labels_of(opened: PolicyRun, column: str | None) -> Labels:
    """By a column of the rows' meta, or by source where none is named."""
    codes, names = np.zeros(len(opened.pool), np.int64), dict[str | None, int]()
    seen: set[str] = set()
    for places, kept in on_pool(opened.pool, opened.run.files(opened.rows, "rows"), [META if column else SOURCE]):
        cells = pc.dictionary_encode(kept[0].combine_chunks(), null_encoding="encode")
        texts = cells.dictionary.to_pylist()
        values = [_meta_value(text, column, seen) for text in texts] if column else texts
        mine = np.array([names.setdefault(value, len(names)) for value in values], np.int64)
        codes[places] = mine[cells.indices.to_numpy()]
    if column and column not in seen:
        raise DataError(f"raise: no row has '{column}' in its meta; there are: {', '.join(sorted(seen)) or 'none'}.")
    return _few(Labels(column or SOURCE, codes, list(names)))


def _meta_value(text: str | None, column: str, seen: set[str]) -> str | None:
    """Text as it is, other values as JSON; what the metas hold is added to `seen`."""
    meta = json.loads(text) if text else {}
    seen.update(meta)
    value = meta.get(column)
    return value if value is None or isinstance(value, str) else json.dumps(value, sort_keys=True)


def _few(labels: Labels) -> Labels:
    """In order of their names; the rarest of too many put together."""
    counts = np.bincount(labels.codes, minlength=len(labels.names))
    order = sorted(range(len(counts)), key=lambda k: (-counts[k], labels.names[k] or ""))
    kept = sorted(order[: MOST_VALUES - 1 if len(order) > MOST_VALUES else None], key=lambda k: labels.names[k] or "")
    names = [labels.names[k] for k in kept]
    renumbered = np.full(len(counts), len(kept), np.int64)
    renumbered[kept] = np.arange(len(kept))
    return Labels(labels.column, renumbered[labels.codes], names if len(kept) == len(order) else [*names, OTHERS])


def _classes(pool: PolicyPool) -> Labels:
    return Labels(CLASS, pool.classes.astype(np.int64), [str(k) for k in range(int(pool.classes.max()) + 1)])


def _picked(pool: PolicyPool, episode: Episode) -> list[NDArray[np.int64]]:
    """Places in the pool, step by step."""
    return [positions(pool, batch) for batch in episode.picks]


def _again(picked: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which picks of one training, in their order, were picked before in it."""
    repeats = np.ones(len(picked), np.bool_)
    repeats[np.unique(picked, return_index=True)[1]] = False
    return repeats


def _edges(steps: int, stretches: int) -> list[int]:
    """Steps after which a stretch ends, from 0; as many stretches as asked, or as there are steps."""
    return sorted({round(part * steps / min(steps, stretches)) for part in range(min(steps, stretches) + 1)})


def _tables(
    opened: PolicyRun,
    whens: Sequence[dict[str, Any]],
    places: Sequence[NDArray[np.int64]],
    again: Sequence[NDArray[np.bool_]],
    labels: Sequence[Labels],
) -> PickTables:
    """Both tables, from the picks of each moment."""
    numbers, shares = [], []
    pool_shares = [np.bincount(one.codes, minlength=len(one.names)) / len(opened.pool) for one in labels]
    for when, picked, repeated in zip(whens, places, again, strict=True):
        known = {"picks": len(picked), "distinct_rows": len(np.unique(picked)), "repeats": float(repeated.mean())}
        means = {name: float(values[picked].mean()) for name, values in opened.difficulty_of_rows.items()}
        numbers.append(when | known | means)
        moment = {key: when[key] for key in ("first_step", "last_step", "round") if key in when}
        for one, of_pool in zip(labels, pool_shares, strict=True):
            counts = np.bincount(one.codes[picked], minlength=len(one.names))
            for name, count, usual in zip(one.names, counts.tolist(), of_pool.tolist(), strict=True):
                line = {"column": one.column, "value": name, "picks": count, "share": count / len(picked)}
                shares.append(moment | line | {"pool_share": usual})
    return PickTables(pa.Table.from_pylist(numbers), pa.Table.from_pylist(shares))

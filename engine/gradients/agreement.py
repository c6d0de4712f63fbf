"""Whether a target says anything: how far the gradients of its pairs or examples agree, known before a row of the pool is read.

x_k is the gradient of member k of a subtask as its target counts it (see `weights_of`); products are weighted means over
the checkpoints, and a member without a gradient at one of them counts 0 there. With S = sum x_k, diag = sum |x_k|^2 and
off = |S|^2 - diag, for random halves A, B of the n members (no halves need to be drawn):

    E<A, B> = off n / (4 (n - 1))        E|A|^2 = diag / 2 + off (n - 2) / (4 (n - 1))
    h = E<A, B> / E|A|^2                 agreement of halves, near their mean cosine
    full = 2 h / (1 + h)                 of all n with n others like them (Spearman, Brown)
    rho = off / ((n - 1) diag)           the mean cosine between two members
    n for H = 2 H (1 - rho) / (rho (1 - H))    members whose halves agree at H

Subtasks are pooled by sums of numerators and of denominators. The interval is the jackknife's over members, subtask by
subtask. Members with the same text are one member: repeats are no evidence.

For pairs there is also a sign test. To swap chosen and rejected turns a unit gradient round, so if the sides mean nothing, all
signs s_k = +-1 are equally likely, and p = (1 + draws with sum |sum s_k x_k|^2 >= sum |S|^2) / (1 + draws) is at most a with a
chance of at most a. (Under `unit_of_mean` a swapped pair also changes its length, and the test is approximate.) Examples have
no sides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from raysift.draws import seed_for, uniform_of
from raysift.evaluation.intervals import t_quantile

if TYPE_CHECKING:
    from raysift.gradients.preference import Targets

Floats = NDArray[np.float64]
Level = Literal["clear", "weak", "noise", "unknown"]

# Of 12 sets of real pairs on two pools (tests/benchmarks/RESULTS.md): the sources that serve a target had five times their share
# and more where halves agreed at .25 and above, and p was .001; those with p above .02 had at most 2.8 times.
CLEAR_HALVES = 0.5  # agreement of halves from which a target is clear
LEAST_HALVES = 0.1  # below: noise
MOST_CHANCE = 0.02  # p of the sign test; above: noise. Below .05, so that 95 of 100 swapped targets are surely found
FEWEST = 8  # different members of one subtask; fewer are never clear: of 7 pairs that agree, p is 1/64 give or take
WORKED = "0.3 to 0.9"  # agreement of halves in targets whose selection served them
WANTED_HALVES = 0.7  # agreement for which the members needed are counted: clear, and not just so
ALIKE = 0.98  # mean cosine between members from which they are one member, as repeats are
LEAST_TOWARD = 0.05  # cosine of a target with what chosen and rejected share; below, it points away from rows like them
SERVED = "0.2"  # the same in targets whose selection served them
CANCELS = 0.9  # mean cosine of the gradients of chosen and rejected from which most of both cancels
CONFIDENCE = 0.95
DRAWS = 1000
SHOWN_AGAINST = 3
_HELD_NUMBERS = 2**20  # of signs and of their sums at once: 8 MiB each


@dataclass(frozen=True)
class Members:
    """Gradients of all members, sorted by subtask and content, repeats summed: the order of files has no effect."""

    keys: NDArray[np.int64]
    subtasks: tuple[str, ...]
    starts: tuple[int, ...]
    """Where each subtask's members begin; the last number is their count."""
    blocks: tuple[NDArray[np.float32], ...]
    """Of each checkpoint: (members, width)."""
    shares: Floats
    """Weight of each checkpoint."""

    def of(self, subtask: int) -> slice:
        """The subtask's members."""
        return slice(self.starts[subtask], self.starts[subtask + 1])


@dataclass(frozen=True)
class Sums:
    """Of one subtask: |S|^2, and <x_k, S> and |x_k|^2 of each member."""

    total: float
    with_all: Floats
    squares: Floats

    @property
    def off(self) -> float:
        return self.total - float(self.squares.sum())


@dataclass(frozen=True)
class Halves:
    """How far random halves agree; None where there are no halves, or nothing to estimate an interval from."""

    members: int
    halves: float | None = None
    low: float | None = None
    high: float | None = None
    full: float | None = None
    mean_cosine: float | None = None
    needed: int | None = None
    """Members per subtask for `WANTED_HALVES`; None if the interval reaches 0."""
    chance: float | None = None
    """The sign test's p; pairs only."""
    level: Level = "unknown"


@dataclass(frozen=True)
class Agreement:
    """What a target's gradients say of each other."""

    kind: Literal["pairs", "examples"]
    count: int
    """Pairs or examples with a gradient, repeats included."""
    whole: Halves
    subtasks: dict[str, Halves]
    checkpoints: dict[str, Halves]
    against: list[tuple[int, str]]
    """Content keys and subtasks of members whose cosine with the rest of their subtask is below 0, lowest first."""
    between: float | None
    """Mean cosine of the gradients of chosen and rejected; pairs only."""
    toward: float | None
    """Cosine of the target with what chosen and rejected share (see `Targets.toward`), over subtasks by their members; pairs
    only."""


def agreement(
    targets: Sequence[Targets],
    names: Sequence[str],
    shares: Sequence[float],
    keys: Sequence[int],
    aggregation: str,
    turns_with_sides: bool = True,
) -> Agreement:
    """The agreement of a target from its gradients at each checkpoint, by name and weight; `keys` holds the content key of
    each member. Pairs that do not turn with their sides are judged by the interval alone, as examples are."""
    are_pairs = any(member.margin is not None for target in targets for member in target.members)
    members = gather(targets, shares, keys, aggregation)
    groups = range(len(members.subtasks))
    by_checkpoint = [[sums_of(block[members.of(group)]) for group in groups] for block in members.blocks]
    by_subtask = [_weighted([at[group] for at in by_checkpoint], members.shares) for group in groups]
    p, each = chances(members) if are_pairs and turns_with_sides else (None, [None] * len(groups))
    return Agreement(
        kind="pairs" if are_pairs else "examples",
        count=len({member.id for target in targets for member in target.members}),
        whole=compare_halves(by_subtask, p),
        subtasks={
            name: compare_halves([own], q) for name, own, q in zip(members.subtasks, by_subtask, each, strict=True)
        },
        checkpoints={name: compare_halves(at) for name, at in zip(names, by_checkpoint, strict=True)},
        against=_against(members, by_subtask),
        between=_mean_between(targets, members.shares),
        toward=_mean_toward(targets, members.shares),
    )


def as_values(found: Agreement, places: Mapping[int, tuple[str, int | str]], left_out: int = 0) -> dict[str, Any]:
    """The figures as a stage keeps them, with the places of the first members that pull against the rest by content key."""
    first = [places[key] for key, _ in found.against[:SHOWN_AGAINST]]
    return {
        "kind": found.kind,
        "count": found.count,
        "left_out": left_out,
        "between": _short(found.between),
        "toward": _short(found.toward),
        **_rounded(found.whole),
        "against": {"count": len(found.against), "first": [{"file": file, "record": record} for file, record in first]},
        "subtasks": {name: _rounded(own) for name, own in found.subtasks.items()},
        "checkpoints": {name: _rounded(own) for name, own in found.checkpoints.items()},
    }


def _rounded(found: Halves) -> dict[str, Any]:
    return {name: _short(value) if isinstance(value, float) else value for name, value in asdict(found).items()}


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def gather(targets: Sequence[Targets], shares: Sequence[float], keys: Sequence[int], aggregation: str) -> Members:
    """The members of all checkpoints, brought into an order that depends on their content alone."""
    found = sorted({(member.subtask, keys[member.id]) for target in targets for member in target.members})
    place = {one: number for number, one in enumerate(found)}
    subtasks = tuple(dict.fromkeys(subtask for subtask, _ in found))
    blocks = []
    for target in targets:
        assert target.sketches is not None
        block = np.zeros((len(found), target.sketches.shape[1]), np.float32)
        weights = weights_of(target, aggregation)
        for member, sketch, weight in zip(target.members, target.sketches, weights, strict=True):
            block[place[member.subtask, keys[member.id]]] += np.float32(weight) * sketch
        blocks.append(block)
    counts = [sum(subtask == name for subtask, _ in found) for name in subtasks]
    starts = (0, *np.cumsum(counts).tolist())
    total = float(np.sum(shares))
    return Members(
        np.array([key for _, key in found], np.int64), subtasks, starts, tuple(blocks), np.asarray(shares) / total
    )


def weights_of(target: Targets, aggregation: str) -> Floats:
    """How much each member's unit gradient counts in the sum of its subtask: 1, or its length, relative to the subtask's.

    A target of `unit_of_mean` has length 1 at each checkpoint, whatever the lengths of its members there.
    """
    if aggregation == "mean_of_units":
        return np.ones(len(target.members))
    norms = np.array([member.norm for member in target.members])
    own = np.array([member.subtask for member in target.members], object)
    for name in set(own.tolist()):
        squares = norms[own == name] ** 2
        norms[own == name] /= math.sqrt(math.fsum(squares) / len(squares))
    return norms


def sums_of(vectors: NDArray[np.floating]) -> Sums:
    """The sums of one subtask at one checkpoint."""
    wide = vectors.astype(np.float64)
    total = wide.sum(axis=0)
    return Sums(float(total @ total), wide @ total, np.einsum("kd,kd->k", wide, wide))


def _weighted(sums: Sequence[Sums], shares: Floats) -> Sums:
    return Sums(
        float(sum(share * one.total for share, one in zip(shares, sums, strict=True))),
        np.sum([share * one.with_all for share, one in zip(shares, sums, strict=True)], axis=0),
        np.sum([share * one.squares for share, one in zip(shares, sums, strict=True)], axis=0),
    )


def compare_halves(sums: Sequence[Sums], chance: float | None = None) -> Halves:
    """The agreement of halves over these subtasks; subtasks of one member have no halves and add nothing."""
    count = sum(len(one.squares) for one in sums)
    split = [one for one in sums if len(one.squares) > 1]
    parts = np.array([_parts(len(one.squares), one.off, one.squares.sum()) for one in split]).reshape(-1, 2)
    over, under = parts.sum(axis=0)
    if not under > 0:
        return Halves(count)
    h = float(over / under)
    low, high = _jackknife(split, parts, h)
    off = sum(one.off for one in split)
    rho = off / sum((len(one.squares) - 1) * float(one.squares.sum()) for one in split)
    needed = None
    if low is not None and low > 0 and rho > 0:
        needed = max(2, math.ceil(2 * WANTED_HALVES * (1 - rho) / (rho * (1 - WANTED_HALVES)) - 1e-9))
    full = 2 * h / (1 + h) if h > -1 else -1.0
    few = sum(len(one.squares) - 1 for one in split) < FEWEST - 1
    level = "unknown" if low is None or rho >= ALIKE else _level(h, low, chance, few)
    return Halves(count, h, low, high, full, rho, needed, chance, level)


def _parts(n: int, off: float | Floats, diag: float | Floats) -> tuple[float | Floats, float | Floats]:
    """E<A, B> and E|A|^2; for an odd n, as if one member could be halved."""
    return off * n / (4 * (n - 1)), diag / 2 + off * (n - 2) / (4 * (n - 1))


def _jackknife(split: Sequence[Sums], parts: Floats, h: float) -> tuple[float | None, float | None]:
    """h again and again without one member: var = sum over subtasks of (n - 1) / n sum (h_-k - their mean)^2."""
    over, under = parts.sum(axis=0)
    variance, freedom = 0.0, 0
    for one, (own_over, own_under) in zip(split, parts, strict=True):
        n = len(one.squares)
        off = one.total - 2 * one.with_all + one.squares - (one.squares.sum() - one.squares)
        rest = (0.0, 0.0) if n == 2 else _parts(n - 1, off, one.squares.sum() - one.squares)
        with np.errstate(divide="ignore", invalid="ignore"):
            left = np.broadcast_to((over - own_over + rest[0]) / (under - own_under + rest[1]), n)
        variance += (n - 1) / n * float(((left - left.mean()) ** 2).sum())
        freedom += n - 1
    if not math.isfinite(variance):
        return None, None
    half = t_quantile((1 + CONFIDENCE) / 2, freedom) * math.sqrt(variance)
    return max(-1.0, h - half), min(1.0, h + half)


def _level(h: float, low: float, chance: float | None, few: bool) -> Level:
    by_chance = chance is not None and chance > MOST_CHANCE and not few  # of few pairs, p cannot be small
    if by_chance or h < LEAST_HALVES or low <= 0:
        return "noise"
    return "clear" if h >= CLEAR_HALVES and not few else "weak"


def chances(members: Members) -> tuple[float, list[float | None]]:
    """The sign test over all subtasks, and of each alone. Signs are drawn by content, so their order has no effect."""
    groups = range(len(members.subtasks))
    widest = max(len(members.keys), *(block.shape[1] for block in members.blocks))
    step = max(1, _HELD_NUMBERS // widest)
    draws = uniform_of(np.arange(DRAWS), seed_for(0, "signs of pairs"))
    moved = (draws * 2**62).astype(np.int64)[
        :, None
    ]  # of keys, which are mixed afterwards: each draw has its own signs
    reached, reached_by = 0, np.zeros(len(groups), np.int64)
    observed = _squares(members, np.ones((1, len(members.keys)), np.float32))[0]
    for start in range(0, DRAWS, step):
        signs = np.where(uniform_of(members.keys + moved[start : start + step], 0) < 0.5, np.float32(-1), np.float32(1))
        found = _squares(members, signs)
        # Equal signs on both sides must count as equal, and their sums were rounded apart.
        reached += int((found.sum(axis=1) >= observed.sum() * (1 - 1e-5)).sum())
        reached_by += (found >= observed * (1 - 1e-5)).sum(axis=0)
    each = [float((1 + count) / (1 + DRAWS)) for count in reached_by]
    alone = [members.starts[group + 1] - members.starts[group] < 2 for group in groups]
    return (1 + reached) / (1 + DRAWS), [None if no_halves else p for p, no_halves in zip(each, alone, strict=True)]


def _squares(members: Members, signs: NDArray[np.float32]) -> Floats:
    """Of each draw and subtask: |sum s_k x_k|^2, weighted over checkpoints."""
    found = np.zeros((len(signs), len(members.subtasks)))
    for share, block in zip(members.shares, members.blocks, strict=True):
        for group in range(len(members.subtasks)):
            own = members.of(group)
            sums = (signs[:, own] @ block[own]).astype(np.float64)
            found[:, group] += share * np.einsum("bd,bd->b", sums, sums)
    return found


def _against(members: Members, by_subtask: Sequence[Sums]) -> list[tuple[int, str]]:
    found = []
    for group, sums in enumerate(by_subtask):
        if len(sums.squares) < 2:
            continue
        with_rest = sums.with_all - sums.squares
        rest = np.maximum(sums.total - 2 * sums.with_all + sums.squares, 0)
        lengths = np.sqrt(sums.squares * rest)
        cosines = np.divide(with_rest, lengths, out=np.zeros(len(lengths)), where=lengths > 0)
        keys = members.keys[members.of(group)].tolist()
        found += [
            (round(float(cosine), 6), key, members.subtasks[group])
            for cosine, key in zip(cosines, keys, strict=True)
            if cosine < 0
        ]
    return [(key, subtask) for _, key, subtask in sorted(found)]


def _mean_toward(targets: Sequence[Targets], shares: Floats) -> float | None:
    if not all(target.toward for target in targets):
        return None
    means = []
    for target in targets:
        own = [member.subtask for member in target.members]
        counts = [own.count(name) for name in target.subtasks]
        means.append(math.fsum(n * cosine for n, cosine in zip(counts, target.toward, strict=True)) / sum(counts))
    return float(math.fsum(share * mean for share, mean in zip(shares, means, strict=True)))


def _mean_between(targets: Sequence[Targets], shares: Floats) -> float | None:
    means = [[member.between for member in target.members if member.between is not None] for target in targets]
    if not all(means):
        return None
    return float(sum(share * math.fsum(own) / len(own) for share, own in zip(shares, means, strict=True)))

"""Target gradients: the gradient of the loss that the selected rows should lower, one vector per subtask.

ROSE takes the pairwise preference loss (DPO) of the policy (base + adapter) against the reference (adapter off):

    margin = [log p(chosen) - log p_ref(chosen)] - [log p(rejected) - log p_ref(rejected)]
    loss = -log sigmoid(beta margin)
    gradient = beta sigmoid(-beta margin) (grad log p(rejected) - grad log p(chosen))

LESS takes the mean token cross-entropy of examples. Gradients are plain, never Adam's, so scaling an example changes
nothing. With *mean_of_units* (the official code) each pair is normalised and the factor in front cancels: neither beta
nor the reference has any effect. With *unit_of_mean*, the papers' expectation, pairs that the model gets wrong weigh
more. Departure from official ROSE: the template, not this file, decides on an end-of-sequence token after the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from raysift.errors import DataError
from raysift.gradients.adam import AdamDirection
from raysift.gradients.adapter import adapter_off
from raysift.gradients.collect import RowGradients, RowVectors
from raysift.gradients.null_sums import NullRows, NullSigns, NullSums
from raysift.gradients.rows import NOT_FINITE, ZERO, SetAside, TokenRow, check_row
from raysift.gradients.sketches import Sketcher, Sketches, cosines_with_sum
from raysift.gradients.sums import CompensatedSum
from raysift.settings.gradients import PreferenceSettings, TargetSettings
from raysift.settings.memory import ACCUMULATED_BYTES

T = TypeVar("T")
Write = Callable[[NDArray[np.floating]], None]
"""Takes a subtask's complete vector."""

SAME_ANSWERS, SAME_UNTIL_CUT = "chosen_equals_rejected", "equal_up_to_the_cut"

_HELD_NUMBERS = ACCUMULATED_BYTES // 4  # numbers of unaggregated gradients in memory at once, in float32


@dataclass(frozen=True)
class TokenPair:
    """A preference as the model sees it: both rows hold the prompt, with labels on the answer only; their ids are unused."""

    id: int
    chosen: TokenRow
    rejected: TokenRow
    subtask: str = "all"
    truncated: bool = False
    """Whether tokens of an answer were cut off."""


@dataclass(frozen=True)
class TokenExample:
    """An example of the target task, for LESS."""

    row: TokenRow
    subtask: str = "all"
    truncated: bool = False


@dataclass(frozen=True)
class Member:
    """One pair's or example's contribution: loss, margin (pairs only), gradient length, whether an answer was cut.

    `between` is the cosine of the gradients of chosen and rejected: near 1, most of both cancels. `cosine` is that of the
    member with its subtask's target, estimated from sketches.
    """

    id: int
    subtask: str
    loss: float
    norm: float
    margin: float | None = None
    truncated: bool = False
    between: float | None = None
    cosine: float | None = None


@dataclass(frozen=True)
class Targets:
    """One vector per subtask, (subtasks, width), sorted by subtask name, and the pairs or examples that contributed.

    With null columns, each subtask's vector is followed by its null ones: (subtasks x (1 + columns), width).
    `set_aside` lists pairs and examples without a gradient. Pairs with equal answers count as zero in a mean, as in the
    official code; the others are left out of it. `vectors` has no rows if they were written instead. `units` holds each
    member's normalised gradient, if requested; if not, `sketches` holds small projections of them (see `sketches.py`).
    """

    subtasks: tuple[str, ...]
    vectors: NDArray[np.floating]
    members: list[Member]
    set_aside: list[SetAside]
    units: NDArray[np.floating] | None = None
    sketches: Sketches | None = None
    toward: tuple[float, ...] = ()
    """Of pairs, each subtask's cosine of its target with what both answers share, the sum of their unit gradients."""
    empty_nulls: int = 0
    """Null columns that no row contributed to; they are zero."""


def preference_loss(margin: NDArray[np.float64], beta: float) -> NDArray[np.float64]:
    """-log sigmoid(beta margin), without overflow."""
    return np.logaddexp(0.0, -beta * margin)


def preference_pull(margin: NDArray[np.float64], beta: float) -> NDArray[np.float64]:
    """beta sigmoid(-beta margin): how strongly a pair still pulls; near zero if the model already prefers `chosen`."""
    return beta * np.exp(-np.logaddexp(0.0, beta * margin))


def preference_targets(
    gradients: RowGradients,
    pairs: Sequence[TokenPair],
    settings: PreferenceSettings,
    targets: TargetSettings,
    keep_units: bool = False,
    write: Write | None = None,
    null: NullSigns | NullRows | None = None,
) -> Targets:
    """Targets of ROSE, computed with the sink of `gradients`: a projection, of kind none for exact matching.

    With `write`, each subtask's vectors go there as soon as they are complete, in the order of `subtasks`, and are not kept.
    """
    kept, set_aside = _checked_pairs(gradients, pairs)
    subtask_of = {pair.id: pair.subtask for pair in pairs}
    means = _SubtaskMeans(targets, subtask_of, keep_units, write, null.columns if null else 0)
    if isinstance(null, NullSigns):
        # Null columns are plain sums: taken in the order of content, they do not depend on that of the files.
        kept.sort(key=lambda pair: (null.keys[pair.id], pair.id))
        means.nulls.signs = null.of({pair.id: pair.subtask for pair in kept})
    for why in set_aside:
        if why.reason in (SAME_ANSWERS, SAME_UNTIL_CUT):
            means.count_zero(why.id)
    with _directed(gradients, None) as of_rows:
        for names in means.groups(_width(gradients)):
            for chunk in _chunks([pair for pair in kept if pair.subtask in names], gradients, per_item=2):
                set_aside += _add_pairs(gradients, chunk, settings, means)
            if isinstance(null, NullRows):
                _add_null_rows(gradients, of_rows, names, null, means)
            means.close(names, set_aside)
    return means.finish(set_aside)


def cross_entropy_targets(
    gradients: RowGradients,
    examples: Sequence[TokenExample],
    targets: TargetSettings,
    keep_units: bool = False,
    write: Write | None = None,
    null: NullRows | None = None,
) -> Targets:
    """Targets of LESS, from the mean token loss of each example; `write` as for `preference_targets`."""
    _refuse_repeats([example.row.id for example in examples])
    subtask_of = {example.row.id: example.subtask for example in examples}
    means = _SubtaskMeans(targets, subtask_of, keep_units, write, null.columns if null else 0)
    set_aside: list[SetAside] = []
    with _directed(gradients, None) as of_rows:
        for names in means.groups(_width(gradients)):
            own = [example for example in examples if example.subtask in names]
            for chunk in _chunks(own, gradients, per_item=1):
                result = gradients.run([example.row for example in chunk])
                by_id = {example.row.id: example for example in chunk}
                for id_, vector, loss in zip(result.ids.tolist(), result.vectors, result.losses, strict=True):
                    norm, cut = float(np.linalg.norm(vector)), by_id[id_].truncated
                    means.add(vector, Member(id_, by_id[id_].subtask, float(loss), norm, truncated=cut))
                set_aside += result.set_aside
            if null:
                _add_null_rows(gradients, of_rows, names, null, means)
            means.close(names, set_aside)
    return means.finish(set_aside)


def _add_null_rows(
    gradients: RowGradients,
    direction: AdamDirection | None,
    names: frozenset[str],
    null: NullRows,
    means: _SubtaskMeans,
) -> None:
    """Adds rows to the null columns of these subtasks; a row of several columns is passed once for all of them."""
    rows, columns_of = null.of(names)
    with _directed(gradients, direction):
        for chunk in _chunks(rows, gradients, per_item=1):
            result = gradients.run(chunk)
            for id_, vector in zip(result.ids.tolist(), result.vectors, strict=True):
                means.add_null(vector, columns_of[id_])


def _add_pairs(
    gradients: RowGradients, pairs: list[TokenPair], settings: PreferenceSettings, means: _SubtaskMeans
) -> list[SetAside]:
    rows = _both_sides(pairs)
    result = gradients.run(rows, settings.log_probability)
    where = {int(id_): i for i, id_ in enumerate(result.ids)}
    reference = np.zeros(len(rows))
    if settings.reference == "base":
        with adapter_off(gradients.adapter):
            reference = gradients.losses(rows, settings.log_probability)
    reasons = {why.id // 2: why for why in result.set_aside}
    set_aside = []
    for i, pair in enumerate(pairs):
        if i in reasons:
            set_aside.append(SetAside(pair.id, reasons[i].reason, reasons[i].message))
            continue
        chosen, rejected = where[2 * i], where[2 * i + 1]
        # Losses are -log p, so the signs are the opposite of those in the module's formulas.
        gain = (result.losses[rejected] - reference[2 * i + 1]) - (result.losses[chosen] - reference[2 * i])
        vector, member, shared = _pair_gradient(pair, result, chosen, rejected, float(gain), settings)
        if not (np.isfinite(member.norm) and np.isfinite(member.loss)):
            set_aside.append(SetAside(pair.id, NOT_FINITE, f"loss {member.loss}, gradient norm {member.norm}"))
        elif member.norm == 0:
            set_aside.append(SetAside(pair.id, ZERO, "both answers have the same gradient"))
        else:
            means.add(vector, member, shared)
    return set_aside


def _pair_gradient(
    pair: TokenPair, result: RowVectors, chosen: int, rejected: int, margin: float, settings: PreferenceSettings
) -> tuple[NDArray[np.floating], Member, NDArray[np.floating]]:
    pull, loss = (of(np.array(margin), settings.beta) for of in (preference_pull, preference_loss))
    better, worse = result.vectors[chosen], result.vectors[rejected]
    contrast, shared = better - worse, unit_of(better) + unit_of(worse)
    lengths = float(np.linalg.norm(better)) * float(np.linalg.norm(worse))
    between = float(better @ worse) / lengths if lengths else None
    # The pull underflows if the model clearly prefers `chosen`; the direction is still that of the contrast.
    vector = with_answer(contrast, better, settings.answer_weight)
    norm = float(np.linalg.norm(vector))
    member = Member(pair.id, pair.subtask, float(loss), norm, margin, pair.truncated, between)
    if norm == 0 or pull > 0:
        return vector * pull.astype(vector.dtype), replace(member, norm=norm * float(pull)), shared
    return vector, member, shared


def unit_of(vector: NDArray[np.floating]) -> NDArray[np.floating]:
    """The vector at length 1; zeros stay."""
    return vector / (np.linalg.norm(vector) or 1)


def with_answer(contrast: NDArray[np.floating], answer: NDArray[np.floating], weight: float) -> NDArray[np.floating]:
    """The contrast, with `weight` times its length added in the direction of the chosen answer's own gradient."""
    if not weight:
        return contrast
    return contrast + unit_of(answer) * np.asarray(weight * np.linalg.norm(contrast), answer.dtype)


class _SubtaskMeans:
    """Running sums of a few subtasks at a time, compensated so that the order of members does not matter."""

    def __init__(
        self,
        settings: TargetSettings,
        subtask_of: Mapping[int, str],
        keep_units: bool,
        write: Write | None,
        nulls: int = 0,
    ) -> None:
        if not subtask_of:
            raise DataError("target: no pairs or examples were given.")
        self._settings = settings
        self._subtask_of = subtask_of
        self._names = tuple(sorted(set(subtask_of.values())))
        self._sums: dict[str, CompensatedSum] = {}
        self._counts = dict.fromkeys(self._names, 0)
        self._members: dict[int, tuple[Member, Sketches | NDArray[np.floating]]] = {}
        self._keep_units = keep_units
        self._sketch = Sketcher(len(subtask_of))
        self._shared: dict[str, NDArray[np.float64]] = {}  # sketches of what chosen and rejected share, by subtask
        self._vectors: list[NDArray[np.floating]] = []
        self._write = write or self._vectors.append
        self.nulls = NullSums(nulls)

    def groups(self, width: int) -> Iterator[frozenset[str]]:
        """The subtasks' names in order, as many at a time as have room for their sums of `width` numbers."""
        self._width = width
        step = max(1, _HELD_NUMBERS // ((2 + self.nulls.columns) * width))
        for start in range(0, len(self._names), step):
            yield frozenset(self._names[start : start + step])

    def count_zero(self, id_: int) -> None:
        self._counts[self._subtask_of[id_]] += 1

    def add(self, vector: NDArray[np.floating], member: Member, shared: NDArray[np.floating] | None = None) -> None:
        unit = vector / np.linalg.norm(vector)
        if member.subtask not in self._sums:
            self._sums[member.subtask] = CompensatedSum(len(vector), vector.dtype)
        added = unit if self._settings.aggregation == "mean_of_units" else vector
        self._sums[member.subtask].add(added)
        self._counts[member.subtask] += 1
        self._members[member.id] = member, unit if self._keep_units else self._sketch(unit)
        self.nulls.add_signed(member.id, member.subtask, added)
        if shared is not None and not self._keep_units:
            own = self._shared.setdefault(member.subtask, np.zeros(self._sketch.width))
            own += self._sketch(shared)

    def add_null(self, vector: NDArray[np.floating], columns: Sequence[tuple[str, int]]) -> None:
        """Adds the gradient of a row to null columns of subtasks."""
        added = vector / np.linalg.norm(vector) if self._settings.aggregation == "mean_of_units" else vector
        for name, column in columns:
            self.nulls.add(name, column, added)

    def close(self, names: frozenset[str], set_aside: list[SetAside]) -> None:
        """Passes on the vectors of these subtasks, to which nothing is added any more, and frees their sums."""
        for name in sorted(names):
            if name not in self._sums:
                reasons = sorted({why.reason for why in set_aside})
                raise DataError(
                    f"targets: no pair or example of subtask '{name}' has a gradient; {len(set_aside)} were set aside "
                    f"({', '.join(reasons)}). Give it others, or drop the subtask."
                )
            vector = self._sums.pop(name).total()
            nulls = [self.nulls.close(name, i, vector, self._counts[name]) for i in range(self.nulls.columns)]
            vector /= self._counts[name]
            if self._settings.aggregation == "unit_of_mean":
                if not np.any(vector):
                    raise DataError(f"target: the gradients of subtask {name!r} cancel out.")
                for own in (vector, *nulls):
                    own /= np.linalg.norm(own) or 1.0
            for own in (vector, *nulls):
                self._write(own)

    def finish(self, set_aside: list[SetAside]) -> Targets:
        """The targets; members in the order in which they were given."""
        ids = [id_ for id_ in self._subtask_of if id_ in self._members]
        members, held = zip(*(self._members[id_] for id_ in ids), strict=True)
        vectors = np.stack(self._vectors) if self._vectors else np.empty((0, self._width), np.float32)
        numbers = np.stack(held)
        if self._keep_units:
            return Targets(self._names, vectors, list(members), set_aside, units=numbers)
        told, toward = self._compared(members, numbers)
        return Targets(self._names, vectors, told, set_aside, None, numbers, toward, empty_nulls=self.nulls.empty)

    def _compared(self, members: Sequence[Member], sketches: Sketches) -> tuple[list[Member], tuple[float, ...]]:
        """The members with their cosines, and `toward`: a subtask's target is the sum of units, or of whole gradients."""
        subtasks = np.array([member.subtask for member in members], object)
        by_units = self._settings.aggregation == "mean_of_units"
        weights = np.array([1.0 if by_units else member.norm for member in members])
        cosines, toward = np.zeros(len(sketches)), []
        for name in self._names:
            own = subtasks == name
            cosines[own] = cosines_with_sum(sketches[own], weights[own])
            if name in self._shared:
                total = weights[own] @ sketches[own].astype(np.float64)
                toward.append(float(unit_of(total) @ unit_of(self._shared[name])))
        told = [replace(member, cosine=float(c)) for member, c in zip(members, cosines, strict=True)]
        return told, tuple(toward)


def _checked_pairs(gradients: RowGradients, pairs: Sequence[TokenPair]) -> tuple[list[TokenPair], list[SetAside]]:
    _refuse_repeats([pair.id for pair in pairs])
    kept, set_aside = [], []
    for pair in pairs:
        sides = (pair.chosen, pair.rejected)
        why = next((why for side in sides if (why := check_row(side, gradients.max_tokens))), None)
        if why is not None:
            set_aside.append(SetAside(pair.id, why.reason, why.message))
        elif all(np.array_equal(getattr(sides[0], f), getattr(sides[1], f)) for f in ("input_ids", "labels")):
            reason = SAME_UNTIL_CUT if pair.truncated else SAME_ANSWERS
            set_aside.append(SetAside(pair.id, reason, "it says nothing about what is better; it counts as zero"))
        else:
            kept.append(pair)
    return kept, set_aside


def _both_sides(pairs: Sequence[TokenPair]) -> list[TokenRow]:
    """Rows 2 i (chosen) and 2 i + 1 (rejected) of pair i."""
    sides = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    return [TokenRow(i, side.input_ids, side.labels) for i, side in enumerate(sides)]


def _refuse_repeats(ids: Sequence[int]) -> None:
    if len(set(ids)) < len(ids):
        raise DataError(f"target: {len(ids) - len(set(ids))} ids of pairs or examples occur twice.")


def _chunks(items: list[T], gradients: RowGradients, per_item: int) -> Iterator[list[T]]:
    step = max(1, _HELD_NUMBERS // (_width(gradients) * per_item))
    for start in range(0, len(items), step):
        yield items[start : start + step]


def _width(gradients: RowGradients) -> int:
    return gradients.sink.width if gradients.sink is not None else 1


@contextmanager
def _directed(gradients: RowGradients, direction: AdamDirection | None) -> Iterator[AdamDirection | None]:
    """Another direction inside the block, which gets the one before. Targets are plain (None), whatever the rows are."""
    own, gradients.direction = gradients.direction, direction
    try:
        yield own
    finally:
        gradients.direction = own

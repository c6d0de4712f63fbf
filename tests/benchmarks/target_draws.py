"""Seeded draws from a target's members: how often is one without meaning called noise, and how often one that works?

For `bench_targets.py --draws`.

    shuffled    pairs of which a random half or so have chosen and rejected exchanged: they mean nothing
    parts       two thirds of the members: a target as good as the whole, nearly

Scores and null scores are sums over members, so the members' cosines with all rows are computed once, and a draw costs no
pass. A draw is judged as a run judges its target: before the pass by the agreement of its members, after it by its null: random
signs of the draw's pairs, or the random rows of the run. Targets of one subtask only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raysift.actors.target_files import load_targets
from raysift.config import make_selector
from raysift.gradients.agreement import agreement
from raysift.gradients.influence import TargetColumns, checkpoint_weights, match_rows, weigh_checkpoints
from raysift.gradients.null import WHOLE, NullReduce, stands_above
from raysift.gradients.null_columns import ROWS, SIGNS, NullColumns, random_signs, replicates
from raysift.gradients.preference import Targets
from raysift.gradients.sketches import Sketcher
from raysift.jobs.cluster.machines import for_role
from raysift.jobs.gradients.null import null_rows
from raysift.jobs.gradients.stages import checkpoints_of, gradient_loading
from raysift.jobs.gradients.store import as_filled, store_of
from raysift.jobs.gradients.targeting import content_key, read_targets
from raysift.jobs.runs.models import find_model
from raysift.jobs.runs.run import open_run
from raysift.records import Pair
from raysift.store.gradient_store import read_shard

Floats = NDArray[np.float64]
PART = 2 / 3


class Judged(NamedTuple):
    """One draw."""

    before: str
    """Level of the agreement."""
    above: float | None
    """Share of the selected rows above the null; None without one."""
    lift: float | None

    @property
    def noise_after(self) -> bool:
        """No row above: where the pool has few rows of a kind, even a perfect selection has few."""
        return self.above == 0


@dataclass(frozen=True)
class Drawable:
    """A finished run's target, member by member."""

    members: Sequence[Any]
    targets: Sequence[Targets]
    """At each checkpoint, with sketches."""
    shares: Floats
    cosines: Floats
    """Weighed over checkpoints: (rows, members)."""
    ids: NDArray[np.int64]
    serving: NDArray[np.bool_]
    """Which rows are of a source that serves the target."""
    selected: int
    nulls: Floats | None
    """Of examples: scores of all rows with the run's null columns, (rows, columns), if it has them."""
    null_members: Sequence[NDArray[np.int64]] = ()

    @property
    def are_pairs(self) -> bool:
        return isinstance(self.members[0], Pair)


def open_target(run: str, serving: set[int], selected: int) -> Drawable:
    """Computes the members' gradients again, and matches each with all rows of the run's store. Needs a running Ray: the
    task's end frees the model."""
    import ray

    found: Drawable = ray.get(ray.remote(_open_in_task).remote(run, serving, selected))
    return found


def _open_in_task(name: str, serving: set[int], selected: int) -> Drawable:
    from raysift.actors.target_gradients import TargetGradients

    run = open_run(name)
    config = run.config()
    selector = make_selector(config)
    settings, found = selector.config, read_targets(config, selector)
    warm, target, stored = (run.manifest(stage) for stage in ("warmup", "targets", "gradients"))
    points = checkpoints_of(run, warm, settings.checkpoints)
    pinned = for_role(config.model_copy(update={"model": find_model(run, config).name}), "gradients")
    actor = TargetGradients(
        pinned.model, points, settings.projection, settings.adam, **gradient_loading(pinned, settings)
    )
    targets = selector.target_gradients(actor, found.members, keep_units=True)
    store = as_filled(run, store_of(run, config, settings, warm, target), stored)
    shares = checkpoint_weights([point.learning_rate for point in points])
    null = NullColumns.of(target.values)
    own_nulls = null.columns if null.usable and null.kind == ROWS else 0
    vectors = load_targets(run.files(target, "targets")[0].parent, points, null=True)
    columns = [np.concatenate([t.units, v.numpy()[1 : 1 + own_nulls]]) for t, v in zip(targets, vectors, strict=True)]
    count = len(targets[0].members)
    ids, blocks = [], []
    for segment, _ in store.held():
        for shard in segment.shards:
            for own, rows in read_shard(store.folder(segment.name) / shard, list(store.points)):
                matched = [match_rows(part, every) for part, every in zip(rows, columns, strict=True)]
                ids.append(np.array(own))
                blocks.append(weigh_checkpoints(np.stack(matched, axis=1), shares))
    every, cosines = np.concatenate(ids), np.concatenate(blocks)
    sketch = Sketcher(len(found.members))
    return Drawable(
        [found.members[member.id] for member in targets[0].members],
        [replace(t, units=None, sketches=np.stack([sketch(unit) for unit in t.units])) for t in targets],
        shares,
        cosines[:, :count],
        every,
        np.isin(every, list(serving)),
        selected,
        cosines[:, count:] if own_nulls else None,
        null_rows(run, target, own_nulls) if own_nulls else (),
    )


def shuffled(target: Drawable, seed: int) -> Judged:
    """Judges the pairs with their sides exchanged by a coin each."""
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], len(target.members))
    return judge(target, np.arange(len(signs)), signs)


def part(target: Drawable, seed: int) -> Judged:
    """Judges some of the members."""
    count = round(PART * len(target.members))
    kept = np.sort(np.random.default_rng(seed).permutation(len(target.members))[:count])
    return judge(target, kept, np.ones(count))


def judge(target: Drawable, kept: NDArray[np.signedinteger], signs: Floats) -> Judged:
    """What a run would say of these members with these signs."""
    members = [
        _swapped(target.members[at]) if sign < 0 else target.members[at] for at, sign in zip(kept, signs, strict=True)
    ]
    keys = [content_key(member) for member in members]
    drawn = [
        replace(
            one,
            members=[replace(one.members[at], id=number) for number, at in enumerate(kept)],
            sketches=one.sketches[kept] * signs[:, None].astype(np.float32),
            toward=(),
        )
        for one in target.targets
    ]
    names = [str(number) for number in range(len(drawn))]
    level = agreement(drawn, names, target.shares.tolist(), keys, "mean_of_units").whole.level
    of_members = target.cosines[:, kept] * signs
    scores = of_members.mean(axis=1)
    above = _above(target, of_members, scores, keys)
    chosen = np.lexsort((target.ids, -scores))[: target.selected]
    share = target.serving.mean()
    return Judged(
        level,
        None if above is None else float(above[chosen].mean()),
        float(target.serving[chosen].mean() / share) if share else None,
    )


def _above(target: Drawable, of_members: Floats, scores: Floats, keys: Sequence[int]) -> NDArray[np.bool_] | None:
    nulls, kind = target.nulls, ROWS
    if target.are_pairs:
        nulls, kind = of_members @ random_signs(keys, replicates(1)) / len(keys), SIGNS
    if nulls is None:
        return None
    null = NullColumns(kind, nulls.shape[1], members=(len(keys),))
    reduce = NullReduce(null, TargetColumns.single(["all"]), "max", target.null_members)
    reduce.add(target.ids, scores[:, None], nulls[:, None, :])
    return stands_above(reduce.result()[WHOLE], scores)


def _swapped(pair: Pair) -> Pair:
    return replace(pair, chosen=pair.rejected, rejected=pair.chosen)
